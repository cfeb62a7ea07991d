"""Passes over large tensors, compiled where numba is there and the tensors are such that it can read them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onebasin.matching import assignment
from onebasin.params import compute_dtype

# Elements that are converted to float64 at a time when a value is summed up: they stay in the cache (6 times faster).
CHUNK = 1 << 15
# Rows that are squared at a time, for the same reason.
ROWS = 64
# What numba reads.
PLAIN = (torch.float32, torch.float64)


def dot(x: Tensor, y: Tensor) -> float:
    """Return the sum of `x * y`, tensors of one shape, multiplied and summed in float64."""
    if _is_for_numba(x, y):
        from onebasin.matching import compiled_tensors

        return compiled_tensors.dot(x.view(-1).numpy(), y.view(-1).numpy())
    rows = max(1, CHUNK * len(x) // max(x.numel(), 1)) if x.dim() else 1
    pieces = zip(x.split(rows), y.split(rows), strict=True) if x.dim() else ((x, y),)
    return math.fsum(torch.dot(a.double().flatten(), b.double().flatten()).item() for a, b in pieces)


def squares(x: Tensor) -> Tensor:
    """Return the sum of squares of every column of a matrix, in the dtype of products."""
    if _is_for_numba(x):
        from onebasin.matching import compiled_tensors

        return torch.from_numpy(compiled_tensors.squares(x.numpy())).to(x.dtype)
    dtype = compute_dtype(x)
    parts = (part.to(dtype).square().sum(0) for part in x.split(ROWS))
    return sum(parts, torch.zeros((), dtype=dtype, device=x.device))


def transposed(x: Tensor) -> Tensor:
    """Copy the columns of a matrix into rows."""
    if _is_for_numba(x):
        from onebasin.matching import compiled_tensors

        return torch.from_numpy(compiled_tensors.transposed(x.numpy()))
    return x.T.contiguous()


def difference_of_rows(x: Tensor, now: Tensor, before: Tensor) -> Tensor:
    """Return `x[now] - x[before]` of a matrix, in the dtype of products."""
    if _is_for_numba(x):
        from onebasin.matching import compiled_tensors

        return torch.from_numpy(compiled_tensors.difference_of_rows(x.numpy(), now.numpy(), before.numpy()))
    dtype = compute_dtype(x)
    return x.index_select(0, now).to(dtype).sub_(x.index_select(0, before).to(dtype))


def change_of_sum(x: Tensor, was: Tensor, now: Tensor) -> tuple[float, float]:
    """Return the sum over i of `x[i, now[i]] - x[i, was[i]]` in float64, and that of |.| + |.| where they differ."""
    if _is_for_numba(x):
        from onebasin.matching import compiled_tensors

        return compiled_tensors.change_of_sum(x.numpy(), was.contiguous().numpy(), now.contiguous().numpy())
    i = (now != was).nonzero()[:, 0]
    taken, left = x[i, now[i]].double(), x[i, was[i]].double()
    return (taken - left).sum().item(), (taken.abs() + left.abs()).sum().item()


def _is_for_numba(*tensors: Tensor) -> bool:
    """Return whether all are plain arrays of float32 or float64, one run in memory."""
    plain = (x.device.type == "cpu" and x.dtype in PLAIN and x.is_contiguous() for x in tensors)
    return all(plain) and not any(x.requires_grad for x in tensors) and assignment.has_numba()
