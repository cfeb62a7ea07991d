"""The gain matrix of one group: how much the objective gets from putting old unit k where new unit i is."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasin.matching.terms import Dim, Labelled, Term, new, old
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

# Group -> index rows with named dimensions. A group that is not in it has no order yet.
Rows = Mapping[str, Labelled]


def rows_of(permutation: Permutation) -> dict[str, Labelled]:
    """Name the dimensions of the index rows of every group: its parents and itself, in the new order."""
    parents = permutation.spec.parents
    return {
        name: Labelled(index, tuple(new(group) for group in (*parents.get(name, ()), name)))
        for name, index in permutation.indices.items()
    }


@dataclass(frozen=True)
class Level:
    """Where a gain matrix is asked for: for all pairs of a new and an old unit of the groups in `pairs` at once.

    Args:
        spec: how groups nest.
        pairs: groups that are nested in each other, outermost first; none at the top.
    """

    spec: PermutationSpec
    pairs: tuple[str, ...] = ()

    def parents(self, group: str) -> tuple[str, ...]:
        """Return the groups `group` is nested under."""
        return self.spec.parents.get(group, ())

    def under(self, group: str) -> Level:
        """Return the level of what is nested under `group`."""
        return Level(self.spec, (*self.pairs, group))

    def batch(self, group: str) -> tuple[Dim, ...]:
        """Name the dimensions along which `group` is solved separately: new units of its parents, and the pairs."""
        outside = [new(parent) for parent in self.parents(group) if parent not in self.pairs]
        return (*outside, *(dim for pair in self.pairs for dim in (new(pair), old(pair))))

    def settle(self, term: Term, rows: Rows, keep: Collection[str] = ()) -> Term:
        """Move every group of `term` but the pairs and those to `keep`; one without rows is averaged over.

        Parents go first: the rows of a nested group are told apart by the new units of its parents.
        """
        for group in sorted(term.unmoved, key=lambda name: len(self.parents(name))):
            if group not in self.pairs and group not in keep:
                term = term.moved(group, rows[group]) if group in rows else term.averaged(group)
        return term

    def free(self, terms: Iterable[Term], rows: Rows, group: str, nested: Collection[str] = ()) -> Iterator[Term]:
        """Yield terms in which `group`, and what is `nested` under it, is free and everything else is settled.

        A term that holds the group at two places is quadratic in it. It gives two linear ones, each with the group free
        at one place and settled at the other: together the gradient.
        """
        for term in terms:
            places = term.places(group)
            for place in places:
                alone = term
                if len(places) > 1:
                    alone = term.moved(group, rows[group], place) if group in rows else term.averaged(group, place)
                # The nested groups belong to the plain place; they are free only together with that.
                yield self.settle(alone, rows, {group, *(nested if place == 0 else ())}).freed(group, place)

    def gains(self, terms: Iterable[Term], group: str, *more: Tensor) -> Tensor:
        """Contract free terms to `Float[Tensor, "*batch n n"]` and add `more`: what old unit k is worth as new unit i.

        C[i,k] = sum over the places that carry the group of unfold(F(A))_i . unfold(pi_others(F(B)))_k. The axis that
        is solved for is never permuted.
        """
        dims = (*self.batch(group), new(group), old(group))
        total: Tensor | None = None
        for part in itertools.chain((term.contract(dims) for term in terms), more):
            total = part if total is None else total + part.to(total.device)
        return torch.zeros([self.spec.sizes[dim.group] for dim in dims]) if total is None else total
