"""Passes over tensors give the same with numba and without, whatever the tensors are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebasin.matching.tensors import (
    change_of_columns,
    change_of_rows,
    change_of_sum,
    difference_of_columns,
    difference_of_rows,
    dot,
    dot_and_norms,
    dot_in_order,
    new_zeros,
    squares,
    transposed,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = [(0, 3), (1, 1), (3, 130), (67, 19), (130, 70)]


pytestmark = pytest.mark.usefixtures("way")


def matrices(shape: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Return the same matrix as one run in memory, with its columns as runs, and with gaps."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    return [x, x.T.contiguous().T, x.repeat_interleave(2, 1)[:, ::2]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_float64(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for x in matrices(shape, dtype):
        y = x.flip(0)
        both = (x.double() * y.double()).sum().item()
        assert dot(x, y) == pytest.approx(both, rel=1e-12, abs=1e-12)
        norms = x.double().norm().item(), y.double().norm().item()
        assert dot_and_norms(x, y) == pytest.approx((both, *norms), rel=1e-5, abs=1e-12)
        torch.testing.assert_close(squares(x).double(), x.double().square().sum(0), rtol=1e-5, atol=0)


def test_small_terms_are_not_lost_beside_large_ones() -> None:
    x = torch.ones(1 << 14)
    x[0] = 1e8
    assert dot(x, torch.ones_like(x)) == 1e8 + len(x) - 1
    assert torch.dot(x, torch.ones_like(x)).item() != 1e8 + len(x) - 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_copies_have_the_same_values_in_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for x in matrices(shape, dtype):
        found = transposed(torch.stack([x, -x]))
        assert found.is_contiguous()
        assert torch.equal(found, torch.stack([x.T, -x.T]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_differences_are_those_of_the_rows_named(dtype: torch.dtype) -> None:
    now, before = torch.tensor([3, 0, 66]), torch.tensor([3, 5, 0])
    for x in matrices((67, 19), dtype):
        found = difference_of_rows(x, now, before)
        assert torch.equal(found, x[now].to(found.dtype) - x[before].to(found.dtype))
        assert not found[0].any()
        assert found[1:].any()


@pytest.mark.parametrize("width", [1, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_differences_of_columns_are_those_of_the_columns_named(dtype: torch.dtype, width: int) -> None:
    now, before = torch.tensor([3, 0, 18, 3]), torch.tensor([3, 5, 0, 18])
    for x in matrices((67, 19 * width), dtype):
        x = x.unflatten(1, (19, width))
        found = difference_of_columns(x, now, before)
        assert torch.equal(found, x[:, now].to(found.dtype) - x[:, before].to(found.dtype))
        assert not found[:, 0].any()
        assert found[:, 1:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (7, 5), (7, 5, 3, 2), (1, 7, 1, 5)], ids=str)
def test_a_dot_product_is_taken_in_the_orders_of_any_axes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    for number in range(1 << len(shape)):
        axes = [axis for axis in range(len(shape)) if number >> axis & 1]
        orders = {axis: torch.randperm(shape[axis], generator=generator) for axis in axes}
        moved = y
        for axis, order in orders.items():
            moved = moved.index_select(axis, order)
        expected = (x.double() * moved.double()).sum().item()
        assert dot_in_order(x, y, orders) == pytest.approx(expected, rel=1e-12)


def test_neither_side_is_rounded_to_the_dtype_of_the_other() -> None:
    x, y = torch.ones(3, 2), torch.full((3, 2), 1 / 3, dtype=torch.float64)
    for one, other in ((x, y), (y, x)):
        assert dot_in_order(one, other, {1: torch.tensor([1, 0])}) == pytest.approx(2, rel=1e-15)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_change_of_products_is_that_of_the_units_named(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(11, 7, 3, generator=generator).to(dtype) for _ in range(2))
    source = torch.randperm(7, generator=generator)
    units, to, was = (torch.randperm(11, generator=generator)[:4] for _ in range(3))
    expected = (a[units].double() * (b[to].double() - b[was].double())[:, source]).sum().item()
    assert change_of_rows(a, b, units, to, was, source) == pytest.approx(expected, rel=1e-12)
    last = a.movedim(0, 2), b.movedim(0, 2)
    for x, y in (last, (last[0].contiguous(), last[1]), tuple(side.contiguous() for side in last)):
        assert change_of_columns(x, y, units, to, was, source) == pytest.approx(expected, rel=1e-12)
    assert change_of_rows(a, b, units, was, to, source) == pytest.approx(-expected, rel=1e-12)
    assert change_of_rows(a, b, units[:0], to[:0], was[:0], source) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_change_of_a_sum_is_that_of_the_rows_that_differ(dtype: torch.dtype) -> None:
    was, now = torch.tensor([0, 3, 1, 2]), torch.tensor([0, 1, 4, 2])
    for x in matrices((4, 5), dtype):
        taken, left = (x[[1, 2], order[1:3]].double() for order in (now, was))
        found, size = change_of_sum(x, was, now)
        assert found == pytest.approx((taken - left).sum().item(), rel=1e-12)
        assert size == pytest.approx((taken.abs() + left.abs()).sum().item(), rel=1e-12)
        assert change_of_sum(x, was, was) == (0, 0)


def test_scalars_and_parameters_are_read_too() -> None:
    x = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    assert dot(x, x) == 13
    assert dot(torch.tensor(2.0), torch.tensor(3.0)) == 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_new_matrices_are_zeros_of_their_own(dtype: torch.dtype) -> None:
    one, other = (new_zeros(3, dtype, torch.device("cpu")) for _ in range(2))
    one += 1
    assert one.dtype == other.dtype == dtype
    assert one.data_ptr() % 64 == other.data_ptr() % 64 == 0
    assert torch.equal(other, torch.zeros(3, 3, dtype=dtype))
    assert new_zeros(3, dtype, torch.device("meta")).device.type == "meta"
