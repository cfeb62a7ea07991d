"""Figures of the analysis draw the numbers they are given, and say in words what is drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from onebasin.analysis import Calibration, InputAlignment, Plane, Spectrum, spectrum
from onebasin.analysis.inputs import LayerInputAlignment
from onebasin.report.figures_analysis import (
    PANELS,
    alignment_figure,
    heat_figure,
    input_figure,
    plane_figure,
    reliability_figure,
    spectrum_figure,
)
from onebasin.spec import PermutationSpec


def compared(seed: int, layers: int = 2) -> Spectrum:
    shapes = {f"fc{number}.weight": (7, 5) for number in range(layers)}
    spec = PermutationSpec.from_axes({}, shapes)
    generator = torch.Generator().manual_seed(seed)
    a, b = ({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(2))
    return spectrum(spec, a, b, 0.0)


PLANE = Plane(
    (0.0, 1.0, 2.0),
    (-1.0, 1.0),
    ((0.0, 0.0), (2.0, 0.0), (1.0, 1.0)),
    {"loss": ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), "accuracy": ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))},
    {"loss": (1.5, 2.5, 4.5), "accuracy": (0.2, 0.3, 0.4)},
)
INPUTS = InputAlignment(
    {"fc.weight": LayerInputAlignment(torch.tensor([4.0, 2.0, 1.0]), torch.tensor([30.0, 6.0, 0.1]), 40.0, 9)}
)


def words(figure: Figure) -> str:
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def test_bars_are_r_with_its_spread_over_trials() -> None:
    trials = [compared(1), compared(2), compared(3)]
    figure = alignment_figure({"MLP": {"as trained": compared(0), "matched": trials}, "VGG": {"matched": trials}})
    left, right = figure.axes
    heights = [patch.get_height() for patch in left.patches]
    mean = sum(trial.at(0.3).alignment for trial in trials) / 3
    expected = [compared(0).alignment, compared(0).at(0.3).alignment]
    assert heights[:2] == pytest.approx(expected)
    assert heights[3] == pytest.approx(mean)
    assert [tick.get_text() for tick in left.get_xticklabels()] == [
        "all singular\nvectors",
        "large ones: at least\n0.3 × the largest",
    ]
    assert len(right.patches) == 2
    assert left.get_ylim() == right.get_ylim()
    for text in ("MLP", "VGG", "as trained", "matched", "1: the same, 0: unrelated"):
        assert text in words(figure)


def test_spectra_of_both_models_in_a_panel_per_weight() -> None:
    found = compared(0)
    figure = spectrum_figure(found, ("seed 0", "seed 1"))
    assert len(figure.axes) == 2
    for ax, layer in zip(figure.axes, found.layers.values(), strict=True):
        one, other = ax.lines
        assert one.get_ydata() == pytest.approx(layer.values_a)
        assert other.get_ydata() == pytest.approx(layer.values_b)
    for text in ("seed 0", "seed 1", "singular value", "fc1.weight", f"seed 1 is {layer.ratio:.2f} × seed 0"):
        assert text in words(figure)


def test_of_deep_networks_some_layers_are_drawn_and_the_figure_says_so() -> None:
    figure = spectrum_figure(compared(0, 30))
    titles = [ax.get_title(loc="left").split()[0] for ax in figure.axes]
    assert len(titles) == PANELS
    assert (titles[0], titles[-1]) == ("fc0.weight", "fc29.weight")
    assert "18 layers in between are not drawn" in words(figure)


def test_inputs_along_large_and_other_vectors() -> None:
    figure = input_figure(INPUTS, 0.3)
    (ax,) = figure.axes
    others, large = ax.lines[:2]
    assert list(large.get_xdata()) == [1.0, 0.5]
    assert list(large.get_ydata()) == [30.0, 6.0]
    assert list(others.get_ydata()) == pytest.approx([0.1])
    assert "2 of 9 directions hold 90%" in ax.get_title(loc="left")
    assert "large vectors" in words(figure)


def test_the_map_shows_every_layer_at_every_threshold() -> None:
    naive, matched = compared(0), compared(1)
    figure = heat_figure({"as trained": naive, "matched": matched}, (0.0, 0.5))
    left, right = figure.axes[:2]
    values = right.images[0].get_array()
    assert values.shape == (3, 2)
    assert values[1, 1] == pytest.approx(matched.at(0.5).layer_alignment["fc1.weight"])
    assert values[2, 0] == pytest.approx(matched.alignment)
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["fc0.weight", "fc1.weight", "all layers"]
    shown = [text.get_text() for text in left.texts]
    assert "-0.00" not in shown
    assert f"{naive.alignment:.2f}" in shown


def test_the_plane_marks_the_three_networks() -> None:
    figure = plane_figure(PLANE, ("A", "π(B)", "π(C)"))
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["A: 1.500", "π(B): 2.500", "π(C): 4.500"]
    marked = [tuple(float(v[0]) for v in line.get_data()) for line in ax.lines if line.get_marker() == "o"]
    assert marked == list(PLANE.corners)
    assert ax.get_aspect() == 1
    assert "nats per example" in words(figure)


def test_planes_share_one_scale_and_any_metric_can_be_drawn() -> None:
    flat = Plane(PLANE.x, PLANE.y, PLANE.corners, {"loss": ((1.0,) * 3,) * 2}, {"loss": (1.0, 1.0, 1.0)})
    figure = plane_figure({"weight matching": PLANE, "flat": flat})
    first, second = (ax.collections[0] for ax in figure.axes[:2])
    assert list(first.levels) == list(second.levels)
    shares = plane_figure(PLANE, metric="accuracy")
    shares.draw_without_rendering()
    assert "%" in words(shares)
    plane_figure(flat)  # a constant has no scale of its own


def test_they_can_be_written(tmp_path: Path) -> None:
    figures = [plane_figure(PLANE), input_figure(INPUTS), heat_figure({"": compared(0)}), spectrum_figure(compared(0))]
    for number, figure in enumerate([*figures, alignment_figure({"": {"one": compared(0)}})]):
        figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 1000


def test_drawing_opens_no_window() -> None:
    if "matplotlib.pyplot" in sys.modules:
        pytest.skip("another test has imported pyplot")
    plane_figure(PLANE)
    assert "matplotlib.pyplot" not in sys.modules


def test_reliability_draws_the_bins_that_hold_predictions() -> None:
    found = Calibration((8, 0, 2), (0.1, 0.0, 0.9), (0.2, 0.0, 0.5))
    above, below = reliability_figure({"merged": found}).axes
    assert [line.get_xydata().tolist() for line in above.lines[1:]] == [[[0.1, 0.2], [0.9, 0.5]]]
    assert below.lines[0].get_xydata().tolist() == [[0.1, 8], [0.9, 2]]
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["perfect", "merged: 0.1600"]
