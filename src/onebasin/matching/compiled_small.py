"""Compiled assignment of small problems (numba): one call for a whole stack, as calls cost more than such problems.

Names are those of `compiled.py`. With few units, whole rows are searched at once: nothing is gained by prices first.
"""

from __future__ import annotations

import numpy as np

from onebasin.matching.compiled import bid, bits_of, largest_by_bits
from onebasin.matching.compiled_paths import augment
from onebasin.matching.compiled_prices import centre
from onebasin.matching.compiled_rows import INFINITY, TIGHT, TINY, Array, compiled, inlined, inside, larger

bid_here, augment_here, centre_here = inside(bid), inside(augment), inside(centre)


def solve_stack(stack: Array, index: Array, prices: Array, most: float) -> Array:
    """Do what `compiled.solve_stack` does, for problems of some dozens of units."""
    return solve_each(stack, bits_of(stack), index, prices, most)


@compiled
def solve_each(stack: Array, bits: Array, index: Array, prices: Array, most: float) -> Array:
    """Solve one problem after the other in place; `bits` are those of `stack`."""
    batch, n = index.shape
    found, largest = np.zeros((3, batch)), np.empty(n, bits.dtype)
    for b in range(batch):
        matrix, columns, paid = stack[b], index[b], prices[b]
        for i in range(n):
            largest[i] = largest_by_bits(bits[b, i])
        for size in largest.view(matrix.dtype):
            found[0, b] += size
        if found[0, b] <= most:
            first_columns(matrix, paid, columns)
            bid_here(matrix, paid, columns)
            augment_here(matrix, paid, columns)
            found[1, b] = centre_here(matrix, paid, columns) / max(found[0, b], TINY)
            for i in range(n):
                found[2, b] += matrix[i, columns[i]]
    return found


@inlined
def first_columns(matrix: Array, prices: Array, index: Array) -> None:
    """Keep the pairs of `index` that are tight, then let rows without one take a best column that is free."""
    n = len(index)
    best, is_taken = np.empty(n), np.zeros(n, np.bool_)
    for i in range(n):
        row, top, own = matrix[i], -INFINITY, index[i]
        for column in range(n):
            top = larger(top, row[column] - prices[column])
        best[i] = top
        if own >= 0:
            if top - (row[own] - prices[own]) <= TIGHT * abs(top):
                is_taken[own] = True
            else:
                index[i] = -1
    for i in range(n):
        for column in range(n if index[i] < 0 else 0):
            if not is_taken[column] and matrix[i, column] - prices[column] == best[i]:
                index[i], is_taken[column] = column, True
                break
