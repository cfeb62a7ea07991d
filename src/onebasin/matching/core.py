"""Assignments by a sparse core: whole matrices are only passed over, on their device, and a few arcs of rows solved.

An arc is a pair of a row and a column; its margin at given prices is its gain less the price of its column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from onebasin.matching.sinkhorn_prices import scratch, sinkhorn_prices

Array = np.ndarray[Any, np.dtype[Any]]

# Arcs of a row in the mean, at first. With good prices eight are enough; more cost little, and save rounds.
ARCS = 12
# If more arcs than so many a row are as good, each row gets its own best ones.
MOST = 32
LANES = 32
SAMPLE = 64  # rows that tell how good prices are
# If a larger share of the rows would rather have other columns, better prices come first. Up to the second share they
# are found from those at hand; the third is where there are none yet.
LOOSE, LOOSE_MOST, LOOSE_COLD = 0.4, 0.8, 0.15
# If no more of them are, all may be settled at these prices.
SETTLED_MOST = 0.02
# With rows so many times as large as others, prices of the ones are nothing but rounding to the others.
SCALES = 1e4
# On a CPU, rows are taken so many elements at a time: they stay in the cache from one operation to the next.
BLOCK, LARGE_BLOCK = 1 << 18, 1 << 26
# Columns are alike to a row if it loses less by the one than by the other, by no more than this share of what it loses
# by the median of its arcs. So many of the rows looked at may happen to find some that are not the same columns.
ALIKE, FEW_ALIKE = 1e-5, 4
# Weights of arcs are whole numbers of so many bits, if none is more than so many times the median: else too many bits
# of the others would be lost.
BITS, RANGE = 44, 1 << 20
# A core that still lacks arcs after so many rounds is given up.
ROUNDS = 16
# A margin is wrong by less than so many units of rounding of itself and of the prices.
ROUNDING = 2
# Gaps and prices below this share of the gains are the rounding of float64.
SETTLED = 1e-15


def to_host(x: Tensor) -> Tensor:
    """Return `x` on the CPU. All that leaves the device of the gains passes here: a few numbers of every row."""
    return x.cpu()


class Solution(NamedTuple):
    """An assignment of one matrix, prices that prove it, and the absolute duality gap; all on the host."""

    columns: Tensor
    prices: Tensor
    short: float


def shortfalls(stack: Tensor, prices: Tensor, index: Tensor) -> Tensor:
    """Return by how much rows fall short of the best margin they could have: `Float[Tensor, "*batch n"]`.

    Everything is on one device; the result is in the common dtype of `stack` and `prices`.
    """
    short = []
    for first, margins in _blocks(stack, prices):
        own = margins.gather(-1, index[..., first : first + margins.shape[-2], None])[..., 0]
        short.append(margins.amax(-1) - own)
    return torch.cat(short, -1)


def _blocks(stack: Tensor, prices: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield margins of some rows at a time, and which row is the first; each block is written over the one before."""
    n, elements = stack.shape[-1], BLOCK if stack.device.type == "cpu" else LARGE_BLOCK
    height = min(n, max(1, elements * n // stack.numel()))
    dtype = torch.promote_types(stack.dtype, prices.dtype)
    buffer = scratch((*stack.shape[:-2], height, n), dtype, stack.device)
    for first in range(0, n, height):
        part = stack[..., first : first + height, :]
        yield first, torch.sub(part, prices[..., None, :], out=buffer[..., : part.shape[-2], :])


class Core:
    """Arcs of one matrix, on the host: positions row * n + column, in order, and their gains in float64."""

    def __init__(self, n: int, positions: Array, gains: Array) -> None:
        self.n, self.positions, self.gains = n, positions, gains
        bounds = np.searchsorted(positions, np.arange(n + 1) * n)
        self.starts, self.counts, self.bounds = bounds[:-1], np.diff(bounds), bounds
        self.columns = positions - np.repeat(np.arange(n) * n, self.counts)

    @classmethod
    def of(cls, matrix: Tensor, positions: Tensor) -> Core:
        """Fetch the arcs at `positions`, which are in order and leave no row out."""
        return cls(len(matrix), to_host(positions).numpy(), _fetched(matrix, positions))

    def extended(self, matrix: Tensor, positions: Tensor) -> Core | None:
        """Return a core with more arcs, or None if there are no new ones."""
        more = np.concatenate([self.positions, to_host(positions).numpy()])
        together, first = np.unique(more, return_index=True)
        if len(together) == len(self.positions):
            return None
        gains = np.concatenate([self.gains, _fetched(matrix, positions)])
        return Core(self.n, together, gains[first])

    def size(self) -> float:
        """Return the sum over rows of the largest absolute gain."""
        return float(np.maximum.reduceat(np.abs(self.gains), self.starts).sum())

    def slack(self, prices: Array) -> Array:
        """Return by how much the margin of each arc is below the best of its row."""
        margins = self.gains - prices[self.columns]
        return np.repeat(np.maximum.reduceat(margins, self.starts), self.counts) - margins

    def assign(self, prices: Array) -> Array:
        """Return the best assignment by these arcs; that is fast from good prices."""
        slack = self.slack(prices)
        most = slack.max()
        if most > RANGE * (float(np.median(slack)) or most) or self._is_contested(slack):
            whole = np.full((self.n, self.n), np.inf)
            np.put(whole, self.positions, slack)
            return np.asarray(linear_sum_assignment(whole)[1], np.int64)
        # In whole numbers nothing is lost by rounding on the way, which could go on for ever; zero would be no arc.
        weights = np.rint(slack / 2.0 ** (math.frexp(most)[1] - BITS)) + 1.0
        graph = csr_array((weights, self.columns, self.bounds), shape=(self.n, self.n))
        return np.asarray(min_weight_full_bipartite_matching(graph)[1], np.int64)

    def _is_contested(self, slack: Array) -> bool:
        """Return whether there are columns that rows can hardly tell apart, though they are not the same.

        Scipy's sparse solver lets rows outbid each other for them by these differences, as long as it takes.
        """
        starts, counts = (part[:: _step(self.n)] for part in (self.starts, self.counts))
        places = np.arange(counts.max())
        table = np.where(places < counts[:, None], np.take(slack, starts[:, None] + places, mode="clip"), slack.max())
        table.sort(1)
        apart, scale = np.diff(table, axis=1), table[np.arange(len(table)), counts // 2]
        return int(np.count_nonzero((apart < ALIKE * scale[:, None]) & (apart > 0))) > FEW_ALIKE

    def prices(self, index: Array, start: Array) -> Array:
        """Return prices at which the assignment `index` is the best by these arcs, found from those at the start.

        Let q[i] be the price of row i's column. No row wants the column of another, r, if

            q[i] <= q[r] + gain[i, index[i]] - gain[i, index[r]],

        and this is relaxed until no price falls any more (Bellman-Ford). With an optimal assignment there is no cycle
        along which prices would fall for ever; then n rounds are enough. They are centred in the end.
        """
        n = self.n
        owner = np.empty(n, np.int64)
        owner[index] = np.arange(n)
        own = self.gains[self.columns == np.repeat(index, self.counts)]
        loss, source = np.repeat(own, self.counts) - self.gains, owner[self.columns]
        paid, reached = start[index], np.empty_like(loss)
        settled = SETTLED * np.abs(self.gains).max()
        for _ in range(n):
            np.add(np.take(paid, source, out=reached, mode="clip"), loss, out=reached)
            before, paid = paid, np.minimum.reduceat(reached, self.starts)
            if (before - paid).max() <= settled:
                break
        return self._centred(index, paid[owner])

    def _centred(self, index: Array, prices: Array) -> Array:
        """Return prices in the middle of those that prove `index`, which outlive more changes of the gains.

        A price may rise until the row that has the column prefers another one, and fall until another row prefers the
        column. It moves half way towards what is further, and all move at once: a row loses by column k no less than
        its own column may rise, nor than k may fall, so with half of both gone it still loses nothing.
        """
        margins, is_own = self.gains - prices[self.columns], self.columns == np.repeat(index, self.counts)
        loss = np.where(is_own, np.inf, np.repeat(margins[is_own], self.counts) - margins)
        by_column = csr_array((loss, self.columns, self.bounds), shape=(self.n, self.n)).tocsc()
        rise, fall = np.full(self.n, np.inf), np.minimum.reduceat(by_column.data, by_column.indptr[:-1])
        rise[index] = np.minimum.reduceat(loss, self.starts)
        is_bounded = np.isfinite(rise) & np.isfinite(fall)
        return prices + np.where(is_bounded, rise - fall, 0) / 2


def _fetched(matrix: Tensor, positions: Tensor) -> Array:
    n = len(matrix)
    gains: Array = to_host(matrix[positions // n, positions % n]).double().numpy()
    return gains


class _Begun(NamedTuple):
    """Prices to begin one matrix with, and an assignment, if there is one; `is_loose` if better prices come first."""

    columns: Tensor | None
    prices: Tensor
    is_loose: bool


def solve_by_cores(stack: Tensor, start: tuple[Tensor, Tensor] | None) -> list[Solution | None]:
    """Solve every matrix of a stack, from assignments and prices if there are any; None if a core does not get there.

    A core is solved, and gets the arcs that are worth more at its prices than those assigned, until there are none:
    then these prices prove the assignment for the whole matrix. The prices that cores are chosen by are found for all
    matrices at once.

    Args:
        stack: `Float[Tensor, "batch n n"]` in float32 or float64, on any device.
        start: `Int[Tensor, "batch n"]` and `Float64[Tensor, "batch n"]` on the host.
    """
    starts = [None] * len(stack) if start is None else list(zip(*start, strict=True))
    begun = [_begin(matrix, one) for matrix, one in zip(stack, starts, strict=True)]
    for is_near in (False, True):
        _improve(stack, begun, is_near)
    return [_solve(matrix, one) if isinstance(one, _Begun) else one for matrix, one in zip(stack, begun, strict=True)]


def _begin(matrix: Tensor, start: tuple[Tensor, Tensor] | None) -> Solution | _Begun | None:
    """Return the solution if the prices at hand settle it, or what to begin a core with."""
    some = matrix[:: _step(len(matrix))]
    largest = some.abs().amax(-1)
    if largest.amax() > SCALES * largest.median():
        return None
    index, prices = (None, matrix.amax(0).double()) if start is None else (part.to(matrix.device) for part in start)
    loose = _loose(some, prices, index)
    if index is not None and loose > LOOSE_MOST:
        index, prices = None, matrix.amax(0).double()
        loose = _loose(some, prices, None)
    settled = _settled(matrix, prices, index) if loose <= SETTLED_MOST else None
    return settled or _Begun(index, prices, loose > (LOOSE_COLD if index is None else LOOSE))


def _improve(stack: Tensor, begun: list[Solution | _Begun | None], is_near: bool) -> None:
    """Find better prices where they come first: from those at hand with `is_near`, else from nothing."""
    loose = {
        b: one
        for b, one in enumerate(begun)
        if isinstance(one, _Begun) and one.is_loose and (one.columns is not None) == is_near
    }
    if loose:
        matrices = stack if len(loose) == len(stack) else stack[list(loose)]
        start = torch.stack([one.prices for one in loose.values()]) if is_near else None
        for (b, one), prices in zip(loose.items(), sinkhorn_prices(matrices, start), strict=True):
            begun[b] = one._replace(prices=prices)


def _solve(matrix: Tensor, begun: _Begun) -> Solution | None:
    index = torch.arange(len(matrix), device=matrix.device) if begun.columns is None else begun.columns
    core = _near(matrix, begun.prices.to(matrix.dtype), index)
    return _completed(matrix, core, to_host(begun.prices).numpy())


def _step(n: int) -> int:
    return max(1, n // SAMPLE)


def _loose(some: Tensor, prices: Tensor, index: Tensor | None) -> float:
    """Return the share of some rows that want another column than theirs, or, without any, one that others want more.

    Without an assignment, prices are the largest gains of the columns.
    """
    margins = some - prices
    own = torch.zeros_like(margins[:, :1])
    if index is not None:
        own = margins.gather(-1, index[:: _step(len(index)), None])
    return float((margins.amax(-1, keepdim=True) != own).double().mean())


def _settled(matrix: Tensor, prices: Tensor, index: Tensor | None) -> Solution | None:
    """Return the assignment `index`, or that of the best column to each row, if these prices prove it."""
    if index is None:
        index, short = torch.cat([margins.max(-1).indices for _, margins in _blocks(matrix, prices)]), 0.0
        if len(index.unique()) < len(matrix):
            return None
    else:
        short = float(shortfalls(matrix, prices, index).sum())
    size = float(matrix.gather(-1, index[:, None]).abs().sum(dtype=torch.float64)) if short else 0.0
    return Solution(to_host(index), to_host(prices), short) if short <= SETTLED * size else None


def _completed(matrix: Tensor, core: Core, paid: Array) -> Solution | None:
    for _ in range(ROUNDS):
        columns = core.assign(paid)
        paid = core.prices(columns, paid)
        found = torch.from_numpy(columns), torch.from_numpy(paid)
        index, prices = (part.to(matrix.device) for part in found)
        rounding = SETTLED * core.size()
        short, better = _better_arcs(matrix, prices, index, rounding / len(matrix))
        if short <= rounding:
            return Solution(*found, short)
        extended = core.extended(matrix, better)
        if extended is None:
            return None
        core = extended
    return None


def _near(matrix: Tensor, prices: Tensor, index: Tensor) -> Core:
    """Return a core of arcs not far below the best of their row, with those of `index`."""
    n, found, count = len(matrix), [], 0
    for first, margins in _blocks(matrix, prices):
        floor = _floor(margins)
        margins.scatter_(-1, index[first : first + len(margins), None], torch.inf)
        found.append(_reaching(margins, floor) + first * n)
        count += len(found[-1])
        if count > MOST * n:
            return Core.of(matrix, _best_arcs(matrix, prices, index))
    return Core.of(matrix, torch.cat(found))


def _floor(margins: Tensor) -> Tensor:
    """Return what at least ARCS margins of each row reach, and not many more: the least of as many largest of lanes."""
    rows, n = margins.shape
    width = max(LANES, n // LANES)
    lanes = margins[:, : n // width * width].view(rows, -1, width).amax(1)
    if lanes.device.type == "cpu":  # a quarter of the time
        return torch.from_numpy(np.partition(lanes.numpy(), width - ARCS, -1)[:, width - ARCS, None])
    return lanes.topk(ARCS, -1).values[:, -1:]


def _reaching(margins: Tensor, floor: Tensor) -> Tensor:
    """Return the flat positions of margins not below the floor of their row; numpy, if it can, is four times faster."""
    if margins.device.type == "cpu":
        reach = scratch(margins.shape, torch.bool, margins.device).numpy()
        return torch.from_numpy(np.flatnonzero(np.greater_equal(margins.numpy(), floor.numpy(), out=reach)))
    return (margins >= floor).flatten().nonzero()[:, 0]


def _best_arcs(matrix: Tensor, prices: Tensor, index: Tensor) -> Tensor:
    """Return the best arcs of each row, and those of `index`."""
    n, found = len(matrix), []
    for first, margins in _blocks(matrix, prices):
        margins.scatter_(-1, index[first : first + len(margins), None], torch.inf)
        rows = torch.arange(first, first + len(margins), device=matrix.device)
        found.append((margins.topk(min(ARCS, n), -1).indices.sort(-1).values + n * rows[:, None]).flatten())
    return torch.cat(found)


def _better_arcs(matrix: Tensor, prices: Tensor, index: Tensor, least: float) -> tuple[float, Tensor]:
    """Return by how much rows fall short with `index`, summed in float64, and arcs worth more to them by `least`.

    In the dtype of the matrix it is seen which arcs may be worth more at all: few, but for ties.
    """
    n, rough = len(matrix), prices.to(matrix.dtype)
    own = matrix.gather(-1, index[:, None]) - rough[index, None]
    floor = own - ROUNDING * torch.finfo(matrix.dtype).eps * (own.abs() + rough.abs().amax())
    found, count = [], 0
    for first, margins in _blocks(matrix, rough):
        found.append(_reaching(margins, floor[first : first + len(margins)]) + first * n)
        count += len(found[-1])
        if count > MOST * n:
            return _better_rows(matrix, prices, index, least)
    arcs = torch.cat(found)
    rows, columns = arcs // n, arcs % n
    exact = matrix.gather(-1, index[:, None])[:, 0].double() - prices[index]
    more = matrix[rows, columns].double() - prices[columns] - exact[rows]
    short = prices.new_zeros(n).scatter_reduce_(0, rows, more, "amax")
    return float(short.sum()), arcs[more > least]


def _better_rows(matrix: Tensor, prices: Tensor, index: Tensor, least: float) -> tuple[float, Tensor]:
    """Do what `_better_arcs` does over whole rows; those that want very many arcs get their best ones."""
    n, short = len(matrix), shortfalls(matrix, prices, index)
    rows = (short > least).nonzero()[:, 0]
    margins = matrix[rows] - prices
    own = margins.gather(-1, index[rows, None])
    where = _reaching(margins, own + least)
    if len(where) > MOST * len(rows):
        return float(short.sum()), (rows[:, None] * n + margins.topk(min(ARCS, n), -1).indices).flatten()
    return float(short.sum()), rows[where // n] * n + where % n
