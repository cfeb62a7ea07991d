from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from specs import NESTED, SPECS, flat_mlp, nested_deeply, nested_heads

from onebasin.errors import SpecError
from onebasin.layout import Leaf, Product, Sum
from onebasin.spec import UNUSED, PermutationSpec

SHAPES = {"fc1.weight": (7, 3), "fc1.bias": (7,), "fc2.weight": (2, 7)}
AXES = {"fc1.weight": ("P0", None), "fc1.bias": ("P0",), "fc2.weight": (None, "P0")}


def test_from_axes_reads_names_none_and_layouts() -> None:
    spec = PermutationSpec.from_axes(AXES, SHAPES)
    assert spec.sizes == {"P0": 7}
    assert spec.tensors["fc1.weight"] == (Leaf(7, "P0"), Leaf(3))
    assert spec.shapes == SHAPES
    assert spec == PermutationSpec.from_axes(AXES | {"fc1.bias": (Leaf(7, "P0"),)}, SHAPES)


def test_a_tensor_that_is_not_listed_is_fixed() -> None:
    spec = PermutationSpec.from_axes({}, SHAPES)
    assert (spec.sizes, spec.matched, spec.covered()) == ({}, (), 0.0)
    assert "by hand" in spec.explain("fc1.weight")


def test_from_axes_guesses_buffers_by_name() -> None:
    shapes = {"bn.weight": (7,), "bn.running_mean": (7,), "bn.running_var": (7,), "bn.num_batches_tracked": ()}
    axes = {"bn.weight": ("P0",), "bn.running_mean": ("P0",), "bn.running_var": ("P0",)}
    spec = PermutationSpec.from_axes(axes, shapes)
    assert spec.buffers == set(shapes) - {"bn.weight"}
    assert spec.matched == ("bn.weight",)
    assert PermutationSpec.from_axes(axes, shapes, buffers=()).matched == tuple(axes)


def test_groups_know_their_axes_and_taps() -> None:
    tensors = PermutationSpec.from_axes(AXES, SHAPES).tensors
    spec = PermutationSpec({"P0": 7}, tensors, taps={"relu": (Leaf(5), Leaf(7, "P0"))})
    group = spec.groups["P0"]
    assert (group.size, group.parents, group.taps) == (7, (), ("relu",))
    assert group.axes == (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1))


