"""Figures draw the data they are given, mark the ends, and name the definition of each number."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from onebasin.analysis import Curve
from onebasin.matching import WeightMatching, align
from onebasin.report.figures import barrier_figure, plot_barrier, plot_history
from onebasin.spec import PermutationSpec

LAMS = (0.0, 0.25, 0.5, 0.75, 1.0)
NAIVE = Curve(LAMS, {"loss": (1.0, 2.0, 4.0, 3.0, 2.0), "accuracy": (0.9, 0.7, 0.5, 0.6, 0.8)})
MATCHED = Curve(LAMS, {"loss": (1.0, 1.1, 1.2, 1.5, 2.0), "accuracy": (0.9, 0.9, 0.9, 0.9, 0.8)})
CURVES = {"naive": NAIVE, "matched": MATCHED}


def test_one_metric_of_two_paths() -> None:
    ax = plot_barrier(CURVES)
    lines = {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    assert set(lines) == {"naive: 2.500 nats", "matched: 0.500 nats"}
    assert tuple(lines["naive: 2.500 nats"].get_xdata()) == LAMS
    assert tuple(lines["naive: 2.500 nats"].get_ydata()) == NAIVE.loss
    ends = [tuple(line.get_ydata()) for line in ax.lines if line.get_marker() == "o"]
    assert ends == [(1.0, 2.0), (1.0, 2.0)]
    assert ax.get_ylabel() == "loss (nats per example)"
    assert "λ" in ax.get_xlabel()
    assert ax.get_legend().get_title().get_text() == "barrier: largest minus the mean of the ends"


def test_a_barrier_of_an_accuracy_is_a_drop() -> None:
    ax = plot_barrier(CURVES, metric="accuracy", kind="chord")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["naive: 35.0 points", "matched: 0.0 points"]
    assert ax.get_legend().get_title().get_text() == "barrier: largest drop below the chord"


def test_curves_without_the_metric_are_left_out() -> None:
    bare = Curve((0.0, 1.0), {"loss": (1.0, 2.0)})
    assert len(plot_barrier({**CURVES, "bare": bare}, metric="accuracy").get_legend().get_texts()) == 2


def test_a_figure_has_a_panel_for_each_metric_of_each_network(tmp_path: Path) -> None:
    figure = barrier_figure({"mlp": CURVES, "convnet": CURVES})
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["mlp: loss", "mlp: accuracy", "convnet: loss", "convnet: accuracy"]
    for suffix in ("png", "svg", "pdf"):
        figure.savefig(tmp_path / f"a.{suffix}")
        assert (tmp_path / f"a.{suffix}").stat().st_size > 1000


def test_axes_that_are_given_are_drawn_on() -> None:
    ax = Figure().subplots()
    assert plot_barrier(CURVES, ax) is ax


def test_history_of_an_alignment() -> None:
    spec = PermutationSpec.from_axes({"w": ("P0", None), "v": (None, "P0")}, {"w": (7, 3), "v": (2, 7)})
    generator = torch.Generator().manual_seed(0)
    a, b = ({name: torch.randn(shape, generator=generator) for name, shape in spec.shapes.items()} for _ in range(2))
    found = align(spec, a, b, WeightMatching())
    ax = plot_history(found)
    assert tuple(ax.lines[0].get_ydata()) == found.objective
    assert "converged" in ax.get_title(loc="left")


def test_drawing_opens_no_window_and_touches_no_global_state() -> None:
    if "matplotlib.pyplot" in sys.modules:
        pytest.skip("another test has imported pyplot")
    plot_barrier(CURVES)
    assert "matplotlib.pyplot" not in sys.modules
