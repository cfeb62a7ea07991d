"""Tables say what the data says, in a hundred columns."""

from __future__ import annotations

import io
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from onebasin.analysis import Curve
from onebasin.best import Best
from onebasin.layout import NOT_UNDERSTOOD, Leaf, Product
from onebasin.matching import SinkhornRebasin, StraightThrough, WeightMatching, align
from onebasin.permutation import Permutation
from onebasin.report.tables import (
    alignment_table,
    barrier_legend,
    barrier_table,
    fixed_axes,
    fixed_table,
    group_table,
    moved_share,
)
from onebasin.spec import PermutationSpec

SHAPES = {"fc1.weight": (5, 3), "fc1.bias": (5,), "norm.running_mean": (5,), "fc2.weight": (2, 5)}
AXES = {"fc1.weight": ("P0", None), "fc1.bias": ("P0",), "norm.running_mean": ("P0",), "fc2.weight": (None, "P0")}


def spec() -> PermutationSpec:
    return PermutationSpec.from_axes(AXES, SHAPES)


def drawn(table: Table) -> str:
    out = io.StringIO()
    Console(width=100, file=out).print(table)
    assert max(map(len, out.getvalue().splitlines())) <= 100
    return out.getvalue()


def test_groups_and_what_they_move() -> None:
    text = drawn(group_table(spec()))
    assert "P0" in text
    assert "fc1.weight[0]  fc1.bias[0]  norm.running_mean[0]  fc2.weight[1]" in text


def test_nested_groups_stand_under_their_parents() -> None:
    shapes = {"q.weight": (6, 5), "k.weight": (6, 5), "o.weight": (5, 6)}
    head = Leaf(2, "head"), Leaf(3, "unit")
    rows = {"q.weight": (Product(head), Leaf(5, "stream")), "k.weight": (Product(head), Leaf(5, "stream"))}
    rows["o.weight"] = (Leaf(5, "stream"), Product(head))
    nested = PermutationSpec({"unit": 3, "stream": 5, "head": 2}, rows, {"unit": ("head",)})
    assert nested.shapes == shapes
    lines = drawn(group_table(nested)).splitlines()
    names = [line.split()[0] for line in lines if line.split() and line.split()[0] in nested.sizes]
    assert names == ["stream", "head", "unit"]
    assert any("2 × 3" in line for line in lines)


def test_deep_networks_share_rows() -> None:
    rows = {f"layers.{number}.weight": (f"layers.{number}", f"layers.{number + 1}") for number in range(50)}
    deep = PermutationSpec.from_axes(rows, dict.fromkeys(rows, (5, 5)))
    table = group_table(deep)
    assert table.row_count == 3  # first and last stand on one axis, the 49 between on two
    assert "49" in drawn(table)
    few = PermutationSpec.from_axes(dict(list(rows.items())[:7]), dict.fromkeys(list(rows)[:7], (5, 5)))
    assert group_table(few).row_count == 8


def test_reasons_for_fixed_axes_leave_buffers_out() -> None:
    shapes = {**SHAPES, "table": (7,)}
    made = replace(PermutationSpec.from_axes(AXES, shapes), buffers=frozenset({"norm.running_mean", "table"}))
    assert fixed_axes(made) == {"written by hand as fixed": ["fc1.weight[1]", "fc2.weight[0]"]}
    assert "fc2.weight[0]" in drawn(fixed_table(made))


def test_reasons_that_differ_in_their_place_share_a_row() -> None:
    rows = {
        f"conv{number}.weight": (f"P{number}", Leaf(3, None, f"spatial axis (conv2d at module conv{number})"))
        for number in (1, 2, 3)
    }
    table = fixed_table(PermutationSpec.from_axes(rows, dict.fromkeys(rows, (5, 3))))
    assert table.row_count == 1
    text = " ".join(drawn(table).split())
    assert "spatial axis (conv2d at module conv1, and 2 more)" in text
    assert "conv1.weight[1] conv2.weight[1] +1" in text


def test_what_was_not_understood_comes_first_with_every_place() -> None:
    whys = ["model output", NOT_UNDERSTOOD + "a at net.py:1", NOT_UNDERSTOOD + "a at net.py:2"]
    tensors = {f"w{number}": (Leaf(3, None, why),) for number, why in enumerate(whys)}
    text = drawn(fixed_table(PermutationSpec({}, tensors)))
    assert text.index("net.py:1") < text.index("net.py:2") < text.index("model output")
    assert "a larger group may exist" in text
    known = drawn(fixed_table(PermutationSpec({}, {"w0": (Leaf(3, None, whys[0]),)})))
    assert "a larger group may exist" not in known


def test_long_names_are_cut_at_the_front() -> None:
    name = "encoder." * 20 + "attention.weight"
    text = drawn(group_table(PermutationSpec.from_axes({name: ("group." * 20 + "last", None)}, {name: (5, 3)})))
    assert "attention.weight[0]" in text
    assert "last" in text


def test_barriers_and_the_midpoint() -> None:
    odd = Curve((0.0, 0.5, 1.0), {"loss": (1.0, 4.0, 2.0), "accuracy": (0.9, 0.5, 0.7)})
    even = Curve((0.0, 1.0), {"loss": (1.0, 2.0)})
    lines = [line.split() for line in drawn(barrier_table({"naive": odd, "ends": even})).splitlines()]
    assert ["loss,", "naive", "1.0000", "4.0000", "2.0000", "2.5000", "2.5000", "2.5000"] in lines
    assert ["loss,", "ends", "1.0000", "-", "2.0000", "0.5000", "0.0000", "-"] in lines
    assert ["accuracy,", "naive", "0.9000", "0.5000", "0.7000", "0.3000", "0.3000", "0.3000"] in lines
    for kind in ("mean:", "chord:", "midpoint:"):
        assert kind in barrier_legend()


def test_alignments() -> None:
    generator = torch.Generator().manual_seed(0)
    a = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    shuffle = Permutation(spec(), {"P0": torch.tensor([1, 2, 0, 3, 4])})
    found = align(spec(), a, shuffle.apply(a), WeightMatching())
    assert moved_share(found) == 3 / 5
    text = drawn(alignment_table({"a very long path/" * 5 + "b.pt": found}))
    assert "60.0%" in text
    assert f"{found.objective[-1]:.6g}" in text
    assert "minus" not in text
    model = torch.nn.Linear(3, 2)
    for matcher, words in (
        (StraightThrough(model, [torch.ones(2, 3)]), "objective: minus the lowest loss half way"),
        (SinkhornRebasin(model, [torch.ones(2, 3)]), "objective: minus the lowest loss between"),
        (Best(model, [torch.ones(2, 3)]), "objective: minus J, how far"),
    ):
        assert words in drawn(alignment_table({"b.pt": replace(found, matcher=matcher), "c.pt": found}))
