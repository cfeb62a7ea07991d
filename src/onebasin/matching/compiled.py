"""Compiled shortest augmenting paths (numba), which look at a whole row only when a path depends on it.

Each row keeps its few best columns, and a bound on what any other column is worth to it. Prices only rise while paths
are searched, so the bound stays true: a search runs over the kept columns alone, and looks at the row again only when
it has come so far that another column could matter. So it is exact, without rounds and without a tolerance.

Everywhere `stack` holds matrices of gains in their own dtype, `prices` are float64, `index` is row -> column (-1: none)
and `owner` its inverse. The margin of a column is its gain less its price.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

import numpy as np

from onebasin.matching.compiled_rows import (
    INFINITY,
    LANES,
    Array,
    any_reaches,
    best_column,
    best_margin,
    compiled,
    nth_largest,
    two_best,
)

# Columns a row keeps, at least and at most. With good prices 8 to 16 are enough; more cost little.
LEAST, MOST = 12, 24
# Matrices up to this size are searched by whole rows, and larger ones once one of so many rows was in need of it.
DENSE, AGAIN = 768, 4
# Rows without a column bid so many times over, with so many bids each. More leave less to the searches.
ROUNDS, BIDS = 3, 4
# Pairs are tight if they fall short of the best by no more than this share: the rounding of float64.
TIGHT = 1e-15
CHUNK = 32  # and so many columns at once are checked for any that matters


# What rows keep: columns `Int[Array, "n most"]`, of which the first few count; what they are worth to the row; how many
# there are, 0 if the row has never been looked at; and a bound: no other column has a larger margin. A plain tuple, as
# a class would be looked for by name when an older version's compiled code is found on disk.
Kept = tuple[Array, Array, Array, Array]


@compiled
def first_pass(stack: Array, prices: Array, index: Array) -> tuple[Array, Array]:
    """Keep the pairs of `index` that are tight, then let rows without one take a best column that is free.

    Returns how many rows of each problem have no column, and by how much the others fall short of their best. With all
    rows in place, that is the duality gap.
    """
    batch, n = index.shape
    missing, short, top = np.zeros(batch, np.int64), np.zeros(batch), np.empty(LANES)
    best, wish = np.empty(n), np.empty(n, np.int64)
    for b in range(batch):
        asked = prices[b].copy()  # infinite if the column is taken
        for i in range(n):
            best[i] = best_margin(stack[b, i], prices[b], top)
            column = index[b, i]
            less = best[i] - (stack[b, i, column] - prices[b, column]) if column >= 0 else INFINITY
            if less <= TIGHT * abs(best[i]) and asked[column] < INFINITY:
                asked[column] = INFINITY
                short[b] += less
            else:
                index[b, i], wish[i] = -1, best_column(stack[b, i], prices[b], top, best[i])
        for i in range(n):
            if index[b, i] < 0:
                if asked[wish[i]] == INFINITY and best_margin(stack[b, i], asked, top) == best[i]:
                    wish[i] = best_column(stack[b, i], asked, top, best[i])
                if asked[wish[i]] < INFINITY:
                    index[b, i], asked[wish[i]] = wish[i], INFINITY
                else:
                    missing[b] += 1
    return missing, short


@compiled
def shortfalls(stack: Array, prices: Array, index: Array) -> Array:
    """Return by how much rows fall short of their best margin, summed: the duality gap of each problem."""
    batch, n = index.shape
    gap, top = np.zeros(batch), np.empty(LANES)
    for b in range(batch):
        for i in range(n):
            column = index[b, i]
            gap[b] += best_margin(stack[b, i], prices[b], top) - (stack[b, i, column] - prices[b, column])
    return gap


@compiled
def complete(stack: Array, prices: Array, index: Array) -> None:
    """Give every row of every problem a column, by bids and shortest paths, from pairs that are tight."""
    batch, n = index.shape
    most = min(MOST, n) if n > DENSE else 0
    number, outside = np.zeros(n, np.int64), np.empty(n)
    kept = np.empty((n, most), np.int64), np.empty((n, most)), number, outside
    for b in range(batch):
        free, owner = without_column(index[b])
        bid(free, stack[b], prices[b], index[b], owner)
        if n > DENSE:
            number[:], outside[:] = 0, INFINITY
            augment(free, stack[b], prices[b], index[b], owner, kept)
            if len(free) > n // 8:  # prices that are worse than none
                prices[b], index[b] = 0.0, -1
                first_pass(stack[b : b + 1], prices[b : b + 1], index[b : b + 1])
                free, owner = without_column(index[b])
        augment_densely(free, stack[b], prices[b], index[b], owner)


@compiled
def without_column(index: Array) -> tuple[list[int], Array]:
    """Return the rows that have no column, and the row of each column."""
    owner = np.full(index.shape[0], -1, np.int64)
    for i in range(index.shape[0]):
        if index[i] >= 0:
            owner[index[i]] = i
    return [i for i in range(index.shape[0]) if index[i] < 0], owner


@compiled
def look_again(i: int, row: Array, prices: Array, kept: Kept) -> None:
    """Choose the columns that row i keeps: the best at these prices, LEAST of them or more."""
    columns, worth, number, outside = kept[0][i], kept[1][i], kept[2], kept[3]
    n, most = row.shape[0], columns.shape[0]
    top, margins = np.empty(LANES), np.empty(most)
    best_margin(row, prices, top)
    floor = nth_largest(top[: min(n, LANES)], LEAST) if n > most else -INFINITY
    count, worst = 0, 0
    for start in range(0, n, CHUNK):
        gains, paid = row[start : start + CHUNK], prices[start : start + CHUNK]
        if not any_reaches(gains, paid, floor):
            continue
        for at in range(gains.shape[0]):
            margin = gains[at] - paid[at]
            if count < most and margin >= floor:
                margins[count], columns[count] = margin, start + at
                count += 1
            elif count == most and margin > floor:
                margins[worst], columns[worst] = margin, start + at
            else:
                continue
            if count == most:
                worst = int(np.argmin(margins))
                floor = margins[worst]
    for k in range(count):
        worth[k] = row[columns[k]]
    number[i], outside[i] = count, floor


@compiled
def best_kept(i: int, row: Array, prices: Array, kept: Kept) -> float:
    """Return the largest margin of row i, from the columns it keeps as long as no other can be better."""
    columns, gains, number, outside = kept
    while True:
        best = -INFINITY
        for k in range(number[i]):
            margin = gains[i, k] - prices[columns[i, k]]
            best = margin if margin > best else best
        if best >= outside[i]:
            return best
        look_again(i, row, prices, kept)


@compiled
def bid(free: list[int], matrix: Array, prices: Array, index: Array, owner: Array) -> None:
    """Let the rows `free` bid, a few times over (augmenting row reduction); those left without a column stay in it.

    A row takes its best column, and the price rises until the second best is as good; who had it bids in turn.
    """
    top, then = np.empty(LANES), np.empty(LANES)
    for _ in range(ROUNDS):
        bids, later = BIDS * len(free), [i for i in range(0)]
        while len(free) > 0:
            i = free.pop()
            column, best, second = two_best(matrix[i], prices, top, then)
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


@compiled
def augment(free: list[int], matrix: Array, prices: Array, index: Array, owner: Array, kept: Kept) -> None:
    """Take rows from `free` and give each a column, until none is left or too many rows had to be looked at again.

    It is found along the shortest path to a free column (Dijkstra); prices rise on the way. An arc is as long as what
    its row loses by it. On the heap lie the columns that were reached, and -1 - i for rows i that are to be looked at
    again at that length. `level` of a row is its own length and its best margin.
    """
    columns, gains, number, outside = kept
    n, again = index.shape[0], 0
    distance, before, done, level = np.full(n, INFINITY), np.empty(n, np.int64), np.zeros(n, np.bool_), np.empty(n)
    while len(free) > 0 and again <= n // AGAIN:
        start = free.pop()
        heap, reached = [(0.0, -1)], [j for j in range(0)]
        heap.pop()
        end, shortest, i = -1, INFINITY, start
        level[start] = best_kept(start, matrix[start], prices, kept)
        while i >= 0:
            for k in range(number[i]):
                column = columns[i, k]
                length = level[i] - (gains[i, k] - prices[column])
                if length < shortest and length < distance[column] and not done[column]:
                    if distance[column] == INFINITY:
                        reached.append(column)
                    distance[column], before[column] = length, i
                    if owner[column] < 0:
                        end, shortest = column, length
                    else:
                        heappush(heap, (length, column))
            if level[i] - outside[i] < shortest:
                heappush(heap, (level[i] - outside[i], -1 - i))
            i = -1
            while i < 0 and len(heap) > 0 and heap[0][0] < shortest:
                length, column = heappop(heap)
                if column < 0:
                    row = -1 - column
                    look_again(row, matrix[row], prices, kept)
                    again += 1
                    search = distance, before, done, level, reached, heap
                    end, shortest = relax_all(row, matrix[row], prices, owner, search, end, shortest)
                elif length == distance[column] and not done[column]:
                    i, done[column] = owner[column], True
                    level[i] = length + (matrix[i, column] - prices[column])
                    if number[i] == 0:
                        look_again(i, matrix[i], prices, kept)
        for column in reached:
            if done[column]:
                prices[column] += shortest - distance[column]
            distance[column], done[column] = INFINITY, False
        while end >= 0:
            i = before[end]
            owner[end] = i
            index[i], end = end, index[i]


@compiled
def relax_all(
    i: int, row: Array, prices: Array, owner: Array, search: Any, end: int, shortest: float
) -> tuple[int, float]:
    """Follow the arcs of row i to all columns; return the nearest free column so far, and how far it is."""
    distance, before, done, level, reached, heap = search
    for start in range(0, row.shape[0], CHUNK):
        gains, paid, known = row[start : start + CHUNK], prices[start : start + CHUNK], distance[start : start + CHUNK]
        found = 0
        for at in range(gains.shape[0]):
            length = level[i] - (gains[at] - paid[at])
            found |= (length < shortest) & (length < known[at])
        for at in range(gains.shape[0] if found else 0):
            length, column = level[i] - (gains[at] - paid[at]), start + at
            if length < shortest and length < known[at] and not done[column]:
                if known[at] == INFINITY:
                    reached.append(column)
                known[at], before[column] = length, i
                if owner[column] < 0:
                    end, shortest = column, length
                else:
                    heappush(heap, (length, column))
    return end, shortest


@compiled
def augment_densely(free: list[int], matrix: Array, prices: Array, index: Array, owner: Array) -> None:
    """Give each free row a column: along the shortest path to a free one (Dijkstra); prices rise on the way.

    A step goes to the nearest open column, and on from the row that has it. `barred` is infinite for closed columns.
    """
    n = index.shape[0]
    distance, barred, before = np.empty(n), np.empty(n), np.empty(n, np.int64)
    top, closed = np.empty(LANES), np.empty(n, np.int64)
    for start in free:
        distance[:], barred[:] = INFINITY, 0.0
        i, level, count, end = start, 0.0, 0, -1
        while True:
            nearest = relax_row(i, level, matrix[i], prices, distance, barred, before, top)
            end = nearest_column(nearest, distance, barred, owner, top)
            if owner[end] < 0:
                break
            closed[count], barred[end] = end, INFINITY
            count += 1
            i = owner[end]
            level = nearest + (matrix[i, end] - prices[end])
        for k in range(count):
            prices[closed[k]] += nearest - distance[closed[k]]
        while end >= 0:
            i = before[end]
            owner[end] = i
            index[i], end = end, index[i]


@compiled
def relax_row(
    i: int, level: float, row: Array, prices: Array, distance: Array, barred: Array, before: Array, top: Array
) -> float:
    """Follow the arcs of row i; fill `top` with the shortest distance of each lane, and return the shortest of all."""
    n = row.shape[0]
    width = min(n, LANES)
    top[:width] = INFINITY
    for start in range(0, n, LANES):
        gains, paid, known = row[start : start + LANES], prices[start : start + LANES], distance[start : start + LANES]
        bar, came = barred[start : start + LANES], before[start : start + LANES]
        for lane in range(gains.shape[0]):
            length = level - (gains[lane] - paid[lane]) + bar[lane]
            shorter = length < known[lane]
            length = length if shorter else known[lane]
            known[lane] = length
            came[lane] = i if shorter else came[lane]
            length += bar[lane]
            top[lane] = length if length < top[lane] else top[lane]
    nearest = top[0]
    for lane in range(1, width):
        nearest = top[lane] if top[lane] < nearest else nearest
    return nearest


@compiled
def nearest_column(nearest: float, distance: Array, barred: Array, owner: Array, top: Array) -> int:
    """Return an open column at distance `nearest`, a free one if there is one, just after `relax_row` filled `top`."""
    n, found = distance.shape[0], -1
    for lane in range(min(LANES, n)):
        if top[lane] == nearest:
            for column in range(lane, n, LANES):
                if distance[column] == nearest and barred[column] == 0:
                    found = column
                    if owner[column] < 0:
                        return column
    return found
