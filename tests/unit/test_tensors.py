"""Passes over tensors give the same with numba and without, whatever the tensors are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebasin.matching.tensors import change_of_sum, difference_of_rows, dot, squares, transposed

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
        assert dot(x, y) == pytest.approx((x.double() * y.double()).sum().item(), rel=1e-12, abs=1e-12)
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
        found = transposed(x)
        assert found.is_contiguous()
        assert torch.equal(found, x.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_differences_are_those_of_the_rows_named(dtype: torch.dtype) -> None:
    now, before = torch.tensor([3, 0, 66]), torch.tensor([3, 5, 0])
    for x in matrices((67, 19), dtype):
        found = difference_of_rows(x, now, before)
        assert torch.equal(found, x[now].to(found.dtype) - x[before].to(found.dtype))
        assert not found[0].any()
        assert found[1:].any()


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
