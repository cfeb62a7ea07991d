"""Compiled prices of columns (numba): good ones to start from, and the middle of those that prove an assignment."""

from __future__ import annotations

import math

import numpy as np

from onebasin.matching.compiled_rows import INFINITY, Array, chunks, compiled, larger, smaller, two_best

# Temperatures as shares of the mean gap between the best and the second best column; iterations at each; rows that the
# gap is measured on. From prices that were right for similar gains, only the last temperature is taken.
STAGES = (1.0, 0.2)
ITERATIONS = 4
SAMPLE = 64
# exp(x) is (1 + x / POWER)^POWER: eight squarings, in vectors. It is not close for x far below 0, and need not be.
POWER = 256
# (1 + x / POWER) is at least this: exp(-60) is nothing beside 1, yet far from numbers that float32 cannot hold.
FLOOR = np.float32(math.exp(-60 / POWER))
ZERO, ONE = np.float32(0), np.float32(1)
EPS, TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)


def scale_prices(matrix: Array, prices: Array, is_near: bool) -> None:
    """Improve `prices` until nearly every row can have the column it prefers.

    With K = exp((gains - prices - row maximum) / T), alternate a = 1 / (K b) and b = 1 / (K^T a) (Sinkhorn scaling, the
    dual of the assignment with entropy weighted by T); prices fall by T log b. Then T is lowered. Any prices are valid:
    better ones only leave less to do. They are rounded to the dtype of the gains, so that with float32 gains every
    margin is exact in float64.

    Source: cuturi2013, Alg. 1 (the scaling); annealed.
    """
    n = matrix.shape[0]
    kernel, gap = np.empty((n, n), np.float32), typical_gap(matrix)
    if not is_near:
        prices[:] = 0
    for number in range(len(STAGES) - 1 if is_near else 0, len(STAGES)):
        scale_once(matrix, prices, STAGES[number] * gap, kernel)
    if not np.isfinite(prices).all():
        prices[:] = matrix.max(0)


@compiled
def typical_gap(matrix: Array) -> float:
    """Return the mean gap between the best and the second best gain of a row, and no less than rounding."""
    n, none, tops = matrix.shape[0], np.zeros(matrix.shape[0]), chunks(matrix.shape[0])
    many, total, size = min(n, SAMPLE), 0.0, 0.0
    for number in range(many):
        _, best, second = two_best(matrix[(n - 1) * number // max(1, many - 1)], none, tops)
        total, size = total + (best - second), max(size, abs(best))
    return max(total / many, EPS * size + TINY)


def scale_once(matrix: Array, prices: Array, temperature: float, kernel: Array) -> None:
    """Scale at one temperature; `kernel` is written to. Rows are summed and added to columns while in the cache."""
    n = matrix.shape[0]
    scale, columns, paid = np.ones(n, np.float32), np.empty(n, np.float32), prices.astype(matrix.dtype)
    for number in range(ITERATIONS):
        columns[:] = 0
        for i in range(n):
            row = kernel[i]
            if number == 0:
                fill(matrix[i], paid, temperature, row)
            total = ZERO
            for column in range(n):
                total += row[column] * scale[column]
            weight = ONE / total
            for column in range(n):
                columns[column] += weight * row[column]
        for column in range(n):
            scale[column] = ONE / columns[column]
    for column in range(n):
        paid[column] -= temperature * math.log(scale[column])
        prices[column] = paid[column]


@compiled
def fill(gains: Array, paid: Array, temperature: float, kernel: Array) -> None:
    """Write one row of the kernel."""
    n, top = gains.shape[0], gains.dtype.type(-INFINITY)
    for column in range(n):
        top = larger(top, gains[column] - paid[column])
    slope = gains.dtype.type(1 / (POWER * temperature))
    one = gains.dtype.type(1)
    for column in range(n):
        x = larger(np.float32(one + (gains[column] - paid[column] - top) * slope), FLOOR)
        x = x * x * (x * x)
        x = x * x * (x * x)
        x = x * x * (x * x)
        kernel[column] = x * x * (x * x)


# Sums may be reordered here, and so be vectors: any scaling will do.
scale_once = compiled(scale_once, fastmath={"reassoc", "nsz", "contract"})


@compiled
def centre(matrix: Array, prices: Array, index: Array) -> float:
    """Return by how much rows fall short of their best margin, summed: the duality gap. Then centre the prices.

    A price may rise until the row that has the column prefers another one, and fall until another row prefers the
    column. It moves half way towards what is further, and all move at once: a row loses by column k no less than its
    own column may rise, nor than k may fall, so with half of both gone it still loses nothing. What was proved stays
    proved, up to the rounding of float64, and outlives more changes of the gains.
    """
    n, short = index.shape[0], 0.0
    fall, rise = np.full(n, INFINITY), np.empty(n)
    for i in range(n):
        own, row = index[i], matrix[i]
        margin = row[own] - prices[own]
        before = least_loss(margin, row[:own], prices[:own], fall[:own])
        least = min(before, least_loss(margin, row[own + 1 :], prices[own + 1 :], fall[own + 1 :]))
        short += max(-least, 0.0)
        rise[i] = max(least, 0.0)
    for i in range(n if n > 1 else 0):
        prices[index[i]] += (rise[i] - max(fall[index[i]], 0.0)) / 2
    return short


@compiled
def least_loss(margin: float, row: Array, prices: Array, fall: Array) -> float:
    """Return the least that a row loses with another column than that of `margin`; note it for all columns."""
    least = INFINITY
    for column in range(row.shape[0]):
        loss = margin - (row[column] - prices[column])
        fall[column] = smaller(fall[column], loss)
        least = smaller(least, loss)
    return least
