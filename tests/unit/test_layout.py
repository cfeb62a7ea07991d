from __future__ import annotations

import pytest
import torch

from onebasin import layout
from onebasin.errors import SpecError
from onebasin.layout import Axis, Interleave, Leaf, Product, Sum

HEADS = Product((Leaf(3, "head"), Leaf(5, "unit")))
SHUFFLED = Interleave((Leaf(3, "a"), Leaf(3, None, "output")))
FUSED = Sum((HEADS, Leaf(2, None, "output"), Leaf(7, "mlp")))


def test_sizes() -> None:
    assert (HEADS.size, FUSED.size, SHUFFLED.size, Product((FUSED, Leaf(4))).size) == (15, 24, 6, 96)


def test_str_reads_as_algebra() -> None:
    assert str(FUSED) == "((head x unit) + 2 + mlp)"
    assert str(SHUFFLED) == "(a | 3)"


def test_leaves_from_left_to_right() -> None:
    assert [leaf.group for leaf in layout.leaves(FUSED)] == ["head", "unit", None, "mlp"]


def test_reasons_do_not_make_leaves_differ() -> None:
    assert Leaf(2, None, "output") == Leaf(2, None, "input")
    assert Leaf(2, "a") != Leaf(2, "b")


@pytest.mark.parametrize(
    ("axis", "count"),
    [
        (Leaf(5), 5),
        (Leaf(5, "a"), 0),
        (FUSED, 2),
        (SHUFFLED, 3),
        (Product((Leaf(5, "a"), Leaf(4))), 0),
        (Product((Sum((Leaf(5, "a"), Leaf(2))), Leaf(4))), 8),
    ],
)
def test_frozen_positions(axis: Axis, count: int) -> None:
    assert layout.frozen_positions(axis) == count


def test_renamed() -> None:
    names = {"head": "P0", "unit": "P1", "mlp": "P2"}
    assert str(layout.renamed(FUSED, names)) == "((P0 x P1) + 2 + P2)"
    assert next(leaf.why for leaf in layout.leaves(layout.renamed(FUSED, names)) if leaf.group is None) == "output"


@pytest.mark.parametrize("axis", [Leaf(3), Leaf(3, "a"), Leaf(3, None, "output"), HEADS, FUSED, SHUFFLED], ids=str)
def test_json_round_trip(axis: Axis) -> None:
    again = layout.from_json(layout.to_json(axis))
    assert again == axis
    assert [leaf.why for leaf in layout.leaves(again)] == [leaf.why for leaf in layout.leaves(axis)]


@pytest.mark.parametrize(
    "data",
    [
        {"size": 3},
        {"group": "a"},
        {"group": "a", "size": 3, "colour": "red"},
        {"group": "a", "size": "3"},
        {"sum": []},
        {"sum": [{"group": "a"}]},
        {"product": 3},
        [],
        None,
    ],
)
def test_json_refuses_anything_else(data: object) -> None:
    with pytest.raises(SpecError, match="an axis reads"):
        layout.from_json(data)


def test_blocks_cover_every_element_once() -> None:
    tensor = torch.arange(24 * 20).reshape(24, 20)
    axes = (FUSED, Product((Leaf(5, "a"), Sum((Leaf(3), Leaf(1))))))
    found = list(layout.blocks(tensor, axes))
    assert sorted(tuple(view.shape) for view, _ in found) == sorted(
        [(3, 5, 5, 3), (3, 5, 5, 1), (2, 5, 3), (2, 5, 1), (7, 5, 3), (7, 5, 1)]
    )
    assert sorted(torch.cat([view.flatten() for view, _ in found]).tolist()) == list(range(24 * 20))
    assert all(tuple(view.shape) == tuple(leaf.size for leaf in row) for view, row in found)


def test_blocks_of_an_interleaving_take_turns() -> None:
    found = [view.tolist() for view, _ in layout.blocks(torch.arange(6), (SHUFFLED,))]
    assert found == [[0, 2, 4], [1, 3, 5]]


def test_only_parts_that_take_turns_are_interleaved() -> None:
    assert Interleave((Leaf(3, "a"), Leaf(2, "b"))).size == 5  # a b a b a
    for sizes in ((2, 3), (4, 2), (3, 2, 3)):
        with pytest.raises(SpecError, match=f"{', '.join(map(str, sizes))} positions"):
            Interleave(tuple(Leaf(size, str(turn)) for turn, size in enumerate(sizes)))


def test_blocks_are_views() -> None:
    tensor = torch.zeros(15, 2)
    for view, _ in layout.blocks(tensor, (HEADS, Leaf(2))):
        view += 1
    torch.testing.assert_close(tensor, torch.ones(15, 2))


def test_a_tensor_without_axes_is_one_block() -> None:
    ((view, row),) = layout.blocks(torch.tensor(3.0), ())
    assert view.ndim == 0
    assert row == ()
