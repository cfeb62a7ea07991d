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

from onebasin.matching.sinkhorn_prices import sinkhorn_prices

Array = np.ndarray[Any, np.dtype[Any]]

# Arcs of a row in the mean, at first. With good prices eight are enough, and more cost little.
ARCS = 8
# If more arcs than so many a row are as good, each row gets its own best ones.
MOST = 32
LANES = 32
SAMPLE = 64  # rows that tell how good prices are
# If a larger share of the rows would rather have other columns, better prices come first. Up to the second share they
# are found from those at hand; the third is where there are none yet.
LOOSE, LOOSE_MOST, LOOSE_COLD = 0.4, 0.8, 0.15
# On a CPU, rows are taken so many elements at a time: they stay in the cache from one operation to the next.
BLOCK, LARGE_BLOCK = 1 << 16, 1 << 26
# Columns are alike to a row if it loses less by the one than by the other, by no more than this share of what it loses
# by the median of its arcs. So many rows may happen to find some; they are not the same columns, then.
ALIKE, FEW_ALIKE = 1e-5, 8
# Weights of arcs are whole numbers of so many bits; those of more than so many times the median are as good as any.
BITS, RANGE = 44, 1 << 20
# A core that still lacks arcs after so many rounds is given up.
ROUNDS = 16
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
    buffer = stack.new_empty((*stack.shape[:-2], height, n), dtype=torch.promote_types(stack.dtype, prices.dtype))
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
        if self._is_contested(slack):
            whole = np.full((self.n, self.n), np.inf)
            np.put(whole, self.positions, slack)
            return np.asarray(linear_sum_assignment(whole)[1], np.int64)
        # In whole numbers nothing is lost by rounding on the way, which could go on for ever; zero would be no arc.
        most = min(slack.max(), RANGE * (float(np.median(slack)) or slack.max()))
        unit = 2.0 ** (math.frexp(most)[1] - BITS)
        weights = np.rint(np.minimum(slack, most) / unit) + 1.0
        graph = csr_array((weights, self.columns, self.bounds), shape=(self.n, self.n))
        return np.asarray(min_weight_full_bipartite_matching(graph)[1], np.int64)

    def _is_contested(self, slack: Array) -> bool:
        """Return whether there are columns that rows can hardly tell apart, though they are not the same.

        Scipy's sparse solver lets rows outbid each other for them by these differences, as long as it takes.
        """
        width, rows = int(self.counts.max()), np.repeat(np.arange(self.n), self.counts)
        table = np.full((self.n, width), slack.max())
        table[rows, np.arange(len(rows)) - self.starts[rows]] = slack
        table.sort(1)
        apart, scale = np.diff(table, axis=1), table[np.arange(self.n), self.counts // 2]
        return int(np.count_nonzero((apart < ALIKE * scale[:, None]) & (apart > 0))) > FEW_ALIKE

    def prices(self, index: Array, start: Array) -> Array:
        """Return prices at which the assignment `index` is the best by these arcs, found from those at the start.

        Let q[i] be the price of row i's column. No row wants the column of another, r, if

            q[i] <= q[r] + gain[i, index[i]] - gain[i, index[r]],

        and this is relaxed until no price falls any more (Bellman-Ford). With an optimal assignment there is no cycle
        along which prices would fall for ever; then n rounds are enough.
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
        return paid[owner]


def _fetched(matrix: Tensor, positions: Tensor) -> Array:
    n = len(matrix)
    gains: Array = to_host(matrix[positions // n, positions % n]).double().numpy()
    return gains


def solve_by_core(matrix: Tensor, start: tuple[Tensor, Tensor] | None) -> Solution | None:
    """Solve one matrix, from an assignment and prices if there are any; None if a core does not get there.

    The core is solved, and gets the arcs that are worth more at its prices than those assigned, until there are none:
    then these prices prove the assignment for the whole matrix.

    Args:
        matrix: `Float[Tensor, "n n"]` in float32 or float64, on any device.
        start: `Int[Tensor, "n"]` and `Float64[Tensor, "n"]` on the host.
    """
    n, device = len(matrix), matrix.device
    index = torch.arange(n, device=device) if start is None else start[0].to(device)
    prices = matrix.amax(0) if start is None else start[1].to(device, matrix.dtype)
    loose = _loose(matrix, prices, None if start is None else index)
    if loose > (LOOSE_COLD if start is None else LOOSE):
        near = prices[None] if start is not None and loose <= LOOSE_MOST else None
        prices = sinkhorn_prices(matrix[None], near)[0].to(matrix.dtype)
    core, is_tight = _near(matrix, prices, index)
    if start is not None and is_tight:
        short = float(shortfalls(matrix, start[1].to(device), index).sum())
        if short <= SETTLED * core.size():
            return Solution(*start, short)
    return _completed(matrix, core, to_host(prices).double().numpy())


def _loose(matrix: Tensor, prices: Tensor, index: Tensor | None) -> float:
    """Return the share of some rows that want another column than theirs, or, without any, one that others want more.

    Without an assignment, prices are the largest gains of the columns.
    """
    rows = torch.arange(0, len(matrix), max(1, len(matrix) // SAMPLE), device=matrix.device)
    margins = matrix[rows] - prices
    own = torch.zeros_like(margins[:, :1]) if index is None else margins.gather(-1, index[rows, None])
    return float((margins.amax(-1, keepdim=True) != own).double().mean())


def _completed(matrix: Tensor, core: Core, paid: Array) -> Solution | None:
    n, larger = len(matrix), core
    for _ in range(ROUNDS):
        columns = larger.assign(paid)
        paid = larger.prices(columns, paid)
        found = torch.from_numpy(columns), torch.from_numpy(paid)
        index, prices = (part.to(matrix.device) for part in found)
        short = shortfalls(matrix, prices, index)
        total, rounding = float(short.sum()), SETTLED * larger.size()
        if total <= rounding:
            return Solution(*found, total)
        lacking = (short > rounding / n).nonzero()[:, 0]
        extended = larger.extended(matrix, _better_arcs(matrix, prices, index, lacking, rounding / n))
        if extended is None:
            return None
        larger = extended
    return None


def _near(matrix: Tensor, prices: Tensor, index: Tensor) -> tuple[Core, bool]:
    """Return a core of arcs not far below the best of their row, with those of `index`; and if these are the best.

    That is only seen up to rounding here, as prices are in the dtype of the matrix.
    """
    n, found, short, count = len(matrix), [], [], 0
    for first, margins in _blocks(matrix, prices):
        pairs, best = index[first : first + len(margins), None], margins.amax(-1, keepdim=True)
        short.append(best - margins.gather(-1, pairs))
        if count <= MOST * n:
            floor = _floor(margins)
            margins.scatter_(-1, pairs, torch.inf)
            found.append(_not_negative(margins.sub_(floor)) + first * n)
            count += len(found[-1])
    arcs = torch.cat(found) if count <= MOST * n else _best_arcs(matrix, prices, index)
    rounding = 8 * torch.finfo(matrix.dtype).eps * (prices.abs().amax() + best.abs().amax())
    is_tight = bool(torch.cat(short).amax() <= rounding)
    return Core.of(matrix, arcs), is_tight


def _floor(margins: Tensor) -> Tensor:
    """Return what at least ARCS margins of each row reach, and not many more: the least of as many largest of lanes."""
    rows, n = margins.shape
    width = max(LANES, n // LANES)
    lanes = margins[:, : n // width * width].view(rows, -1, width).amax(1)
    return lanes.topk(ARCS, -1).values[:, -1:]


def _not_negative(x: Tensor) -> Tensor:
    """Return the flat positions where `x` is not negative; numpy takes a quarter of the time where it can be used."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(x.numpy() >= 0))
    return (x >= 0).flatten().nonzero()[:, 0]


def _best_arcs(matrix: Tensor, prices: Tensor, index: Tensor) -> Tensor:
    """Return the best arcs of each row, and those of `index`."""
    n, found = len(matrix), []
    for first, margins in _blocks(matrix, prices):
        margins.scatter_(-1, index[first : first + len(margins), None], torch.inf)
        rows = torch.arange(first, first + len(margins), device=matrix.device)
        found.append((margins.topk(min(ARCS, n), -1).indices.sort(-1).values + n * rows[:, None]).flatten())
    return torch.cat(found)


def _better_arcs(matrix: Tensor, prices: Tensor, index: Tensor, rows: Tensor, least: float) -> Tensor:
    """Return arcs of `rows` that are worth more to them than those of `index`, by more than `least`."""
    n, margins = len(matrix), matrix[rows] - prices
    more = margins - margins.gather(-1, index[rows, None]) - least
    where = _not_negative(more)
    if len(where) > MOST * len(rows):
        return (rows[:, None] * n + more.topk(min(ARCS, n), -1).indices).flatten()
    return rows[where // n] * n + where % n
