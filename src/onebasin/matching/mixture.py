"""Mixtures: soft orders kept as shares of permutations, which is what Frank-Wolfe steps make of them.

A mixture of k permutations takes k index rows per group where a doubly stochastic matrix takes n x n numbers, and
mixes a tensor by k gathers instead of a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onebasin.matching.gains import Level, rows_of
from onebasin.matching.soft import Pairs, Solve, indicator, nearest
from onebasin.matching.terms import Dim, Labelled, Term, new, old
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

# The old dimensions of one tensor that move together: a top-level group at one of its places, and what is nested there.
Slot = tuple[Dim, ...]


def slots(spec: PermutationSpec, side: Labelled) -> list[Slot]:
    """Return the slots of a tensor; nested groups belong to the last place of their parent, as in `Permutation`."""
    found: dict[Dim, list[Dim]] = {}
    for dim in side.dims:
        if not dim.new:
            parents = spec.parents.get(dim.group, ())
            found.setdefault(old(parents[0]) if parents else dim, []).append(dim)
    return [tuple(sorted(dims, key=lambda dim: len(spec.parents.get(dim.group, ())))) for dims in found.values()]


@dataclass(frozen=True, eq=False)
class Mixture:
    """A weighted mean of permutations; None stands for the mean of all permutations.

    Groups are mixed independently of each other, and a group that stands on two axes of a tensor on each by itself: a
    tensor becomes the mean over independent draws. What is nested under a group is drawn together with it.

    Args:
        spec: what may be permuted.
        members: the permutations.
        shares: of each, not negative, of sum 1.
    """

    spec: PermutationSpec
    members: tuple[Permutation | None, ...]
    shares: tuple[float, ...] = (1.0,)

    def towards(self, permutation: Permutation, length: float) -> Mixture:
        """Go from here to `permutation`, by `length` of the way."""
        shares = [share * (1 - length) for share in self.shares]
        members = list(self.members)
        if permutation not in members:
            members.append(permutation)
            shares.append(0.0)
        shares[members.index(permutation)] += length
        kept = [number for number, share in enumerate(shares) if share > 0]
        return replace(
            self, members=tuple(members[number] for number in kept), shares=tuple(shares[number] for number in kept)
        )

    def mixed(self, side: Labelled, places: Iterable[Slot]) -> Labelled:
        """Put some slots of a tensor into the mean order. Where all is alike along a dimension, it may be left out."""
        for slot in places:
            side = self._mixed(side, slot)
        return side

    def _mixed(self, side: Labelled, slot: Slot) -> Labelled:
        parts = [_averaged(side, slot) if member is None else _taken(side, slot, member) for member in self.members]
        if len(parts) == 1:
            return parts[0]
        dims = tuple(dim._replace(new=True) if dim in slot else dim for dim in side.dims)
        total = torch.zeros((), dtype=side.values.dtype, device=side.values.device)
        for share, part in zip(self.shares, parts, strict=True):
            total = total + share * part.aligned(dims)
        return Labelled(total, dims)

    def worth(self, gains: Pairs) -> float:
        """Return what the mean order of one family is worth by constant gains, summed in float64."""
        terms = [Term(Labelled(gain, dims), Labelled(gain.new_ones(()), ())) for dims, gain in gains.items()]
        return math.fsum(
            share * Level(self.spec).settle(term, {} if member is None else rows_of(member)).total()
            for term in terms
            for share, member in zip(self.shares, self.members, strict=True)
        )

    def rounded(self, otherwise: Permutation, solve: Solve) -> Permutation:
        """Return the permutation nearest to the mean order."""
        if len(self.members) == 1 and self.members[0] is not None:
            return self.members[0]
        for top in (name for name in self.spec.sizes if not self.spec.parents.get(name)):
            family = [top, *(name for name in self.spec.sizes if top in self.spec.parents.get(name, ()))]
            otherwise = nearest({top: dict(map(self._pairs, family))}, otherwise, solve)
        return otherwise

    def _pairs(self, group: str) -> tuple[tuple[Dim, ...], Tensor]:
        """Return the mean order of a group with all its parents, as a matrix between new and old positions."""
        chain = (*self.spec.parents.get(group, ()), group)
        sizes = [self.spec.sizes[name] for name in chain]
        dims = (*map(new, chain), *map(old, chain))
        total = torch.zeros(*sizes, *sizes)
        for share, member in zip(self.shares, self.members, strict=True):
            total += share / math.prod(sizes) if member is None else share * indicator(dims, rows_of(member), total)
        return dims, total


def _averaged(side: Labelled, slot: Slot) -> Labelled:
    for dim in slot:
        side = side.mean(dim)
    return side


def _taken(side: Labelled, slot: Slot, permutation: Permutation) -> Labelled:
    rows = rows_of(permutation)
    for dim in slot:
        target = dim._replace(new=True)
        side = side.take(dim, rows[dim.group].renamed({new(dim.group): target}), target)
    return side
