"""Nested assignments of which few are solved, against all of them solved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebasin.matching import pairs
from onebasin.matching.assignment import Assignment, solve
from onebasin.matching.pairs import solve_pairs

N, SIZES = 5, {"unit": 7, "other": 3}


def problem(seed: int, *batch: int, planted: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw gains of pairs, and inside of them; those of unit i and i + 1 are larger by `planted`."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(*batch, N, N, generator=generator, dtype=torch.float64)
    inner = {name: torch.randn(*batch, N, N, m, m, generator=generator).double() for name, m in SIZES.items()}
    for i in range(N):
        for gains in inner.values():
            gains[..., i, (i + 1) % N, :, :] += planted
    return own, inner


def all_solved(own: Tensor, inner: dict[str, Tensor]) -> tuple[Assignment, Tensor]:
    """Solve every inner problem, and the outer one on what they are worth."""
    values = {name: solve(gains).value for name, gains in inner.items()}
    outer = solve(own + sum(values.values()))
    return outer, outer.index


def worth(own: Tensor, inner: dict[str, Tensor], index: Tensor, rows: dict[str, Tensor]) -> Tensor:
    """Sum up what an outer assignment and the rows inside of its pairs are worth."""
    total = own.gather(-1, index[..., None])[..., 0].sum(-1)
    for name, gains in inner.items():
        chosen = gains.take_along_dim(index[..., None, None, None], -3).squeeze(-3)
        total = total + chosen.gather(-1, rows[name][..., None])[..., 0].sum((-2, -1))
    return total


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("rounds", [0, 1, 2, 1000])
def test_nothing_better_is_passed_over(
    seed: int, batch: tuple[int, ...], rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "ROUNDS", rounds)
    own, inner = problem(seed, *batch)
    expected, index = all_solved(own, inner)
    last: dict[str, Assignment] = {}
    for known in (None, last, last):  # without memory, with an empty one, and with one that knows the answer
        outer, rows = solve_pairs(own, inner, solve, known)
        torch.testing.assert_close(outer.value, expected.value)
        torch.testing.assert_close(worth(own, inner, outer.index, rows), expected.value)
        assert torch.equal(outer.index, index)


@pytest.mark.parametrize("seed", range(6))
def test_wrong_prices_change_nothing_but_the_time(seed: int) -> None:
    own, inner = problem(seed)
    expected, _ = all_solved(own, inner)
    last: dict[str, Assignment] = {}
    solve_pairs(*problem(seed + 100), solve, last)
    for found in last.values():
        found.duals.mul_(3).add_(torch.randn(found.duals.shape, generator=torch.Generator().manual_seed(seed)))
    assert solve_pairs(own, inner, solve, last)[0].value.item() == pytest.approx(expected.value.item(), rel=1e-12)


def counted(own: Tensor, inner: dict[str, Tensor], last: dict[str, Assignment] | None = None) -> int:
    """Count the inner problems of one group that are solved."""
    solved = []

    def counting(gains: Tensor, warm: Assignment | None = None) -> Assignment:
        solved.append(len(gains) if gains.dim() == 3 and gains.shape[-1] == SIZES["unit"] else 0)
        return solve(gains, warm)

    solve_pairs(own, inner, counting, last)
    return sum(solved)


def test_pairs_that_bounds_rule_out_are_not_solved() -> None:
    assert counted(*problem(0, planted=5.0)) == N
    assert counted(*problem(0)) > N


def test_what_was_found_last_spares_most_of_the_work() -> None:
    own, inner = problem(0)
    last: dict[str, Assignment] = {}
    first = counted(own, inner, last)
    noise = problem(1)[1]
    slightly = {name: gains + 1e-3 * noise[name] for name, gains in inner.items()}
    assert counted(own, slightly, last) < first
