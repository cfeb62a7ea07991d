"""Compiled shortest augmenting paths (numba): every row is given a column, and prices that prove it stay right.

`matrix` holds gains in their own dtype, `prices` are float64, `index` is row -> column (-1: none) and `owner` its
inverse. The margin of a column is its gain less its price. An arc from a row to a column is as long as what the row
loses by it. Rows that have a column have one of their best.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

import numpy as np

from onebasin.matching.compiled_rows import CHUNK, INFINITY, Array, best_of_chunks, chunks, compiled, inlined, smaller

# Columns a row keeps, at least and at most. With good prices 8 to 16 are enough; more cost little.
LEAST, MOST = 12, 24
# Matrices up to this size are searched by whole rows. Larger ones are when rows were looked at again so many times as
# there are rows: that costs a pass over the matrix or two, and a search by whole rows can cost hundreds of rows.
DENSE = 768
STRIP = 64  # columns whose nearest is noted together


# What rows keep: columns `Int[Array, "n most"]`, of which the first few count; what they are worth to the row; how many
# there are, 0 if the row has never been looked at; and a bound: no other column has a larger margin. A plain tuple, as
# a class would be looked for by name when an older version's compiled code is found on disk.
Kept = tuple[Array, Array, Array, Array]


@compiled
def augment(matrix: Array, prices: Array, index: Array) -> None:
    """Give a column to each row that has none.

    It is found along the shortest path to a free column (Dijkstra): a step goes to the nearest open column, and on from
    the row that has it. Prices rise on the way. What is known of closed columns is infinite, and so is their price.
    """
    n, (free, owner) = index.shape[0], without_column(index)
    known, paid, (spare, _) = np.empty(n), np.empty(n), without_column(owner)
    rows, levels = np.empty(n, np.int64), np.empty(n)
    closed, far = np.empty(n, np.int64), np.empty(n)
    for left in range(len(free), 0, -1):
        i, level, count = free[-left], 0.0, 0
        for column in range(n):
            known[column], paid[column] = INFINITY, prices[column]
        while True:
            rows[count], levels[count] = i, level
            end, nearest = relax(level, matrix[i], paid, known)
            for k in range(left):
                if known[spare[k]] == nearest:
                    end, last = spare[k], k
            closed[count], far[count] = end, nearest
            i = owner[end]
            if i < 0:
                break
            known[end] = paid[end] = INFINITY
            count += 1
            level = nearest + (matrix[i, end] - prices[end])
        spare[last] = spare[left - 1]
        follow_back(count, matrix, prices, index, owner, (rows, levels, closed, far))
        for k in range(count):
            prices[closed[k]] += nearest - far[k]


@compiled
def without_column(index: Array) -> tuple[Array, Array]:
    """Return the rows that have no column, and the row of each column."""
    n, count = index.shape[0], 0
    free, owner = np.empty(n, np.int64), np.full(n, -1, np.int64)
    for i in range(n):
        if index[i] < 0:
            free[count] = i
            count += 1
        else:
            owner[index[i]] = i
    return free[:count], owner


@inlined
def follow_back(count: int, matrix: Array, prices: Array, index: Array, owner: Array, search: Any) -> None:
    """Give the rows on the path to the last closed column the columns by which they are left.

    From which row a column was reached is found again by its length: to note it at every arc would take twice as long.
    """
    rows, levels, closed, far = search
    while count >= 0:
        column, length = closed[count], far[count]
        step = 0
        while levels[step] - (matrix[rows[step], column] - prices[column]) != length:
            step += 1
        owner[column], index[rows[step]] = rows[step], column
        count = step - 1


@compiled
def relax(level: float, row: Array, paid: Array, known: Array) -> tuple[int, float]:
    """Follow the arcs of a row to all columns, and return the nearest one, and how far it is."""
    n, at, nearest = row.shape[0], 0, INFINITY
    for start in range(0, n, STRIP):
        gains, prices, lengths = row[start : start + STRIP], paid[start : start + STRIP], known[start : start + STRIP]
        least = INFINITY
        for lane in range(gains.shape[0]):
            length = smaller(lengths[lane], level - (gains[lane] - prices[lane]))
            lengths[lane] = length
            least = smaller(least, length)
        if least < nearest:
            at, nearest = start, least
    while known[at] != nearest:
        at += 1
    return at, nearest


@compiled
def augment_sparsely(matrix: Array, prices: Array, index: Array) -> None:
    """Do what `augment` does, looking at a whole row only where a path depends on it.

    Each row keeps its few best columns, and a bound on what any other is worth to it. Prices only rise, so the bound
    stays true: a search runs over the kept columns alone, and looks at the row again only when it has come so far that
    another column could matter. So it is exact, without rounds and without a tolerance. It leaves rows without a column
    if too many had to be looked at again.

    On the heap lie the columns that were reached, and -1 - i for rows i that are to be looked at again at that length.
    `level` of a row is its own length and its best margin.
    """
    n, most, again, (free, owner) = index.shape[0], min(MOST, index.shape[0]), 0, without_column(index)
    kept = np.empty((n, most), np.int64), np.empty((n, most)), np.zeros(n, np.int64), np.full(n, INFINITY)
    columns, gains, number, outside = kept
    distance, before, done, level = np.full(n, INFINITY), np.empty(n, np.int64), np.zeros(n, np.bool_), np.empty(n)
    for start in free:
        if again > n:
            break
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
        i = -1
        while i != start:
            i = before[end]
            owner[end] = i
            index[i], end = end, index[i]


@inlined
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
def look_again(i: int, row: Array, prices: Array, kept: Kept) -> None:
    """Choose the columns that row i keeps: the best at these prices, LEAST of them or more."""
    columns, worth, number, outside = kept[0][i], kept[1][i], kept[2], kept[3]
    n, most, tops = row.shape[0], columns.shape[0], chunks(row.shape[0])
    best_of_chunks(row, prices, tops)
    floor = nth_largest(tops, LEAST) if len(tops) > LEAST else -INFINITY
    count, worst, margins = 0, 0, np.empty(most)
    for chunk in range(tops.shape[0]):
        if tops[chunk] < floor:
            continue
        for column in range(chunk * CHUNK, min((chunk + 1) * CHUNK, n)):
            margin = row[column] - prices[column]
            if count < most and margin >= floor:
                margins[count], columns[count] = margin, column
                count += 1
            elif count == most and margin > floor:
                margins[worst], columns[worst] = margin, column
            else:
                continue
            if count == most:
                worst = int(np.argmin(margins))
                floor = margins[worst]
    for k in range(count):
        worth[k] = row[columns[k]]
    number[i], outside[i] = count, floor


@inlined
def nth_largest(values: Array, nth: int) -> float:
    """Return the `nth` largest of more than `nth` values."""
    largest = np.full(nth, -INFINITY)
    for value in values:
        at = nth - 1
        if value > largest[at]:
            while at > 0 and largest[at - 1] < value:
                largest[at] = largest[at - 1]
                at -= 1
            largest[at] = value
    return largest[nth - 1]


@inlined
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
