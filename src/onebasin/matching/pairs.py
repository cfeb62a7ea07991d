"""Pairs of units with a problem of their own inside, of which only those are solved that may decide who is paired."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, MutableMapping

import torch
from torch import Tensor

from onebasin.matching.assignment import Assignment, upper_bound
from onebasin.matching.core import to_host

# After so many rounds per unit all that is left is solved at once. Bounds of no use take one round per unit: in each,
# all units are paired anew.
ROUNDS = 2


def solve_pairs(
    own: Tensor,
    inner: Mapping[str, Tensor],
    solve: Callable[..., Assignment],
    last: MutableMapping[str, Assignment] | None = None,
) -> tuple[Assignment, dict[str, Tensor]]:
    """Maximise the sum over i of `own[i, s(i)]` and of the best inner assignments of the pairs (i, s(i)), over s.

    An inner problem is at first only bounded from above, by the prices of its last solution. The outer problem is
    solved on the bounds; what it picks is solved inside, and replaces its bound; and so on until all that is picked has
    been solved. The result is exact: no other choice is better, even if its bounds were reached.

    Args:
        own: `Float[Tensor, "*batch n n"]`, what pairs are worth by themselves.
        inner: group -> gains inside of every pair, `Float[Tensor, "*batch n n m m"]`.
        solve: assigns a batch of gains; with `last` also from a start.
        last: group -> the inner assignments found last, some perhaps never solved; brought up to date.

    Returns:
        The outer assignment, and for each group the rows inside of the pairs chosen, `Int[Tensor, "*batch n m"]`.
    """
    known = {name: _known(gains, (last or {}).get(name)) for name, gains in inner.items()}
    # The host knows one number of each pair; the gains inside the pairs, as many times more, stay on their device.
    alone = to_host(own)
    worth = {name: to_host(_bounds(gains, known[name].duals)) for name, gains in inner.items()}
    is_exact = torch.zeros(own.shape, dtype=torch.bool)
    for number in itertools.count():
        outer = solve(sum(worth.values(), alone))
        picked = torch.zeros_like(is_exact).scatter_(-1, outer.index[..., None], True)
        if not (picked & ~is_exact).any():
            break
        todo = (picked if number < ROUNDS * own.shape[-1] else torch.ones_like(picked)) & ~is_exact
        for name, gains in inner.items():
            some = gains[todo.to(gains.device)]
            found = solve(some) if last is None else solve(some, _part(known[name], todo))
            known[name].index[todo], known[name].duals[todo], worth[name][todo] = found.index, found.duals, found.value
        is_exact |= todo
    if last is not None:
        last.update(known)
    chosen = outer.index[..., None, None]
    rows = {name: known[name].index.take_along_dim(chosen, -2).squeeze(-2) for name in inner}
    return outer, rows


def _known(gains: Tensor, last: Assignment | None) -> Assignment:
    """Return what was found last, or any assignment and no prices."""
    if last is not None and last.index.shape == gains.shape[:-1]:
        return last
    rows = torch.zeros(gains.shape[:-1], dtype=torch.float64)
    value = rows.sum(-1)
    return Assignment(torch.arange(gains.shape[-1]).expand(rows.shape).clone(), value, value, rows)


def _bounds(gains: Tensor, duals: Tensor) -> Tensor:
    """Return `upper_bound` of all problems, a slice at a time, which stays in the cache."""
    pieces = zip(gains.flatten(0, -4), duals.flatten(0, -3), strict=True)
    return torch.stack([upper_bound(some, prices) for some, prices in pieces]).reshape(gains.shape[:-2])


def _part(found: Assignment, where: Tensor) -> Assignment:
    return Assignment(found.index[where], found.value[where], found.gap[where], found.duals[where])
