"""Passes over large tensors, compiled where numba is there and the tensors are such that it can read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from onebasin.matching import assignment
from onebasin.params import compute_dtype

# Elements that are converted to float64 at a time when a value is summed up: they stay in the cache (6 times faster).
CHUNK = 1 << 15
# Rows that are squared at a time, for the same reason.
ROWS = 64
# Elements that are compared in float64 at a time.
EXACT_PIECE = 1 << 18
# Bytes that the address of a matrix is a multiple of: one line of the cache.
ALIGNED = 64
# What numba reads.
PLAIN = (torch.float32, torch.float64)


def new_zeros(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a matrix of zeros, on the CPU in memory of numpy's.

    That lies where tensors were let go. Torch's own is aligned, and such gaps are some bytes too small for it: between
    matrices that are kept, as much again would be left unused. Aligned it is here, too: products are faster for it.
    """
    if device.type != "cpu" or dtype not in PLAIN:
        return torch.zeros(n, n, dtype=dtype, device=device)
    spare = ALIGNED // dtype.itemsize
    memory = np.zeros(n * n + spare, np.float32 if dtype == torch.float32 else np.float64)
    start = -memory.ctypes.data % ALIGNED // dtype.itemsize
    return torch.from_numpy(memory[start : start + n * n].reshape(n, n))


