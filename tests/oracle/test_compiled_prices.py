"""Prices of the compiled assignment: those in the middle prove what others prove, and last longer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from onebasin.matching.assignment import _prices, _shortfall, solve

pytest.importorskip("numba")

from onebasin.matching.compiled_prices import centre, scale_prices

SIZES = [2, 3, 67, 211]


def solved(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return gains, their best assignment, and prices that prove it, at the edge of what does."""
    gains = torch.randn(n, n, generator=torch.Generator().manual_seed(seed)).double()
    index = torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
    return gains.numpy(), index.numpy(), _prices(gains[None], index[None])[0].numpy()


def slack(gains: np.ndarray, index: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Return what rows lose by each column that they do not have."""
    margins = gains - prices
    losses = np.take_along_axis(margins, index[:, None], 1) - margins
    losses[np.arange(len(index)), index] = np.inf
    return losses


@pytest.mark.parametrize("n", SIZES[1:])
def test_centred_prices_prove_what_was_proved_and_are_no_longer_at_the_edge(n: int) -> None:
    gains, index, prices = solved(n)
    before = slack(gains, index, prices)
    assert centre(gains, prices, index) <= 1e-12
    after = slack(gains, index, prices)
    half = (before.min(0)[index][:, None] + before.min(1)[np.argsort(index)]) / 2
    assert (after >= np.maximum(half, 0) - 1e-12).all()
    assert np.median(after.min(1)) > np.median(before.min(1)) + 1e-4


@pytest.mark.parametrize("n", SIZES)
def test_an_assignment_that_is_not_the_best_is_not_proved_by_any_prices(n: int) -> None:
    gains, index, prices = solved(n)
    lost = gains[np.arange(n), index].sum()
    index[:2] = index[1::-1].copy()
    lost -= gains[np.arange(n), index].sum()
    for _ in range(5):
        gap = _shortfall(*(torch.from_numpy(x)[None] for x in (gains, index, prices))).item()
        assert gap >= lost * (1 - 1e-12) > 0
        assert centre(gains, prices, index) == pytest.approx(gap, rel=1e-12)


def test_a_start_in_the_middle_outlives_small_changes_of_the_gains() -> None:
    gains = torch.randn(211, 211, generator=torch.Generator().manual_seed(1))
    found = solve(gains)
    room = slack(gains.double().numpy(), found.index.numpy(), found.duals.numpy()).min(1)
    safe = np.sort(room)[len(room) // 2]
    noise = torch.rand(gains.shape, generator=torch.Generator().manual_seed(2)) - 0.5
    margins = (gains + noise * safe).double().numpy() - found.duals.numpy()
    assert (margins.argmax(1) == found.index.numpy()).mean() >= 0.5


@pytest.mark.parametrize("n", [2, 67, 211])
def test_scaled_prices_let_nearly_every_row_have_what_it_prefers(n: int) -> None:
    gains, _, edge = solved(n)
    for matrix in (gains.astype(np.float32), gains, gains * 1e35):
        prices = edge * 0 + 7.0
        scale_prices(matrix, prices, False)
        assert np.isfinite(prices).all()
        wanted = len(set((matrix - prices).argmax(1)))
        assert wanted >= max(0.8 * n, len(set(matrix.argmax(1))))