def test_a_group_twice_on_one_axis_is_listed_once() -> None:
    spec = PermutationSpec.from_axes({"w": (Sum((Leaf(3, "a"), Leaf(3, "a"))),)}, {"w": (6,)})
    assert spec.groups["a"].axes == (("w", 0),)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"fc9.weight": ("P0", None)}, "do not exist: fc9.weight"),
        ({"fc1.weight": ("P0",)}, "has 2 axes"),
        ({"fc1.weight": ("P0", "P0")}, "P0"),
        ({"fc1.weight": (Leaf(5, "P0"), None)}, "positions"),
        ({"fc1.weight": ("P0", None), "fc2.weight": ("P0", None)}, "P0"),
    ],
    ids=[
        "unknown tensor",
        "wrong number of axes",
        "two sizes in one tensor",
        "layout of another size",
        "two sizes in two tensors",
    ],
)
def test_from_axes_refuses(axes: dict[str, tuple[str | Leaf | None, ...]], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        PermutationSpec.from_axes(axes, SHAPES)


@pytest.mark.parametrize(
    ("parents", "says"),
    [
        ({"unit": ("nobody",)}, "does not exist"),
        ({"unit": ("head",), "stream": ("unit",)}, "own parents"),
        ({"unit": ("head",), "stream": ("unit", "head")}, "not listed before"),
        ({"unit": ("unit",)}, "own parents"),
    ],
)
def test_parents_must_be_closed_and_outermost_first(parents: dict[str, tuple[str, ...]], says: str) -> None:
    spec = nested_heads()
    with pytest.raises(SpecError, match=says):
        PermutationSpec(spec.sizes, spec.tensors, parents)


def test_all_contradictions_are_listed_at_once() -> None:
    tensors = {"a": (Leaf(3, "x"),), "b": (Leaf(4, "x"),), "c": (Leaf(5, "y"),)}
    with pytest.raises(SpecError, match="3 contradictions") as caught:
        PermutationSpec({"x": 5}, tensors)
    assert all(f"{name} has" in str(caught.value) for name in tensors)


def test_index_shape() -> None:
    spec = nested_deeply()
    assert [spec.index_shape(name) for name in ("kv", "head", "unit", "key")] == [(2,), (2, 3), (2, 3, 4), (2, 5)]


def test_nested_groups_count_one_order_per_parent_unit() -> None:
    """kv: 2!, head: 3!^2, unit: 4!^6, key: 5!^2."""
    expected = math.log10(2 * 6**2 * 24**6 * 120**2)
    assert nested_deeply().log10_symmetries() == pytest.approx(expected)


def test_covered_counts_trained_elements_that_something_moves() -> None:
    shapes = SHAPES | {"fc2.bias": (2,), "bn.running_mean": (7,)}
    spec = PermutationSpec.from_axes(AXES, shapes)
    assert spec.covered() == pytest.approx((21 + 7 + 14) / (21 + 7 + 14 + 2))


def test_matched_names_each_tied_tensor_once() -> None:
    tensors = {"embed": (Leaf(13), Leaf(7, "P0")), "head": (Leaf(13), Leaf(7, "P0")), "fixed": (Leaf(3),)}
    spec = PermutationSpec({"P0": 7}, tensors, ties=(("embed", "head"),))
    assert spec.matched == ("embed",)
    assert spec.covered() == pytest.approx(91 / 94)


def test_dead_tensors_count_in_no_share() -> None:
    dead = Leaf(100, None, UNUSED)
    spec = PermutationSpec({"P0": 7}, {"w": (Leaf(7, "P0"),), "b": (Leaf(3, None, "output"),), "head": (dead, dead)})
    assert (spec.unused, spec.trained) == (("head",), ("w", "b"))
    assert spec.covered() == pytest.approx(0.7)


def test_a_spec_says_how_well_it_is_proved() -> None:
    spec = flat_mlp()
    proved = replace(spec, proof=3e-16)
    assert proved == spec, "the same symmetries"
    assert "not proved" in str(spec)
    assert "3e-16" in str(proved)
    assert PermutationSpec.from_json(proved.to_json()).proof == 3e-16
    assert PermutationSpec.from_json(spec.to_json()).proof is None


def test_explain_names_groups_and_reasons() -> None:
    axis = Sum((Product((Leaf(3, "head"), Leaf(5, None, "rotary embedding"))), Leaf(2, None, "output")))
    spec = PermutationSpec({"head": 3}, {"w": (axis, Leaf(2, None, "input"))})
    text = spec.explain("w")
    assert "moved by head" in text
    assert all(reason in text for reason in ("rotary embedding", "output", "input"))
    with pytest.raises(SpecError, match="no tensor is called 'v'"):
        spec.explain("v")


def test_explain_names_what_is_spelt_alike_first() -> None:
    spec = PermutationSpec({}, {f"{number}.{kind}": (Leaf(2),) for number in range(30) for kind in ("bias", "weight")})
    with pytest.raises(SpecError, match=r"one of: 27\.weight, (?s:.*)did you mean 27\.weight or ") as caught:
        spec.explain("27.wieght")
    assert caught.value.expected.count("27.weight") == 1
    with pytest.raises(SpecError, match=r"one of: 0\.bias, (?s:.*)correct the name"):
        spec.explain("nothing like it")


def test_canonical_renames_in_order_of_appearance() -> None:
    renamed = {"fc1.weight": ("zebra", None), "fc1.bias": ("zebra",), "fc2.weight": (None, "zebra")}
    spec = PermutationSpec.from_axes(renamed, SHAPES)
    assert spec != PermutationSpec.from_axes(AXES, SHAPES)
    assert spec.canonical() == PermutationSpec.from_axes(AXES, SHAPES).canonical()


def test_canonical_keeps_the_nesting() -> None:
    spec = nested_deeply().canonical()
    assert spec.parents == {"P1": ("P0",), "P2": ("P0", "P1"), "P3": ("P0",)}
    assert spec == spec.canonical()
    assert spec != PermutationSpec(spec.sizes, spec.tensors).canonical()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_json_round_trip(spec: PermutationSpec) -> None:
    again = PermutationSpec.from_json(spec.to_json())
    assert again == spec
    assert list(again.tensors) == list(spec.tensors)
    assert again.to_json() == spec.to_json()


def test_json_keeps_buffers_ties_taps_and_reasons() -> None:
    spec = PermutationSpec(
        {"P0": 7},
        {"a": (Leaf(7, "P0"),), "b": (Leaf(7, "P0"),), "c": (Leaf(3, None, "output"),)},
        buffers=frozenset({"c"}),
        ties=(("a", "b"),),
        taps={"relu": (Leaf(2), Leaf(7, "P0"))},
    )
    again = PermutationSpec.from_json(spec.to_json())
    assert (again.buffers, again.ties, again.taps) == (spec.buffers, spec.ties, spec.taps)
    assert again.explain("c") == spec.explain("c")


def damaged(**changes: object) -> str:
    return json.dumps(json.loads(flat_mlp().to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "list"),
        (damaged(colour="red"), "colour"),
        (json.dumps({"format": "onebasin-spec"}), "missing or unknown"),
        (damaged(format="other"), "other"),
        (damaged(version=99), "99"),
        (damaged(sizes={"P0": 8, "P1": 5}), "P0"),
        (damaged(tensors={"fc1.weight": [{"size": 3}]}), "an axis reads"),
    ],
)
def test_json_is_strict(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        PermutationSpec.from_json(text)


@pytest.mark.parametrize("spec", NESTED.values(), ids=NESTED)
def test_print_shows_size_nesting_and_tensors(spec: PermutationSpec) -> None:
    text = str(spec)
    assert text.startswith(f"{len(spec.sizes)} groups, 10^")
    for name, group in spec.groups.items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert str(group.size) in line
        assert all(f"{tensor}[{axis}]" in line for tensor, axis in group.axes)
        assert all(parent in line for parent in group.parents)
