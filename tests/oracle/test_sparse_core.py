"""Assignments by a sparse core: against scipy on whole matrices, and how much of a matrix leaves its device."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gain_families import gains_of
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onebasin.matching import assignment, core
from onebasin.matching.assignment import WHOLE, solve
from onebasin.matching.core import Array, Core, Solution, solve_by_cores
from onebasin.matching.sinkhorn_prices import sinkhorn_prices

N, LARGER = 67, WHOLE + 64
FAMILIES = ["power law", "planted", "uniform", "integers", "equal", "rows twice", "many scales"]
# Numbers of each row that a solve may carry to the host: pairs, prices and some tens of arcs.
FEW = 128


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the count of numbers of all that leaves the device, as if it were not the host."""
    counts: list[int] = []
    real = core.to_host

    def counted(x: Tensor) -> Tensor:
        counts.append(x.numel())
        return real(x)

    monkeypatch.setattr(assignment, "has_numba", lambda: False)
    for module in (core, assignment):
        monkeypatch.setattr(module, "to_host", counted)
    return counts


@pytest.mark.parametrize("family", FAMILIES[:-1])
def test_few_numbers_of_a_row_leave_the_device(family: str, carried: list[int]) -> None:
    gains, generator = gains_of(family, LARGER), torch.Generator().manual_seed(1)
    near = gains + gains.std() / 100 * torch.randn(gains.shape, generator=generator)
    found = solve(near)
    assert 0 < sum(carried) <= FEW * LARGER
    carried.clear()
    solve(gains, found)
    assert 0 < sum(carried) <= FEW * LARGER


def test_scipy_is_given_the_whole_matrix_if_rows_differ_by_powers_of_ten(carried: list[int]) -> None:
    solve(gains_of("many scales", LARGER))
    assert sum(carried) >= LARGER**2


def test_there_is_one_way_out() -> None:
    """A copy to the host that is not counted could be as large as it likes."""
    for name in ("assignment", "core", "sinkhorn_prices", "pairs", "joint", "gains", "products", "terms"):
        path = Path(core.__file__).with_name(f"{name}.py")
        calls = [
            (function.name, node)
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        ]
        exits = {
            function
            for function, call in calls
            if call.func.attr == "cpu" or any(isinstance(a, ast.Constant) and a.value == "cpu" for a in call.args)
        }
        assert exits == ({"to_host"} if name == "core" else set()), name


def core_of(gains: Tensor, arcs: int) -> Core:
    """Return a core of so many best arcs of each row, and the diagonal."""
    n = len(gains)
    best = gains.topk(min(arcs, n), 1).indices
    columns = torch.cat([best, torch.arange(n)[:, None]], 1)
    return Core.of(gains, (columns + n * torch.arange(n)[:, None]).unique())


def masked(one: Core) -> Array:
    """Return the whole matrix in which pairs that are no arcs are worth very little."""
    whole = np.full((one.n, one.n), -1e3 * np.abs(one.gains).max())
    whole.flat[one.positions] = one.gains
    return whole


