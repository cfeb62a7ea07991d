"""Compiled scans of one row of a matrix of gains (numba); the margin of a column is its gain less its price."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Array = np.ndarray[Any, np.dtype[Any]]

# Compiled code on disk is renewed when its own file changes: whoever edits this one should touch compiled.py, too.
# A row is looked through in so many interleaved lanes, each with its own maximum: this is what compilers vectorise.
LANES = 128
INFINITY = np.inf


def compiled(function: Function) -> Function:
    """Compile at the first call, and keep that on disk if there is a folder to write to."""
    try:
        return cast(Function, numba.njit(cache=True, error_model="numpy")(function))
    except RuntimeError:  # neither the folder of this file nor the user's cache can be written to
        return cast(Function, numba.njit(error_model="numpy")(function))


@compiled
def best_margin(row: Array, prices: Array, top: Array) -> float:
    """Fill `top` with the largest margin of each lane, and return the largest of all."""
    n = row.shape[0]
    width = min(n, LANES)
    for lane in range(width):
        top[lane] = row[lane] - prices[lane]
    for start in range(width, n, LANES):
        gains, paid = row[start : start + LANES], prices[start : start + LANES]  # slices need no check for wrapping
        for lane in range(gains.shape[0]):
            margin = gains[lane] - paid[lane]
            top[lane] = margin if margin > top[lane] else top[lane]
    best = top[0]
    for lane in range(1, width):
        best = top[lane] if top[lane] > best else best
    return best


@compiled
def best_column(row: Array, prices: Array, top: Array, best: float) -> int:
    """Return a column of margin `best`, just after `best_margin` has filled `top`."""
    for lane in range(min(LANES, row.shape[0])):
        if top[lane] == best:
            for column in range(lane, row.shape[0], LANES):
                if row[column] - prices[column] == best:
                    return column
    return -1


@compiled
def two_best(row: Array, prices: Array, top: Array, then: Array) -> tuple[int, float, float]:
    """Return the best column of a row, its margin and that of the second best; `top` and `then` are those of lanes."""
    n = row.shape[0]
    width = min(n, LANES)
    for lane in range(width):
        top[lane], then[lane] = row[lane] - prices[lane], -INFINITY
    for start in range(width, n, LANES):
        gains, paid = row[start : start + LANES], prices[start : start + LANES]
        for lane in range(gains.shape[0]):
            margin, largest = gains[lane] - paid[lane], top[lane]
            less = largest if largest < margin else margin
            top[lane] = margin if margin > largest else largest
            then[lane] = less if less > then[lane] else then[lane]
    best, at = top[0], 0
    for lane in range(1, width):
        if top[lane] > best:
            best, at = top[lane], lane
    second = then[at]
    for lane in range(width):
        if lane != at and top[lane] > second:
            second = top[lane]
    column = at
    while row[column] - prices[column] != best:
        column += LANES
    return column, best, second


@compiled
def any_reaches(gains: Array, paid: Array, floor: float) -> bool:
    """Return whether any margin is `floor` or more; without a branch, so that it is done in vectors."""
    found = 0
    for at in range(gains.shape[0]):
        found |= gains[at] - paid[at] >= floor
    return found != 0


@compiled
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
