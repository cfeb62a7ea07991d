"""Assignments against brute force and scipy, and the certificate against assignments that are known to be wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onebasin.errors import ParamsError, UsageError
from onebasin.matching.assignment import _prices, _shortfall, _size, solve, upper_bound

pytestmark = pytest.mark.usefixtures("way")

FAMILIES = ["normal", "product", "planted", "ties", "equal", "zero", "huge", "tiny"]


def gains_of(family: str, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, n, generator=generator)
    wide = torch.randn(2, n, 2 * n, generator=generator) * torch.arange(1, 2 * n + 1) ** -0.5
    return {
        "normal": noise,
        "product": wide[0] @ wide[1].T,
        "planted": wide[0] @ wide[0][torch.randperm(n, generator=generator)].T + noise / 10,
        "ties": noise.round(),
        "equal": torch.full((n, n), 0.7),
        "zero": torch.zeros(n, n),
        "huge": noise * 1e30,
        "tiny": noise * 1e-30,
    }[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_it_is_the_best_of_all(family: str, n: int) -> None:
    gains = gains_of(family, n).double()
    best = max(sum(gains[i, k].item() for i, k in enumerate(row)) for row in itertools.permutations(range(n)))
    found = solve(gains)
    assert sorted(found.index.tolist()) == list(range(n))
    assert found.value.item() == pytest.approx(best, rel=1e-12, abs=1e-40)
    assert 0 <= found.gap.item() < 1e-13


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_it_is_as_good_as_scipy_and_certified(family: str, dtype: torch.dtype) -> None:
    gains = gains_of(family, 131).to(dtype)
    found = solve(gains)
    rows, columns = linear_sum_assignment(gains.double().numpy(), maximize=True)
    assert found.value.item() == pytest.approx(gains.double().numpy()[rows, columns].sum(), rel=1e-12)
    assert 0 <= found.gap.item() < 1e-13


@pytest.mark.parametrize("family", ["normal", "product", "planted", "huge", "tiny"])
def test_the_certificate_sees_a_wrong_assignment(family: str) -> None:
    gains = gains_of(family, 31).double()[None]
    found = solve(gains)
    swapped = found.index.clone()
    swapped[:, [3, 5]] = found.index[:, [5, 3]]
    lost = found.value - gains[0, torch.arange(31), swapped].sum()
    assert lost > 0
    for prices in (found.duals, _prices(gains, swapped), torch.zeros(1, 31)):
        assert _shortfall(gains, swapped, prices) >= lost * (1 - 1e-9)
    assert (lost / _size(gains)).item() > 1e-13


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prices_prove_the_assignment(family: str) -> None:
    gains = gains_of(family, 31).double()
    found = solve(gains)
    slack = (gains - found.duals).amax(-1) - (gains - found.duals)[torch.arange(31), found.index]
    assert slack.max() <= 1e-13 * gains.abs().max()
    assert upper_bound(gains, found.duals).item() == pytest.approx(found.value.item(), rel=1e-12, abs=1e-40)


def test_any_prices_bound_the_value() -> None:
    gains = torch.stack([gains_of("product", 31, seed) for seed in range(4)])
    found = solve(gains)
    assert (upper_bound(gains, torch.zeros(4, 31, dtype=torch.float64)) > found.value * (1 + 1e-3)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_changes_nothing_but_the_time(family: str) -> None:
    cold = solve(gains_of(family, 31))
    for start in (cold, solve(gains_of(family, 31, seed=1))):
        assert solve(gains_of(family, 31), start).value.item() == pytest.approx(cold.value.item(), rel=1e-12, abs=1e-40)


def test_a_start_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match="same shape"):
        solve(torch.zeros(3, 3), solve(torch.zeros(2, 3, 3)))


def test_batches_are_solved_one_by_one() -> None:
    gains = torch.stack([gains_of("product", 11, seed) for seed in range(6)]).reshape(2, 3, 11, 11)
    found = solve(gains)
    assert (found.index.shape, found.value.shape, found.gap.shape) == ((2, 3, 11), (2, 3), (2, 3))
    for i, k in itertools.product(range(2), range(3)):
        alone = solve(gains[i, k])
        assert torch.equal(found.index[i, k], alone.index)
        assert found.value[i, k] == alone.value
    assert found.gap.max() < 1e-13


def test_large_batches_are_certified_in_pieces() -> None:
    gains = torch.stack([gains_of("normal", 67, seed) for seed in range(97)])
    found = solve(gains)
    expected = np.stack([linear_sum_assignment(matrix.numpy(), maximize=True)[1] for matrix in gains])
    assert torch.equal(found.index, torch.from_numpy(expected))
    assert found.gap.shape == (97,)
    assert found.gap.max() < 1e-13


@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 0), (1, 1)])
def test_empty_and_single(shape: tuple[int, ...]) -> None:
    found = solve(torch.zeros(shape))
    assert found.index.shape == shape[:-1]
    assert found.value.shape == found.gap.shape == shape[:-2]
    assert found.gap.eq(0).all()


def test_row_i_is_given_column_index_i() -> None:
    gains = torch.zeros(3, 3)
    gains[0, 2] = gains[1, 0] = gains[2, 1] = 1.0
    assert solve(gains).index.tolist() == [2, 0, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gains_that_are_not_finite_are_refused(bad: float) -> None:
    gains = torch.zeros(2, 3, 3)
    gains[1, 2, 0] = bad
    with pytest.raises(ParamsError, match="1 values that are not finite"):
        solve(gains)


@pytest.mark.parametrize("shape", [(3, 4), (3,), (2, 4, 3)])
def test_gains_that_are_not_square_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="square"):
        solve(torch.zeros(shape))