def margins(one: Core, prices: Array, index: Array) -> tuple[Array, Array]:
    """Return of each row the margin of its column and the best one, by the arcs there are."""
    rest = masked(one) - prices
    own = rest[np.arange(one.n), index]
    rest[masked(one) < 0.5 * masked(one).min()] = -np.inf
    return own, rest.max(1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arcs", [2, 8, N])
def test_a_core_is_solved_as_scipy_solves_it(family: str, arcs: int) -> None:
    one = core_of(gains_of(family, N).double(), arcs)
    whole, size = masked(one), one.size()
    rows, columns = linear_sum_assignment(whole, maximize=True)
    for start in (np.zeros(N), np.random.default_rng(0).normal(size=N) * np.median(np.abs(one.gains))):
        index = one.assign(start)
        assert sorted(index) == list(range(N))
        assert abs(whole[rows, index].sum() - whole[rows, columns].sum()) <= 1e-12 * size
        own, best = margins(one, one.prices(index, start), index)
        assert (best - own).sum() <= 1e-11 * size


def test_no_prices_prove_what_is_not_the_best() -> None:
    one = core_of(gains_of("power law", N).double(), N)
    index = one.assign(np.zeros(N))[::-1].copy()
    own, best = margins(one, one.prices(index, np.zeros(N)), index)
    assert (best - own).sum() > 1e-6 * one.size()


def test_prices_are_in_the_middle_of_those_that_prove_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows would rather keep their columns, where prices on the edge leave most of them in doubt."""
    one = core_of(gains_of("power law", N).double(), 8)
    index = one.assign(np.zeros(N))

    def doubts() -> int:
        slack = one.slack(one.prices(index, np.zeros(N)))
        return int(np.count_nonzero(slack <= 1e-12 * one.size())) - N

    centred = doubts()
    monkeypatch.setattr(Core, "_centred", lambda _, __, prices: prices)
    assert centred < 0.7 * doubts()


def test_a_core_is_extended_by_new_arcs_only() -> None:
    gains = gains_of("power law", N).double()
    one, other = core_of(gains, 3), core_of(gains, 6)
    assert one.extended(gains, torch.from_numpy(one.positions)) is None
    larger = one.extended(gains, torch.from_numpy(other.positions))
    assert larger is not None
    assert np.array_equal(larger.positions, np.union1d(one.positions, other.positions))
    assert np.array_equal(larger.gains, gains.numpy().flat[larger.positions])


def test_columns_that_rows_can_hardly_tell_apart_are_contested() -> None:
    near = core_of(gains_of("columns nearly twice", N).double(), 8)
    apart = core_of(gains_of("uniform", N).double(), 8)
    assert near._is_contested(near.slack(np.zeros(N)))
    assert not apart._is_contested(apart.slack(np.zeros(N)))


def test_a_stack_is_priced_at_once_and_solved_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of matrices that are settled, begin near, or have nothing to begin with, each is priced only if it must be."""
    gains = torch.stack([gains_of("power law", LARGER, seed) for seed in (0, 1, 2, 2, 2)])
    gains[4, 0] *= 1e9
    alone = [solve_by_cores(matrix[None], None)[0] for matrix in gains]
    assert alone[4] is None
    priced = []

    def counted(stack: Tensor, start: Tensor | None = None) -> Tensor:
        priced.append((len(stack), start is not None))
        return sinkhorn_prices(stack, start)

    monkeypatch.setattr(core, "sinkhorn_prices", counted)
    together = solve_by_cores(gains, None)
    assert priced == [(4, False)]
    columns = [torch.arange(LARGER) if one is None else one.columns for one in together]
    prices = [torch.zeros(LARGER).double() if one is None else one.prices for one in together]
    order = [0, 2, 1, 3, 4]  # two begin with what belongs to another
    again = solve_by_cores(gains, (torch.stack(columns)[order], torch.stack(prices)[order]))
    assert priced[1:] == [(2, False)]
    for found, other, one in zip(alone, together, again, strict=True):
        assert (found is None) == (other is None) == (one is None)
        if found is not None and other is not None and one is not None:
            assert torch.equal(found.columns, other.columns)
            assert torch.equal(found.columns, one.columns)
    near = gains[:3] + 0.05 * gains[0].std() * torch.randn(gains[:3].shape, generator=torch.Generator().manual_seed(0))
    moved = solve_by_cores(near, (torch.stack(columns)[:3], torch.stack(prices)[:3]))
    assert [one is not None and one.short < 1e-9 for one in moved] == [True] * 3
    assert priced[2:] == [(2, True)]


def test_memory_that_is_kept_serves_every_thread_and_mode() -> None:
    """What is computed in other threads, or first in inference mode, must not spoil it."""
    gains = [gains_of("power law", LARGER, seed) for seed in range(3)]
    alone = [solve_by_cores(matrix[None], None)[0] for matrix in gains]

    def solved_twice(matrix: Tensor) -> Solution | None:
        with torch.inference_mode():
            solve_by_cores(matrix.flip(0)[None], None)
        return solve_by_cores(matrix[None], None)[0]

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(solved_twice, 3 * gains))
    for found, again in zip(3 * alone, together, strict=True):
        assert found is not None
        assert again is not None
        assert torch.equal(found.columns, again.columns)
        assert torch.equal(found.prices, again.prices)
