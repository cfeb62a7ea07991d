"""What compiled assignments check and sum up is what the torch way does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onebasin.matching.assignment import REACH, SAMPLE, Start, _bounded, _size, solve

pytest.importorskip("numba")

from onebasin.matching import compiled, compiled_paths, compiled_prices, compiled_rows, compiled_small

N = 67


def problems(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return gains, an order and prices of three problems."""
    generator = torch.Generator().manual_seed(0)
    gains = torch.randn(3, N, N, generator=generator).to(dtype)
    index = torch.stack([torch.randperm(N, generator=generator) for _ in range(3)])
    return gains, index, torch.randn(3, N, generator=generator).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_are_summed_in_float64(dtype: torch.dtype) -> None:
    gains, index, _ = problems(dtype)
    taken = gains.double().gather(-1, index[..., None])[..., 0].sum(-1)
    found = torch.from_numpy(compiled.values(gains.numpy(), index.numpy()))
    torch.testing.assert_close(found, taken, rtol=1e-12, atol=0)


@pytest.mark.parametrize("times", [1e3, 1e17, -1e17])
def test_prices_out_of_reach_are_cut_off_alike_and_others_left(times: float) -> None:
    gains, index, prices = problems()
    prices[1:] *= times
    cut = prices.clone()
    compiled.bound(gains.numpy(), cut.numpy(), index.numpy(), REACH, SAMPLE)
    assert torch.equal(cut[1:], _bounded(gains[1:], Start(index[1:], prices[1:])).prices)
    assert cut.abs().max() <= REACH * gains.abs().max()
    assert torch.equal(cut[0], prices[0])


@pytest.mark.parametrize("column", [-1, N, 5])
def test_a_start_is_an_order_of_the_columns_with_finite_prices(column: int) -> None:
    _, index, prices = problems()
    assert compiled.is_start(index.numpy(), prices.numpy())
    where = (index[2] != 5).nonzero()[3, 0]
    for bad in (math.nan, math.inf):
        assert not compiled.is_start(index.numpy(), prices.index_fill(1, where, bad).numpy())
    index[2, where] = column
    assert not compiled.is_start(index.numpy(), prices.numpy())


def sizes_of(stack: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return what the passes over a stack find its sizes to be."""
    index, prices = np.full(stack.shape[:2], -1), np.zeros(stack.shape[:2])
    return compiled.solve_stack(stack.numpy(), index, prices, np.finfo(np.float64).max, False)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sizes_are_sums_of_the_largest_gains_and_not_finite_if_a_gain_is_not(dtype: torch.dtype) -> None:
    gains, _, _ = problems(dtype)
    gains[1] = torch.finfo(dtype).max / (2 * N)
    assert sizes_of(gains) == pytest.approx(_size(gains).numpy(), rel=1e-12)
    for bad in (math.nan, math.inf, -math.inf):
        for row, column in ((0, 0), (5, 33), (N - 1, N - 1)):
            wrong = gains.clone()
            wrong[2, row, column] = bad
            assert np.isfinite(sizes_of(wrong)).tolist() == [True, True, False]


def signatures() -> dict[str, int]:
    """Return for how many kinds of arguments each function has been compiled."""
    modules = (compiled, compiled_paths, compiled_prices, compiled_rows, compiled_small)
    functions = {name: value for module in modules for name, value in vars(module).items()}
    return {name: len(value.signatures) for name, value in functions.items() if hasattr(value, "signatures")}


def test_a_matrix_of_another_layout_or_size_is_not_compiled_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling is what the first use waits for."""
    monkeypatch.setattr(compiled, "DENSE", N // 2)  # so that what large matrices need is compiled, too
    gains = torch.randn(2 * N, 2 * N, generator=torch.Generator().manual_seed(0))
    few = slice(0, N // 2), slice(0, N // 2)  # a small matrix
    solve(gains, solve(-gains))
    solve(gains[few])
    before = signatures()
    found = solve(gains.T)
    for other in (gains.T, gains.T.clone(), gains.T[None], gains.T.half(), gains.T.requires_grad_()):
        solve(other, None if other.dim() > 2 else found)
        solve(other[..., *few], solve(-gains[few].expand(*other.shape[:-2], -1, -1)))
    for part in (gains[::2, 1::2], gains.expand(3, -1, -1), gains[:, :N].reshape(-1, N, N)):
        solve(part, solve(part + 1))
    assert signatures() == before
    assert min(before["augment"], before["augment_sparsely"], before["solve_each"]) > 0
    solve(gains.double())
    solve(gains[few].double())
    assert max(signatures().values()) <= 2


@pytest.mark.parametrize("n", [1, 2, 9, 64])
def test_small_problems_are_measured_as_large_ones_are(n: int) -> None:
    gains = torch.stack([part[:n, :n] for part in problems()[0]])
    gains[1] *= 1e30
    found = {}
    for module, more in ((compiled, (False,)), (compiled_small, ())):
        index, prices = np.full((3, n), -1), np.zeros((3, n))
        found[module] = (index, module.solve_stack(gains.numpy(), index, prices, 1e300, *more))
    (index, expected), (small, measured) = found.values()
    assert np.array_equal(small, index)
    assert measured == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert 0 < expected[0].min()


@pytest.mark.parametrize("module", [compiled, compiled_small], ids=lambda module: module.__name__)
def test_of_gains_that_are_too_large_only_the_size_is_found(module: Any) -> None:
    gains = problems()[0][:, :9, :9].contiguous()
    sizes = _size(gains).numpy()
    for bad in (math.nan, math.inf):
        wrong = gains.clone()
        wrong[2, 3, 4] = bad
        for most, stack in ((sizes.min() / 2, gains), (1e300, wrong)):
            index, prices = np.full((3, 9), -1), np.zeros((3, 9))
            size, _, value = module.solve_stack(stack.numpy(), index, prices, most, *([False] * (module is compiled)))
            assert size[:2] == pytest.approx(sizes[:2])
            assert (index[2] == -1).all()
            assert value[2] == 0
            assert np.isfinite(size[2]) == (stack is gains)
            assert not size[2] <= most