def dot_and_norms(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Return the dot product (`dot`) of two tensors of one shape, and the Euclidean norm of each."""
    if _is_for_numba(x, y):
        from onebasin.matching import compiled_tensors

        both, first, second = compiled_tensors.dots(x.view(-1).numpy(), y.view(-1).numpy())
        return both, math.sqrt(first), math.sqrt(second)
    first, second = (torch.linalg.vector_norm(side, dtype=compute_dtype(side)).item() for side in (x, y))
    return dot(x, y), first, second


def dot(x: Tensor, y: Tensor) -> float:
    """Return the sum of `x * y`, tensors of one shape, multiplied and summed in float64."""
    if _is_for_numba(x, y):
        return dot_and_norms(x, y)[0]
    rows = max(1, CHUNK * len(x) // max(x.numel(), 1)) if x.dim() else 1
    pieces = zip(x.split(rows), y.split(rows), strict=True) if x.dim() else ((x, y),)
    return math.fsum(torch.dot(a.double().flatten(), b.double().flatten()).item() for a, b in pieces)


def dot_in_order(x: Tensor, y: Tensor, orders: Mapping[int, Tensor]) -> float:
    """Return the dot product (`dot`) of `x` and `y`, that with its positions in the order given along these axes."""
    if not orders or not _is_for_numba(x, y):
        for axis, order in orders.items():
            y = y.index_select(axis, order.to(y.device))
        return dot(x, y)
    from onebasin.matching import compiled_tensors

    rows = [orders[axis] if axis in orders else torch.arange(size) for axis, size in enumerate(x.shape)]
    middle = min(max(1, *orders), x.dim() - 1)
    grids = [_grid(part).numpy() for part in (rows[:middle], rows[middle:])]
    return compiled_tensors.dot_in_order(*(side.view(*map(len, grids)).numpy() for side in (x, y)), *grids)


def is_as_before(order: Tensor) -> bool:
    """Return whether an order leaves everything where it is."""
    return torch.equal(order, torch.arange(len(order), device=order.device))


def _grid(orders: Sequence[Tensor]) -> Tensor:
    """Return the order of the positions of a grid, counted row by row, from that along every axis."""
    grid = torch.zeros(1, dtype=torch.int64)
    for order in orders:
        grid = (grid[:, None] * len(order) + order).flatten()
    return grid


def squares(x: Tensor) -> Tensor:
    """Return the sum of squares of every column of a matrix, in the dtype of products."""
    if _is_for_numba(x):
        from onebasin.matching import compiled_tensors

        return torch.from_numpy(compiled_tensors.squares(x.numpy())).to(x.dtype)
    dtype = compute_dtype(x)
    parts = (part.to(dtype).square().sum(0) for part in x.split(ROWS))
    return sum(parts, torch.zeros((), dtype=dtype, device=x.device))


def transposed(x: Tensor) -> Tensor:
    """Copy the columns of every matrix of a stack into rows."""
    if _is_for_numba(x):
        from onebasin.matching import compiled_tensors

        source = x.numpy()
        out = np.empty(source.swapaxes(1, 2).shape, source.dtype)  # of numpy, for its large pages
        compiled_tensors.transpose_all(source, out)
        return torch.from_numpy(out)
    return x.transpose(1, 2).contiguous()


def difference_of_rows(x: Tensor, now: Tensor, before: Tensor) -> Tensor:
    """Return `x[now] - x[before]` of a matrix, in the dtype of products."""
    if _is_for_numba(x):
        from onebasin.matching import compiled_tensors

        return torch.from_numpy(compiled_tensors.difference_of_rows(x.numpy(), now.numpy(), before.numpy()))
    return _difference(x, 0, now, before)


def difference_of_columns(x: Tensor, now: Tensor, before: Tensor) -> Tensor:
    """Return `x[:, now] - x[:, before]` of a tensor of three axes, in the dtype of products."""
    if _is_for_numba(x):
        from onebasin.matching import compiled_tensors

        return torch.from_numpy(compiled_tensors.difference_of_columns(x.numpy(), now.numpy(), before.numpy()))
    return _difference(x, 1, now, before)


def _difference(x: Tensor, axis: int, now: Tensor, before: Tensor) -> Tensor:
    dtype = compute_dtype(x)
    return x.index_select(axis, now).to(dtype).sub_(x.index_select(axis, before).to(dtype))


def change_of_sum(x: Tensor, was: Tensor, now: Tensor) -> tuple[float, float]:
    """Return the sum over i of `x[i, now[i]] - x[i, was[i]]` in float64, and that of |.| + |.| where they differ."""
    if _is_for_numba(x):
        from onebasin.matching import compiled_tensors

        return compiled_tensors.change_of_sum(x.numpy(), was.contiguous().numpy(), now.contiguous().numpy())
    i = (now != was).nonzero()[:, 0]
    taken, left = x[i, now[i]].double(), x[i, was[i]].double()
    return (taken - left).sum().item(), (taken.abs() + left.abs()).sum().item()


def change_of_rows(a: Tensor, b: Tensor, units: Tensor, to: Tensor, was: Tensor, source: Tensor) -> float:
    """Return the sum over i, j of `a[units[i], j] . (b[to[i], source[j]] - b[was[i], source[j]])`, in float64."""
    if _is_for_numba(a, b):
        from onebasin.matching import compiled_tensors

        return compiled_tensors.change_of_rows(a.numpy(), b.numpy(), *(x.numpy() for x in (units, to, was, source)))
    total, step = 0.0, max(1, EXACT_PIECE * len(a) // max(a.numel(), 1))
    for unit, new, old in zip(*(x.split(step) for x in (units, to, was)), strict=True):
        difference = b[new].double() - b[old].double()
        total += (a[unit].double() * difference[:, source]).sum().item()
    return total


def change_of_columns(a: Tensor, b: Tensor, units: Tensor, to: Tensor, was: Tensor, source: Tensor) -> float:
    """Do `change_of_rows` where units lie along the last axis of three."""
    if _is_for_numba(a, b):
        from onebasin.matching import compiled_tensors

        return compiled_tensors.change_of_columns(a.numpy(), b.numpy(), *(x.numpy() for x in (units, to, was, source)))
    return change_of_rows(a.movedim(2, 0), b.movedim(2, 0), units, to, was, source)


def _is_for_numba(*tensors: Tensor) -> bool:
    """Return whether all are plain arrays of float32 or float64, one run in memory."""
    for x in tensors:
        if not x.is_cpu or x.dtype not in PLAIN or not x.is_contiguous() or x.requires_grad:
            return False
    return assignment.has_numba()
