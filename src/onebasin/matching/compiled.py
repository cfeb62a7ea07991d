"""Compiled assignment (numba): good prices first, then bids, then shortest paths for the rows that are left.

Everywhere `matrix` holds gains in their own dtype (a `stack` several), `prices` are float64, `index` is row -> column
(-1: none) and `owner` its inverse. The margin of a column is its gain less its price.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onebasin.matching.compiled_paths import DENSE, augment, augment_sparsely, without_column
from onebasin.matching.compiled_prices import centre, scale_prices
from onebasin.matching.compiled_rows import (
    INFINITY,
    TIGHT,
    TINY,
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


def bits_of(stack: Array) -> Array:
    """Return the bits of float32 or float64 as integers, which `largest_by_bits` compares."""
    return stack.view(np.int32 if stack.itemsize == 4 else np.int64)


@inlined
def largest_by_bits(bits: Array) -> Any:
    """Return the bits of the largest absolute gain of a row; of NaN, if there is one.

    But for the sign, the bits of a larger number are larger, and of NaN largest. Maxima of integers are found in
    vectors, those of numbers that may be NaN are not.
    """
    top, mask = bits.dtype.type(0), bits.dtype.type(np.iinfo(bits.dtype).max)
    for column in range(bits.shape[0]):
        top = max(top, bits[column] & mask)
    return top


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


def solve_stack(stack: Array, index: Array, prices: Array, most: float, is_near: bool) -> Array:
    """Find the best assignments of a stack in place.

    Returns the size of each matrix (the sum over rows of the largest absolute gain), the duality gap as a share of it,
    and the value. Of a matrix whose size is not finite, or above `most`, nothing but the size is found. For the rest
    see `solve`.
    """
    found = np.zeros((3, len(stack)))
    for b, problem in enumerate(zip(stack, prices, index, strict=True)):
        found[0, b], found[1, b] = solve(*problem, most, is_near)
    if (found[0] <= most).all():
        found[1] /= np.maximum(found[0], TINY)
        found[2] = values(stack, index)
    return found


def solve(matrix: Array, prices: Array, index: Array, most: float, is_near: bool) -> tuple[float, float]:
    """Find the best assignment of one problem in place; return its size and duality gap, proved by prices.

    `index` and `prices` are where to start from; with `is_near`, prices are those of similar gains. In the end they are
    in the middle of those that prove it (`centre`). Each step is compiled by itself when it is first needed.
    """
    problem, n = (matrix, prices, index), len(index)
    size, missing, short = first_pass(*problem, bits_of(matrix), most)
    if missing == 0 or not size <= most:
        return size, short
    if missing > MISSING * n:
        is_far = not is_near or missing > MISSING_MOST * n
        if n > UNAIDED:
            scale_prices(matrix, prices, not is_far)
        elif is_far:
            prices[:] = 0
        start_anew(*problem)
    bid(*problem)
    if n > DENSE:
        search_sparsely(*problem)
    augment(*problem)
    return size, centre(*problem)


def start_anew(matrix: Array, prices: Array, index: Array) -> None:
    """Let all rows take a best column that is free."""
    index[:] = -1
    first_pass(matrix, prices, index, bits_of(matrix[:0]), INFINITY)


def search_sparsely(matrix: Array, prices: Array, index: Array) -> None:
    """Look for shortest paths over a few columns of each row if many rows are without one."""
    n = len(index)
    if len(without_column(index)[0]) > n // FEW:
        augment_sparsely(matrix, prices, index)
        if len(without_column(index)[0]) > n // MANY:
            prices[:] = 0
            start_anew(matrix, prices, index)


@compiled
def first_pass(matrix: Array, prices: Array, index: Array, bits: Array, most: float) -> tuple[float, int, float]:
    """Keep the pairs of `index` that are tight, then let rows without one take a best column that is free.

    Returns the size of the matrix, if its `bits` are given; how many rows have no column, and by how much the others
    fall short of their best. With all rows in place, that is the duality gap. Of a matrix whose size is not finite, or
    above `most`, nothing but the size is found.
    """
    n, missing, short, size = index.shape[0], 0, 0.0, 0.0
    asked, best, wish, tops = prices.copy(), np.empty(n), np.empty(n, np.int64), chunks(n)
    largest = np.empty(1, bits.dtype)
    for i in range(n):  # a column that is taken has an infinite price in `asked`
        if bits.shape[0] > 0:
            largest[0] = largest_by_bits(bits[i])
            size += largest.view(matrix.dtype)[0]
            if not size <= most:  # only the size is still asked for
                continue
        column = index[i]
        if column >= 0:
            best[i] = best_margin(matrix[i], prices)
            less = best[i] - (matrix[i, column] - prices[column])
            if less <= TIGHT * abs(best[i]) and asked[column] < INFINITY:
                asked[column], short = INFINITY, short + less
                continue
        index[i] = -1
        wish[i], best[i] = best_column(matrix[i], prices, tops)
    for i in range(n if size <= most else 0):
        if index[i] < 0:
            if asked[wish[i]] == INFINITY and best_margin(matrix[i], asked) == best[i]:
                wish[i], _ = best_column(matrix[i], asked, tops)
            if asked[wish[i]] < INFINITY:
                index[i], asked[wish[i]] = wish[i], INFINITY
            else:
                missing += 1
    return size, missing, short


@compiled
def bid(matrix: Array, prices: Array, index: Array) -> None:
    """Let rows without a column bid, a few times over (augmenting row reduction); some are left without.

    A row takes its best column, and the price rises until the second best is as good; who had it bids in turn.
    """
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
