"""What compiled assignments check and sum up is what the torch way does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from onebasin.matching.assignment import REACH, SAMPLE, Start, _bounded, _size, solve

pytest.importorskip("numba")

from onebasin.matching import compiled, compiled_paths, compiled_prices, compiled_rows

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sizes_are_sums_of_the_largest_gains_and_not_finite_if_a_gain_is_not(dtype: torch.dtype) -> None:
    gains, _, _ = problems(dtype)
    gains[1] = torch.finfo(dtype).max / (2 * N)
    assert compiled.sizes(gains.numpy()) == pytest.approx(_size(gains).numpy(), rel=1e-12)
    for bad in (math.nan, math.inf, -math.inf):
        for row, column in ((0, 0), (5, 33), (N - 1, N - 1)):
            wrong = gains.clone()
            wrong[2, row, column] = bad
            assert np.isfinite(compiled.sizes(wrong.numpy())).tolist() == [True, True, False]


def signatures() -> dict[str, int]:
    """Return for how many kinds of arguments each function has been compiled."""
    modules = (compiled, compiled_paths, compiled_prices, compiled_rows)
    functions = {name: value for module in modules for name, value in vars(module).items()}
    return {name: len(value.signatures) for name, value in functions.items() if hasattr(value, "signatures")}


def test_a_matrix_of_another_layout_or_size_is_not_compiled_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling is what the first use waits for."""
    monkeypatch.setattr(compiled, "DENSE", N // 2)  # so that what large matrices need is compiled, too
    gains = torch.randn(2 * N, 2 * N, generator=torch.Generator().manual_seed(0))
    solve(gains, solve(-gains))
    before = signatures()
    found = solve(gains.T)
    for other in (gains.T, gains.T.clone(), gains.T[None], gains.T.half(), gains.T.requires_grad_()):
        solve(other, None if other.dim() > 2 else found)
    for part in (gains[::2, 1::2], gains.expand(3, -1, -1), gains[:, :N].reshape(-1, N, N)):
        solve(part, solve(part + 1))
    assert signatures() == before
    assert min(before["augment"], before["augment_sparsely"]) > 0
    solve(gains.double())
    assert max(signatures().values()) <= 2
