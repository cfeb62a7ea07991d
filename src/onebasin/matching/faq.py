"""FAQ: the order of a group that stands on two axes of one tensor, by Frank-Wolfe steps from the barycentre."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onebasin.matching.assignment import Assignment
from onebasin.matching.gains import Level, Rows
from onebasin.matching.terms import Labelled, Term, new

# Steps whose first-order promise is below this share of the gradient's size have converged.
TOLERANCE = 1e-6


def faq(
    level: Level, terms: Sequence[Term], rows: Rows, group: str, solve: Callable[[Tensor], Assignment], steps: int
) -> Labelled:
    """Maximise a quadratic function of one permutation, sum of <A, P B P^T> + <L, P>, approximately.

    The permutation is relaxed to a doubly stochastic matrix P, at first all equal. Each step solves the assignment of
    the gradient and goes towards it by exact line search; the last P is rounded by one more assignment. The
    gradient is linear in P, so only its values at permutations are computed: nothing is ever multiplied by a soft P.

    Args:
        level: for which pairs of units above.
        terms: all terms that hold the group; the other groups are settled by `rows`.
        rows: index rows of the other groups.
        group: a group under which nothing is nested in `terms`.
        solve: assigns a batch of gain matrices.
        steps: at most so many.

    Source: vogelstein2015, section 3.
    Differs: `scipy.optimize.quadratic_assignment` is not used, since it takes a single product A P B P^T and no linear
        term, while a recurrent layer has one product per gate, and input weights.
    """
    others = {name: row for name, row in rows.items() if name != group}
    dims = (*level.batch(group), new(group))
    gradient = level.gains(level.free(terms, others, group), group).double()
    soft = torch.full_like(gradient, 1 / gradient.shape[-1])
    for _ in range(steps):
        index = solve(gradient).index
        ahead = level.gains(level.free(terms, {**others, group: Labelled(index, dims)}, group), group) - gradient
        towards = torch.zeros_like(soft).scatter_(-1, index[..., None].to(soft.device), 1.0) - soft
        slope, curvature = (gradient * towards).sum((-2, -1)), (ahead * towards).sum((-2, -1)) / 2
        length = line_search(slope, curvature)[..., None, None]
        soft, gradient = soft + length * towards, gradient + length * ahead
        if (slope <= TOLERANCE * gradient.abs().amax(-1).sum(-1)).all():
            break
    return Labelled(solve(soft).index, dims)


def line_search(slope: Tensor, curvature: Tensor) -> Tensor:
    """Return the t in [0, 1] that maximises slope t + curvature t^2, for slope >= 0."""
    inside = (-slope / (2 * curvature.clamp_max(-torch.finfo(slope.dtype).tiny))).clamp(0, 1)
    return torch.where(curvature < 0, inside, (slope + curvature > 0).to(slope))
