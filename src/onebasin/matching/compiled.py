"""Compiled assignment (numba): good prices first, then bids, then shortest paths for the rows that are left.

Everywhere `stack` holds matrices of gains in their own dtype, `prices` are float64, `index` is row -> column (-1: none)
and `owner` its inverse; `todo` numbers the problems to look at. The margin of a column is its gain less its price.
"""

from __future__ import annotations

import numpy as np

from onebasin.matching.compiled_paths import DENSE, augment, augment_sparsely, without_column
from onebasin.matching.compiled_prices import centre, scale_prices
from onebasin.matching.compiled_rows import (
    INFINITY,
    Array,
    best_column,
    best_margin,
    chunks,
    compiled,
    inlined,
    two_best,
)

# Shortest paths are fast as long as no larger share of the rows is without a column; else better prices come first.
# Up to the second share, they are found from those of the last assignment.
MISSING, MISSING_MOST = 0.25, 0.6
UNAIDED = 192  # problems of no more units are solved faster than better prices are found
# Rows without a column bid so many times over, with so many bids each. More leave less to the searches.
ROUNDS, BIDS = 3, 4
FEW = 24  # of a large matrix, so small a share of the rows is searched for faster than choosing columns takes
MANY = 8  # prices that leave a larger share of the rows without a column after a search are worse than none
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
        size = most = 0.0
        lowest = INFINITY
        for i in range(n):
            most = max(most, reach * abs(stack[b, i, index[b, i]]))
            size, lowest = max(size, abs(prices[b, i])), min(lowest, prices[b, i])
        if size > most:
            for i in range(0, n, max(1, n // sample)):
                for gain in stack[b, i]:
                    most = max(most, reach * abs(gain))
            for i in range(n):
                prices[b, i] = min(prices[b, i] - lowest, most)


def solve(stack: Array, prices: Array, index: Array, is_near: bool) -> Array:
    """Find the best assignment of every problem in place; return its duality gap, proved by prices.

    `index` and `prices` are where to start from; with `is_near`, prices are those of similar gains. In the end they are
    in the middle of those that prove it (`centre`). Each step is compiled by itself when it is first needed.
    """
    problems = stack, prices, index
    missing, short = first_pass(np.arange(len(stack)), *problems)
    todo = np.flatnonzero(missing)
    if len(todo) > 0:
        start_anew(missing, *problems, is_near)
        bid(todo, *problems)
        if index.shape[1] > DENSE:
            search_sparsely(todo, *problems)
        augment(todo, *problems)
        short[todo] = centre(todo, *problems)
    return short


def start_anew(missing: Array, stack: Array, prices: Array, index: Array, is_near: bool) -> None:
    """Solve the problems from better prices whose prices leave too many rows without a column."""
    n, todo = index.shape[1], np.flatnonzero(missing > MISSING * index.shape[1])
    if len(todo) == 0:
        return
    is_far = missing > (MISSING_MOST if is_near else MISSING) * n
    if n > UNAIDED:
        for b in todo:
            scale_prices(stack[b], prices[b], not is_far[b])
    else:
        prices[is_far] = 0
    index[todo] = -1
    first_pass(todo, stack, prices, index)


def search_sparsely(todo: Array, stack: Array, prices: Array, index: Array) -> None:
    """Look for shortest paths over a few columns of each row where many rows are without one."""
    n = index.shape[1]
    for b in todo:
        if np.count_nonzero(index[b] < 0) > n // FEW:
            augment_sparsely(stack[b], prices[b], index[b])
            if np.count_nonzero(index[b] < 0) > n // MANY:
                prices[b], index[b] = 0, -1
                first_pass(np.array([b]), stack, prices, index)


@compiled
def first_pass(todo: Array, stack: Array, prices: Array, index: Array) -> tuple[Array, Array]:
    """Keep the pairs of `index` that are tight, then let rows without one take a best column that is free.

    Returns how many rows of each problem have no column, and by how much the others fall short of their best. With all
    rows in place, that is the duality gap.
    """
    missing, short = np.zeros(len(todo), np.int64), np.zeros(len(todo))
    for at in range(len(todo)):
        b = todo[at]
        missing[at], short[at] = first_pass_one(stack[b], prices[b], index[b])
    return missing, short


@inlined
def first_pass_one(matrix: Array, prices: Array, index: Array) -> tuple[int, float]:
    """Do `first_pass` for one problem."""
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
def bid(todo: Array, stack: Array, prices: Array, index: Array) -> None:
    """Let rows without a column bid, a few times over (augmenting row reduction); some are left without.

    A row takes its best column, and the price rises until the second best is as good; who had it bids in turn.
    """
    for b in todo:
        bid_one(stack[b], prices[b], index[b])


@inlined
def bid_one(matrix: Array, prices: Array, index: Array) -> None:
    """Do `bid` for one problem."""
    free, owner = without_column(index)
    later, tops, count = free.copy(), chunks(index.shape[0]), len(free)
    for _ in range(ROUNDS):
        bids, outbid = BIDS * count, 0
        while count > 0:
            i = free[count - 1]
            column, best, second = two_best(matrix[i], prices, tops)
            loser = owner[column]
            if loser >= 0 and (best <= second or bids <= 0):
                later[outbid] = i
                outbid, count = outbid + 1, count - 1
                continue
            bids -= 1
            if best > second > -INFINITY:
                prices[column] += best - second
            index[i], owner[column] = column, i
            if loser >= 0:
                index[loser] = -1
                free[count - 1] = loser
            else:
                count -= 1
        free, later, count = later, free, outbid
