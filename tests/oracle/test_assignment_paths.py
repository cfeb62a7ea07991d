"""Assignments too large for brute force against scipy: with and without numba, cold and from starts good and bad."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gain_families import gains_of
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onebasin.errors import ParamsError, UsageError
from onebasin.matching import assignment
from onebasin.matching.assignment import Assignment, solve

# Sizes on both sides of those from which problems take more than one compiled call (65), better prices are found first
# (193), and rows keep only a few columns (769).
SMALL, DENSE, SPARSE, WIDE = 43, 67, 211, 787


@pytest.fixture(autouse=True)
def whole(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "without numba":
        monkeypatch.setattr(assignment, "WHOLE", DENSE)  # what is larger is solved by a core here


FAMILIES = [
    *("power law", "shared basis", "planted", "planted, noisy", "uniform", "integers", "zero or one"),
    *(
        "rows twice",
        "columns nearly twice",
        "one row in the sky",
        "equal",
        "equal rows",
        "products of counts",
        "losses of counts",
        "many scales",
        "huge",
        "tiny",
    ),
]


def check(gains: Tensor, found: Assignment) -> None:
    """Raise unless `found` is as good as what scipy finds, and proved by its prices."""
    matrix = gains.double().numpy()
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    size = np.abs(matrix).max(1).sum()
    assert sorted(found.index.tolist()) == list(range(len(matrix)))
    assert abs(found.value.item() - matrix[rows, columns].sum()) <= 1e-13 * size
    margins = matrix - found.duals.numpy()
    assert (margins.max(1) - margins[rows, found.index.numpy()]).sum() <= 1e-13 * size
    assert 0 <= found.gap.item() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [SMALL, DENSE, SPARSE])
def test_it_is_as_good_as_scipy_and_proved(family: str, n: int, dtype: torch.dtype) -> None:
    gains = gains_of(family, n).to(dtype)
    check(gains, solve(gains))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [SMALL, DENSE, SPARSE])
def test_no_start_is_too_bad(family: str, n: int) -> None:
    gains, generator = gains_of(family, n), torch.Generator().manual_seed(7)
    size = gains.abs().amax()
    near = solve(gains + size / 300 * torch.randn(n, n, generator=generator))
    far = solve(size * torch.randn(n, n, generator=generator))
    random, ones = torch.randn(n, generator=generator).double(), torch.ones(n, dtype=torch.float64)
    one = ones.cumsum(0).eq(5).double()
    wild = [size.double() * prices for prices in (1e6 * random, 1e17 * ones, 1e20 * random, 1e20 * one, -1e20 * one)]
    for start in (near, far, *(replace(far, duals=prices) for prices in wild)):
        check(gains, solve(gains, start))


@pytest.mark.parametrize("family", ["power law", "shared basis", "planted, noisy", "uniform"])
def test_a_chain_of_starts_stays_exact(family: str) -> None:
    """Each start is the answer to gains of which so many columns were others."""
    gains, generator = gains_of(family, SPARSE), torch.Generator().manual_seed(7)
    others, found = gains_of(family, SPARSE, seed=1), solve(gains)
    for share in (0.01, 0.05, 0.2, 0.5, 1.0):
        changed = torch.randperm(SPARSE, generator=generator)[: round(share * SPARSE)]
        gains[:, changed] = others[:, changed].roll(7, 0)
        found = solve(gains, found)
        check(gains, found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [SMALL, DENSE, SPARSE])
def test_what_is_optimal_is_returned_as_it_is(family: str, n: int) -> None:
    gains = gains_of(family, n)
    found = solve(gains)
    again = solve(gains, found)
    assert torch.equal(again.index, found.index)
    assert again.value == found.value
    assert again.gap <= max(found.gap.item(), 1e-15)


@pytest.mark.parametrize("n", [SMALL, DENSE, SPARSE])
def test_prices_that_hide_the_gains_prove_nothing(n: int) -> None:
    """Beside prices this large all gains round to the same, and every assignment would look optimal."""
    start = solve(torch.full((n, n), 1e20, dtype=torch.float64))
    gains = gains_of("power law", n)
    check(gains, solve(gains, replace(start, duals=torch.full((n,), 1e20, dtype=torch.float64))))


def test_a_start_that_is_no_assignment_is_refused() -> None:
    gains = gains_of("uniform", DENSE)
    found = solve(gains)
    twice, none = found.index.clone(), found.duals.clone()
    twice[0], none[3] = twice[1], math.nan
    for start in (replace(found, index=twice), replace(found, duals=none)):
        with pytest.raises(UsageError, match="a column to two rows, or has prices that are not finite"):
            solve(gains, start)


@pytest.mark.parametrize("family", ["power law", "shared basis", "planted, noisy", "integers", "rows twice", "huge"])
def test_rows_that_keep_few_columns_lose_none(family: str) -> None:
    gains, generator = gains_of(family, WIDE), torch.Generator().manual_seed(7)
    near = solve(gains + gains.std() / 50 * torch.randn(WIDE, WIDE, generator=generator))
    for start in (None, near, replace(near, duals=near.duals.flip(0))):
        check(gains, solve(gains, start))


def test_a_start_that_was_optimal_is_improved_when_the_gains_change() -> None:
    gains = gains_of("power law", SPARSE)
    found = solve(gains)
    changed = gains.clone()
    changed[torch.arange(9), found.index[:9]] -= gains.abs().amax()
    again = solve(changed, found)
    assert not torch.equal(again.index, found.index)
    check(changed, again)


@pytest.mark.parametrize("n", [SMALL, DENSE, SPARSE])
def test_easy_and_hard_problems_share_a_batch(n: int) -> None:
    gains = torch.stack([gains_of(family, n) for family in ("planted", "power law", "equal", "planted", "integers")])
    cold = solve(gains)
    other = solve(gains.flip(0))
    for start in (cold, solve(gains, other), solve(gains, cold)):
        for b, matrix in enumerate(gains):
            check(matrix, Assignment(start.index[b], start.value[b], start.gap[b], start.duals[b]))


def test_the_input_and_the_start_are_left_alone() -> None:
    gains = gains_of("power law", SPARSE)
    start = solve(gains_of("power law", SPARSE, seed=1))
    before = [tensor.clone() for tensor in (gains, start.index, start.duals)]
    solve(gains, start)
    assert all(torch.equal(a, b) for a, b in zip(before, (gains, start.index, start.duals), strict=True))


def test_views_are_read_as_they_are() -> None:
    gains = gains_of("power law", 2 * SPARSE)[::2, 1::2].T
    check(gains, solve(gains))


def test_the_same_gains_give_the_same_bits() -> None:
    gains = gains_of("integers", SPARSE)
    first, second = solve(gains), solve(gains.clone())
    assert torch.equal(first.index, second.index)
    assert torch.equal(first.duals, second.duals)


def test_gains_that_overflow_are_refused() -> None:
    gains = torch.zeros(3, 3, dtype=torch.float64)
    gains[0, 0], gains[1, 1] = 1e308, -1e308
    with pytest.raises(ParamsError, match=r"as large as 1e\+308"):
        solve(gains)


def test_it_is_compiled_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    from onebasin.matching.compiled_rows import compiled

    njit = numba.njit

    def refuse(*functions: object, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("no folder for compiled code")
        return njit(*functions, **options)

    monkeypatch.setattr(numba, "njit", refuse)
    assert compiled(lambda number: number + 1)(2) == 3
