"""How tensors are laid out for products."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from onebasin.matching.products import Budget, Product, Roles, _is_matrix
from onebasin.matching.terms import feature_terms
from onebasin.spec import PermutationSpec


def tensors() -> Iterator[Tensor]:
    """Yield tensors of every order of axes, with gaps, repeated values, and axes of one position."""
    x = torch.arange(5 * 3 * 2 * 4).view(5, 3, 2, 4)
    for axes in itertools.permutations(range(4)):
        yield x.permute(axes)
        yield x[:, :1].permute(axes)
        yield x[..., ::2].permute(axes)
        yield x[:, :, 1:].permute(axes)
        yield x[:1].expand(5, -1, -1, -1).permute(axes)


@pytest.mark.parametrize("rows", range(4))
def test_what_counts_as_a_matrix_is_what_can_be_viewed_as_one_with_rows_in_one_run(rows: int) -> None:
    answers = set()
    for values in tensors():
        shape = values.shape[:rows].numel(), values.shape[rows:].numel()
        try:
            is_one = values.view(shape).stride(1) == 1 or shape[1] == 1
        except RuntimeError:
            is_one = False
        assert _is_matrix(values, rows) == is_one
        answers.add(is_one)
    assert answers == {True, False}


@pytest.mark.parametrize("width", [1, 9])
@pytest.mark.parametrize("group", ["out", "in"])
def test_a_change_is_the_same_from_copies_made_for_columns(group: str, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    spec = PermutationSpec.from_axes({"w": ("out", "in", None)}, {"w": (7, 11, width)})
    a, b = (torch.randn(7, 11, width, generator=generator).double() for _ in range(2))
    (term,) = feature_terms(a, b, spec.tensors["w"])
    roles = Roles.of(term, spec, {group})
    assert roles is not None
    n, m = (7, 11) if group == "out" else (11, 7)
    units, to, was = (torch.randperm(n, generator=generator)[:4] for _ in range(3))
    source = torch.randperm(m, generator=generator)
    x, y = (side if group == "out" else side.transpose(0, 1) for side in (a, b))
    expected = (x[units] * (y[to] - y[was])[:, source]).sum().item()
    kinds = set()
    for room, often in ((0, False), (0, True), (1 << 20, False), (1 << 20, True)):
        product = Product(term, roles, Budget(room))
        sides = product.sides(often)
        kinds |= {(side.units_first, side.by_units is not None) for side in sides}
        assert product.change(units, to, was, source) == pytest.approx(expected, rel=1e-12)
    assert (True, True) in kinds if group == "out" else (False, False) in kinds
    assert ((False, True) in kinds) == (group == "out" and width == 1)
