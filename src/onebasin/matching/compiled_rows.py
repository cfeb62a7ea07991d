"""Compiled scans of one row of a matrix of gains (numba); the margin of a column is its gain less its price.

Every scan is a loop that the compiler turns into vector operations: without a branch, and with the largest or smallest
so far chosen by `larger` and `smaller`, which it may reorder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])
Array = np.ndarray[Any, np.dtype[Any]]

# Compiled code on disk is renewed when its own file changes: whoever edits this one should touch its users, too.
# Of so many columns together the best margin is noted: where it lies is then looked for among them alone.
CHUNK = 32
INFINITY = np.inf
# Pairs are tight if they fall short of the best by no more than this share: the rounding of float64.
TIGHT = 1e-15
TINY = float(np.finfo(np.float64).tiny)


def compiled(function: Function, **more: Any) -> Function:
    """Compile at the first call, and keep that on disk if there is a folder to write to."""
    try:
        return cast(Function, numba.njit(cache=True, error_model="numpy", **more)(function))
    except RuntimeError:  # neither the folder of this file nor the user's cache can be written to
        return cast(Function, numba.njit(error_model="numpy", **more)(function))


def inlined(function: Function) -> Function:
    """Make a part of its callers, to be compiled with those alone."""
    return cast(Function, numba.njit(inline="always")(function))


def inside(function: Function) -> Function:
    """Return a copy of a compiled function that is part of its callers (`inlined`)."""
    return inlined(cast(Function, cast(Any, function).py_func))


def _chosen(comparison: str) -> Callable[[Any, Any], Any]:
    """Return the function of two numbers that chooses one by `comparison`; neither may be NaN.

    A plain `if` compiles to the same, but for the flags: only with them are maxima of several lanes joined at the end.
    """
    flags = ("nnan", "nsz")

    def choose(_: Any, first: Any, second: Any) -> Any:
        kind = first if first == second else numba.types.float64

        def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, *values, flags=flags), *values, flags=flags)

        return kind(kind, kind), generate

    return cast(Callable[[Any, Any], Any], intrinsic(choose))


larger, smaller = _chosen(">"), _chosen("<")


@compiled
def best_margin(row: Array, prices: Array) -> float:
    """Return the largest margin of a row."""
    best = -INFINITY
    for column in range(row.shape[0]):
        best = larger(best, row[column] - prices[column])
    return best


@compiled
def best_of_chunks(row: Array, prices: Array, tops: Array) -> tuple[int, float]:
    """Fill `tops` with the largest margin of each chunk; return which chunk holds the largest of all, and that."""
    at, best = 0, -INFINITY
    for number in range((row.shape[0] + CHUNK - 1) // CHUNK):
        # Slices need no check for wrapping.
        gains, paid = row[number * CHUNK : (number + 1) * CHUNK], prices[number * CHUNK : (number + 1) * CHUNK]
        top = -INFINITY
        for lane in range(gains.shape[0]):
            top = larger(top, gains[lane] - paid[lane])
        tops[number] = top
        if top > best:
            at, best = number, top
    return at, best


@compiled
def best_column(row: Array, prices: Array, tops: Array) -> tuple[int, float]:
    """Return the best column of a row, and its margin; `tops` is written to."""
    at, best = best_of_chunks(row, prices, tops)
    column = at * CHUNK
    while row[column] - prices[column] != best:
        column += 1
    return column, best


@compiled
def two_best(row: Array, prices: Array, tops: Array) -> tuple[int, float, float]:
    """Return the best column of a row, its margin and that of the second best; `tops` is written to."""
    n = row.shape[0]
    at, best = best_of_chunks(row, prices, tops)
    column, second = -1, -INFINITY
    for number in range((n + CHUNK - 1) // CHUNK):
        second = tops[number] if number != at and tops[number] > second else second
    for other in range(at * CHUNK, min((at + 1) * CHUNK, n)):
        margin = row[other] - prices[other]
        if margin == best and column < 0:
            column = other
        elif margin > second:
            second = margin
    return column, best, second


@compiled
def chunks(n: int) -> Array:
    """Return an empty array with a place for every chunk of a row of n columns."""
    return np.empty((n + CHUNK - 1) // CHUNK)
