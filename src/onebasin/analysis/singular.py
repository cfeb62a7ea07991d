"""Singular value decomposition of one weight: exact, or the leading part of a wide one by a randomised method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the randomised method: directions beyond those asked for, rounds at most, and the residual at which it stops.
SPARE, ROUNDS, ACCURATE = 16, 40, 1e-8


@dataclass(frozen=True)
class Singular:
    """`W = sum_i s_i u_i v_i^T`, or the leading terms of the sum; W is the weight unfolded to `out x (in * positions)`.

    Args:
        u: `Float[Tensor, "out i"]`, left singular vectors in columns.
        values: `Float[Tensor, "i"]`, falling; those that are zero to rounding are left out with their vectors.
        v: `Float[Tensor, "in i"]`, right singular vectors in columns.
        residual: largest `|W^T u_i - s_i v_i| / s_1` of a randomised decomposition; 0 of an exact one, by definition.
        complete: whether there are no further singular values above rounding.
    """

    u: Tensor
    values: Tensor
    v: Tensor
    residual: float = 0.0
    complete: bool = True


def unfolded(weight: Tensor) -> Tensor:
    """Return the weight as a matrix `out x (in * positions)`, in float64."""
    return weight.detach().flatten(1).double()


def decompose(weight: Tensor, rank: int | None = None, seed: int = 0) -> Singular:
    """Return the singular value decomposition of a weight, computed in float64.

    Args:
        weight: two or more axes, unfolded.
        rank: how many singular vectors are wanted at most; default: all, exactly. A weight that has more, by a factor
            that is worth it, is decomposed by the randomised method.
        seed: of the randomised method.
    """
    matrix = unfolded(weight)
    if rank is not None and 2 * (rank + SPARE) < min(matrix.shape):
        return _randomised(matrix, rank, seed)
    flat = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # Reducing a wide matrix to a square one first is exact, and several times faster than decomposing it as it is.
    basis, square = torch.linalg.qr(flat.T)
    u, values, vt = torch.linalg.svd(square.T)
    v = basis @ vt.T
    found = int((values > _noise(matrix, values)).sum())
    kept = found if rank is None else min(rank, found)
    u, v = (u, v) if flat is matrix else (v, u)
    return Singular(u[:, :kept], values[:kept], v[:, :kept], complete=kept == found)


def _randomised(matrix: Tensor, rank: int, seed: int) -> Singular:
    """Subspace iteration from a random start, until the residual of the leading vectors is small.

    Source: halko2011, Alg. 4.4 and 5.1.
    Differs: it goes on until the measured residual is below `ACCURATE`, or for `ROUNDS` rounds, and reports it.
    """
    width = rank + SPARE
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float64).to(matrix.device)
    left = torch.linalg.qr(matrix @ start)[0]
    for _ in range(ROUNDS):
        right = torch.linalg.qr(matrix.T @ left)[0]
        image = matrix @ right
        # W R = U S V'^T, so that the vectors R V' of this subspace come with values; what they miss is the residual.
        u, values, small = torch.linalg.svd(image, full_matrices=False)
        v = right @ small.T
        residual = (matrix.T @ u[:, :rank] - v[:, :rank] * values[:rank]).norm(dim=0).max() / values[0].clamp(
            min=1e-300
        )
        left = u
        if residual <= ACCURATE:
            break
    found = int((values > _noise(matrix, values)).sum())
    kept = min(rank, found)
    return Singular(u[:, :kept], values[:kept], v[:, :kept], residual.item(), complete=found <= rank)


def _noise(matrix: Tensor, values: Tensor) -> Tensor:
    return torch.finfo(matrix.dtype).eps * max(matrix.shape) * values[:1]
