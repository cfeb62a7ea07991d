"""Compiled passes over tensors (numba) that torch makes several of: each reads and writes what it must, and once."""

from __future__ import annotations

import numpy as np

from onebasin.matching.compiled_rows import Array, compiled, inlined

# What is transposed at a time stays in the cache: so many rows of so many columns.
ROWS, COLUMNS = 64, 64
NARROW = 16  # so few columns are copied one by one
REORDERED = {"reassoc", "nsz", "contract"}  # sums may be taken in any order, and so in vectors


def dots(x: Array, y: Array) -> tuple[float, float, float]:
    """Return x.y, x.x and y.y of two vectors, multiplied and summed in float64."""
    both = first = second = 0.0
    for at in range(x.shape[0]):
        a, b = np.float64(x[at]), np.float64(y[at])
        both, first, second = both + a * b, first + a * a, second + b * b
    return both, first, second


def dot_in_order(x: Array, y: Array, rows: Array, columns: Array) -> float:
    """Return the sum of `x[i, j] * y[rows[i], columns[j]]`, multiplied and summed in float64."""
    total, row = 0.0, np.empty(y.shape[1], y.dtype)
    for i in range(x.shape[0]):
        one = x[i]
        read(y[rows[i]], row)
        for j in range(row.shape[0]):
            total += np.float64(one[j]) * np.float64(row[columns[j]])
    return total


def squares(x: Array) -> Array:
    """Return the sum of squares of every column, in float64."""
    total = np.zeros(x.shape[1])
    for i in range(x.shape[0]):
        row = x[i]
        for at in range(row.shape[0]):
            total[at] += np.float64(row[at]) * np.float64(row[at])
    return total


dots, squares = compiled(dots, fastmath=REORDERED), compiled(squares, fastmath=REORDERED)
dot_in_order = compiled(dot_in_order, fastmath=REORDERED)


@compiled
def transpose_all(x: Array, out: Array) -> None:
    """Write the columns of every matrix of a stack into the rows of `out`."""
    for number in range(len(x)):
        one, other = x[number], out[number]
        if len(other) > NARROW:
            transpose(one, other)
        else:
            for at in range(len(other)):
                row = other[at]
                for i in range(row.shape[0]):
                    row[i] = one[i, at]


@inlined
def transpose(x: Array, out: Array) -> None:
    """Write the columns of a matrix into the rows of `out`."""
    n, m = x.shape
    tile = np.empty((ROWS, COLUMNS), x.dtype)
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
def difference_of_columns(x: Array, now: Array, before: Array) -> Array:
    """Return `x[:, now] - x[:, before]`, the last axis beside the columns."""
    n, m, width = x.shape
    out, row = np.empty((n, len(now), width), x.dtype), np.empty((m, width), x.dtype)
    for i in range(n):
        read(x[i], row)
        difference = out[i]
        if width == 1:
            for k in range(len(now)):
                difference[k, 0] = row[now[k], 0] - row[before[k], 0]
        else:
            for k in range(len(now)):
                new, old, one = row[now[k]], row[before[k]], difference[k]
                for at in range(width):
                    one[at] = new[at] - old[at]
    return out


@inlined
def read(x: Array, into: Array) -> None:
    """Copy an array into the cache, in order: values are then read in any other two to three times as fast."""
    source, target = x.reshape(-1), into.reshape(-1)
    for at in range(target.shape[0]):
        target[at] = source[at]


@compiled
def change_of_rows(a: Array, b: Array, units: Array, to: Array, was: Array, source: Array) -> float:
    """Return the sum over i, j of `a[units[i], j] . (b[to[i], source[j]] - b[was[i], source[j]])`, in float64."""
    total = 0.0
    for i in range(len(units)):
        left, new, old = a[units[i]], b[to[i]], b[was[i]]
        for j in range(left.shape[0]):
            column = source[j]
            for at in range(left.shape[1]):
                total += np.float64(left[j, at]) * (np.float64(new[column, at]) - np.float64(old[column, at]))
    return total


@compiled
def change_of_columns(a: Array, b: Array, units: Array, to: Array, was: Array, source: Array) -> float:
    """Do `change_of_rows` where units lie along the last axis."""
    total = 0.0
    for j in range(a.shape[0]):
        for at in range(a.shape[1]):
            left, right = a[j, at], b[source[j], at]
            for i in range(len(units)):
                total += np.float64(left[units[i]]) * (np.float64(right[to[i]]) - np.float64(right[was[i]]))
    return total


@compiled
def change_of_sum(x: Array, was: Array, now: Array) -> tuple[float, float]:
    """Return the sum over i of `x[i, now[i]] - x[i, was[i]]` in float64, and that of |.| + |.| where they differ."""
    total = size = 0.0
    for i in range(x.shape[0]):
        if now[i] != was[i]:
            taken, left = np.float64(x[i, now[i]]), np.float64(x[i, was[i]])
            total, size = total + (taken - left), size + (abs(taken) + abs(left))
    return total, size
