"""Exact linear assignment, each with a proof that it is optimal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onebasin.errors import ParamsError, UsageError

# Elements that are certified together: small problems share a pass, and the pass stays within the cache.
BATCH = 1 << 18
# Potentials that move by less than this share of the largest gain have converged: a few units of float64 rounding.
SETTLED = 1e-15


@dataclass(frozen=True, eq=False)
class Assignment:
    """The best assignments of a batch of gain matrices.

    Args:
        index: `Int[Tensor, "*batch n"]` on the CPU: row i is given column `index[i]`.
        value: `Float64[Tensor, "*batch"]`: sum over i of `gains[i, index[i]]`.
        gap: `Float64[Tensor, "*batch"]`: no other assignment is better by more than this, as a share of the sum over
            rows of the largest absolute gain. Zero, or rounding, proves that `index` is optimal.
        duals: `Float64[Tensor, "*batch n"]` on the CPU: prices of the columns that prove it. Every row has the column
            of the largest `gains[i, k] - duals[k]`, up to the gap.
    """

    index: Tensor
    value: Tensor
    gap: Tensor
    duals: Tensor


def solve(gains: Tensor, warm: Assignment | None = None) -> Assignment:
    """Maximise `sum over i of gains[i, index[i]]` over all permutations `index`, exactly.

    The duality gap of every assignment is computed independently of the solver: potentials are found by shortest paths
    in the residual graph, and any potentials, converged or not, bound the optimum from above.

    Args:
        gains: `Float[Tensor, "*batch n n"]`, any floating dtype and device; solved in float64.
        warm: what was found for similar gains of the same shape; it changes the time, and which of several equal
            optima is found.

    Raises:
        UsageError: the last two dimensions are not square, or `warm` is of another shape.
        ParamsError: a gain is NaN or infinite.

    Source: crouse2016 (the shortest augmenting path method behind `scipy.optimize.linear_sum_assignment`).
    """
    _check(gains, warm)
    batch, n = gains.shape[:-2], gains.shape[-1]
    if gains.numel() == 0:
        zero = torch.zeros(batch, dtype=torch.float64)
        rows = torch.zeros(gains.shape[:-1], dtype=torch.float64)
        return Assignment(rows.long(), zero, zero, rows)
    pieces = gains.detach().reshape(-1, n, n).split(max(1, BATCH // n**2))
    index, value, gap, duals = (torch.cat(parts) for parts in zip(*map(_solve_stack, pieces), strict=True))
    return Assignment(index.reshape(*batch, n), value.reshape(batch), gap.reshape(batch), duals.reshape(*batch, n))


def upper_bound(gains: Tensor, duals: Tensor) -> Tensor:
    """Return what no assignment is worth more than, whatever the prices: `Float64[Tensor, "*batch"]`.

    That is the sum over rows of the largest `gains[i, k] - duals[k]`, and the sum of the prices.
    """
    duals = duals.to(gains.device)
    return (gains - duals[..., None, :]).amax(-1).sum(-1) + duals.sum(-1)


def _solve_stack(gains: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the best assignments of a stack of matrices, with values, relative duality gaps and prices."""
    stack = gains.to("cpu", torch.float64)
    columns = [linear_sum_assignment(matrix, maximize=True)[1] for matrix in stack.numpy()]
    index = torch.from_numpy(np.stack(columns).astype(np.int64))
    return index, *_certify(stack, index)


def _certify(gains: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, relative duality gap and prices of the assignments `index` of a stack of matrices in float64.

    With columns renumbered so that row i has column i, `loss[i, j]` is what row i loses when it takes column j. The
    assignment is optimal if and only if there are potentials with v[j] <= v[i] + loss[i, j]: shortest path lengths.
    """
    taken = gains.gather(-1, index[:, None, :].expand_as(gains))
    kept = taken.diagonal(dim1=-2, dim2=-1)
    loss = kept[..., None] - taken
    largest = torch.maximum(gains.amax(-1), -gains.amin(-1))
    potential = _potentials(loss, SETTLED * largest.amax(-1, keepdim=True))
    short = (potential[:, None, :] - loss).amax(-1) - potential
    gap = short.sum(-1) / largest.sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
    return kept.sum(-1), gap, torch.zeros_like(potential).scatter(-1, index, -potential)


def _potentials(loss: Tensor, settled: Tensor) -> Tensor:
    """Relax v[j] = min(v[j], v[i] + loss[i, j]) until nothing moves by more than `settled` (Bellman-Ford), from v = 0.

    Only rows whose potential fell in the last round are relaxed again. Without an optimal assignment there is a cycle
    that lowers the potentials for ever, hence the cap: a shortest path has fewer than n steps.
    """
    potential, n = torch.zeros(loss.shape[:-1], dtype=loss.dtype), loss.shape[-1]
    rows = torch.arange(n)
    for _ in range(n):
        part = loss if len(rows) == n else loss[:, rows]
        reached = torch.minimum(potential, (part + potential[:, rows, None]).amin(-2))
        fell = reached < potential - settled
        potential, rows = reached, fell.any(0).nonzero()[:, 0]
        if len(rows) == 0:
            break
    return potential


def _check(gains: Tensor, warm: Assignment | None) -> None:
    if gains.dim() < 2 or gains.shape[-1] != gains.shape[-2]:
        raise UsageError(
            f"gains of shape {tuple(gains.shape)}",
            "square matrices: every unit of the one model is given one unit of the other",
            "pass gains of shape (..., n, n)",
        )
    if warm is not None and warm.index.shape != gains.shape[:-1]:
        raise UsageError(
            f"gains of shape {tuple(gains.shape)} and a start of shape {tuple(warm.index.shape)}",
            "the assignment of gains of the same shape to start from",
            "pass what `solve` returned for such gains, or no start",
        )
    if not torch.isfinite(gains).all():
        raise ParamsError(
            f"gains with {int((~torch.isfinite(gains)).sum())} values that are not finite",
            "finite gains",
            "check the weights for values so large that their products overflow, and scale them down",
        )
