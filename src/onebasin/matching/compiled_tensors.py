"""Compiled passes over tensors (numba) that torch makes several of: each reads and writes what it must, and once."""

from __future__ import annotations

import numpy as np

from onebasin.matching.compiled_rows import Array, compiled

# What is transposed at a time stays in the cache: so many rows, of as many columns as a line of the cache holds.
ROWS, COLUMNS = 64, 16
REORDERED = {"reassoc", "nsz", "contract"}  # sums may be taken in any order, and so in vectors


def dot(x: Array, y: Array) -> float:
    """Return the sum of products of two vectors, multiplied and summed in float64."""
    total = 0.0
    for at in range(x.shape[0]):
        total += np.float64(x[at]) * np.float64(y[at])
    return total


def squares(x: Array) -> Array:
    """Return the sum of squares of every column, in float64."""
    total = np.zeros(x.shape[1])
    for i in range(x.shape[0]):
        row = x[i]
        for at in range(row.shape[0]):
            total[at] += np.float64(row[at]) * np.float64(row[at])
    return total


dot, squares = compiled(dot, fastmath=REORDERED), compiled(squares, fastmath=REORDERED)


@compiled
def transposed(x: Array) -> Array:
    """Copy the columns of a matrix into rows."""
    n, m = x.shape
    out, tile = np.empty((m, n), x.dtype), np.empty((ROWS, COLUMNS), x.dtype)
    for first in range(0, n, ROWS):
        height = min(ROWS, n - first)
        for start in range(0, m, COLUMNS):
            width = min(COLUMNS, m - start)
            for i in range(height):
                row, kept = x[first + i, start : start + width], tile[i]
                for j in range(width):
                    kept[j] = row[j]
            for j in range(width):
                column = out[start + j, first : first + height]
                for i in range(height):
                    column[i] = tile[i, j]
    return out


@compiled
def difference_of_rows(x: Array, now: Array, before: Array) -> Array:
    """Return `x[now] - x[before]` of a matrix."""
    out = np.empty((len(now), x.shape[1]), x.dtype)
    for k in range(len(now)):
        new, old, row = x[now[k]], x[before[k]], out[k]
        for at in range(row.shape[0]):
            row[at] = new[at] - old[at]
    return out


@compiled
def change_of_sum(x: Array, was: Array, now: Array) -> tuple[float, float]:
    """Return the sum over i of `x[i, now[i]] - x[i, was[i]]` in float64, and that of |.| + |.| where they differ."""
    total = size = 0.0
    for i in range(x.shape[0]):
        if now[i] != was[i]:
            taken, left = np.float64(x[i, now[i]]), np.float64(x[i, was[i]])
            total, size = total + (taken - left), size + (abs(taken) + abs(left))
    return total, size
