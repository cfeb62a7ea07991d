"""Compiled assignment (numba): good prices first, then bids, then shortest paths for the rows that are left.

Everywhere `stack` holds matrices of gains in their own dtype, `prices` are float64, `index` is row -> column (-1: none)
and `owner` its inverse. The margin of a column is its gain less its price.
"""

from __future__ import annotations

import numpy as np

from onebasin.matching.compiled_paths import DENSE, augment, augment_sparsely
from onebasin.matching.compiled_prices import centre, scale_prices
from onebasin.matching.compiled_rows import INFINITY, Array, best_column, best_margin, chunks, compiled, two_best

# Shortest paths are fast as long as no larger share of the rows is without a column; else better prices come first.
# Up to the second share, they are found from those of the last assignment.
MISSING, MISSING_MOST = 0.3, 0.6
UNAIDED = 192  # problems of no more units are solved faster than better prices are found
# Rows without a column bid so many times over, with so many bids each. More leave less to the searches.
ROUNDS, BIDS = 3, 4
FEW = 24  # of a large matrix, so small a share of the rows is searched for faster than choosing columns takes
# Pairs are tight if they fall short of the best by no more than this share: the rounding of float64.
TIGHT = 1e-15


@compiled
def is_start(index: Array, prices: Array) -> bool:
    """Return whether the rows of every problem have different columns, and all prices are finite."""
    batch, n = index.shape
    for b in range(batch):
        taken = np.zeros(n, np.bool_)
        for i in range(n):
            column = index[b, i]
            if not 0 <= column < n or taken[column] or not np.isfinite(prices[b, i]):
                return False
            taken[column] = True
    return True


def are_finite(gains: Array) -> bool:
    """Return whether no value of a vector is infinite or NaN: else what is left of it by zero is NaN."""
    total = zero = gains.dtype.type(0)
    for gain in gains:
        total += gain * zero
    return bool(total == 0)


are_finite = compiled(are_finite, fastmath={"reassoc"})


@compiled
def values(stack: Array, index: Array) -> Array:
    """Return what each assignment is worth, summed in float64."""
    batch, n = index.shape
    total = np.zeros(batch)
    for b in range(batch):
        for i in range(n):
            total[b] += stack[b, i, index[b, i]]
    return total


@compiled
def bound(stack: Array, prices: Array, index: Array, reach: float, sample: int) -> None:
    """Cut prices off where gains would be lost in their rounding: `reach` times what is seen in `sample` rows or so."""
    batch, n = index.shape
    for b in range(batch):
        most = 0.0
        for i in range(n):
            most = max(most, reach * abs(stack[b, i, index[b, i]]))
        if np.abs(prices[b]).max() > most:
            for i in range(0, n, max(1, n // sample)):
                most = max(most, reach * np.abs(stack[b, i]).max())
            prices[b] = np.minimum(prices[b] - prices[b].min(), most)


@compiled
def solve(stack: Array, prices: Array, index: Array, is_near: bool) -> Array:
    """Find the best assignment of every problem in place; return its duality gap, proved by prices.

    `index` and `prices` are where to start from; with `is_near`, prices are those of similar gains. In the end they are
    in the middle of those that prove it (`centre`).
    """
    short = np.empty(len(stack))
    for b in range(len(stack)):
        short[b] = solve_one(stack[b], prices[b], index[b], is_near)
    return short


@compiled
def solve_one(matrix: Array, prices: Array, index: Array, is_near: bool) -> float:
    """Solve one problem, and return its duality gap."""
    n = index.shape[0]
    missing, short = first_pass(matrix, prices, index)
    if missing == 0:
        return short
    if missing > MISSING * n:
        is_far = not is_near or missing > MISSING_MOST * n
        if n > UNAIDED:
            scale_prices(matrix, prices, not is_far)
        elif is_far:
            prices[:] = 0
        index[:] = -1
        missing, short = first_pass(matrix, prices, index)
    complete(matrix, prices, index)
    return centre(matrix, prices, index)


@compiled
def first_pass(matrix: Array, prices: Array, index: Array) -> tuple[int, float]:
    """Keep the pairs of `index` that are tight, then let rows without one take a best column that is free.

    Returns how many rows have no column, and by how much the others fall short of their best. With all rows in place,
    that is the duality gap.
    """
    n, missing, short = index.shape[0], 0, 0.0
    asked, best, wish, tops = prices.copy(), np.empty(n), np.empty(n, np.int64), chunks(n)
    for i in range(n):  # a column that is taken has an infinite price in `asked`
        column = index[i]
        if column >= 0:
            best[i] = best_margin(matrix[i], prices)
            less = best[i] - (matrix[i, column] - prices[column])
            if less <= TIGHT * abs(best[i]) and asked[column] < INFINITY:
                asked[column], short = INFINITY, short + less
                continue
        index[i] = -1
        wish[i], best[i] = best_column(matrix[i], prices, tops)
    for i in range(n):
        if index[i] < 0:
            if asked[wish[i]] == INFINITY and best_margin(matrix[i], asked) == best[i]:
                wish[i], _ = best_column(matrix[i], asked, tops)
            if asked[wish[i]] < INFINITY:
                index[i], asked[wish[i]] = wish[i], INFINITY
            else:
                missing += 1
    return missing, short


@compiled
def complete(matrix: Array, prices: Array, index: Array) -> None:
    """Give every row a column, by bids and shortest paths, from pairs that are tight."""
    n = index.shape[0]
    free, owner = without_column(index)
    bid(free, matrix, prices, index, owner)
    if n > DENSE and len(free) > n // FEW:
        augment_sparsely(free, matrix, prices, index, owner)
        if len(free) > n // 8:  # prices that are worse than none
            prices[:], index[:] = 0.0, -1
            first_pass(matrix, prices, index)
            free, owner = without_column(index)
    augment(free, matrix, prices, index, owner)


@compiled
def without_column(index: Array) -> tuple[list[int], Array]:
    """Return the rows that have no column, and the row of each column."""
    owner = np.full(index.shape[0], -1, np.int64)
    for i in range(index.shape[0]):
        if index[i] >= 0:
            owner[index[i]] = i
    return [i for i in range(index.shape[0]) if index[i] < 0], owner


@compiled
def bid(free: list[int], matrix: Array, prices: Array, index: Array, owner: Array) -> None:
    """Let the rows `free` bid, a few times over (augmenting row reduction); those left without a column stay in it.

    A row takes its best column, and the price rises until the second best is as good; who had it bids in turn.
    """
    tops = chunks(index.shape[0])
    for _ in range(ROUNDS):
        bids, later = BIDS * len(free), [i for i in range(0)]
        while len(free) > 0:
            i = free.pop()
            column, best, second = two_best(matrix[i], prices, tops)
            loser = owner[column]
            if loser >= 0 and (best <= second or bids <= 0):
                later.append(i)
                continue
            bids -= 1
            if best > second > -INFINITY:
                prices[column] += best - second
            index[i], owner[column] = column, i
            if loser >= 0:
                index[loser] = -1
                free.append(loser)
        free.extend(later)
