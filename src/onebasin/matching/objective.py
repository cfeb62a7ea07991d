"""Objective: what a matching method maximises. The only thing a solver sees of it is this class."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from onebasin.errors import ParamsError, listing
from onebasin.matching.gains import Level, rows_of, total
from onebasin.matching.terms import Term, constant_term, feature_terms
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


@dataclass(frozen=True, eq=False)
class Feature:
    """What is compared of one tensor: F(A) and F(B), both laid out like the tensor called `name` in the spec."""

    name: str
    a: Tensor
    b: Tensor


@dataclass(frozen=True, eq=False)
class Objective:
    """A function of the permutation pi, to be maximised.

        value(pi) = sum over features of < F(A), pi(F(B)) >  +  sum over groups and new units i of R[i, pi(i)]

    Weight matching has the weights as features, activation matching has constant gains R, hybrids have both: the sum of
    two objectives is an objective.

    Args:
        spec: what may be permuted.
        features: pairs of tensors that move like a tensor of the spec. A tied tensor should be listed once
            (`spec.matched` does).
        gains: group -> constant gain `Float[Tensor, "n n"]`, new units first, as in R[i, k]; for a nested group
            `"*parents n *parents n"`: new parent units and unit, then old parent units and unit.

    Raises:
        ParamsError: a name, or the shape of a feature or gain, that does not fit the spec.
    """

    spec: PermutationSpec
    features: tuple[Feature, ...] = ()
    gains: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [*_feature_problems(self), *_gain_problems(self)]
        if problems:
            raise ParamsError(
                f"features or gains that do not fit the spec: {listing(problems)}",
                "features laid out like their tensor, gains of all new units by all old units",
                "build both from the params and the spec of one architecture",
            )

    def __add__(self, other: Objective) -> Objective:
        """Return the objective whose value is the sum of both."""
        names = dict.fromkeys([*self.gains, *other.gains])
        both = {name: [part.gains[name] for part in (self, other) if name in part.gains] for name in names}
        summed = {
            name: rows[0] + rows[1].to(rows[0].device) if len(rows) > 1 else rows[0] for name, rows in both.items()
        }
        return Objective(self.spec, self.features + other.features, summed)

    def value(self, permutation: Permutation, holding: str | None = None) -> float:
        """Return the objective at `permutation`, summed in float64; of the tensors that hold one group, if given."""
        terms = self.blocks if holding is None else self.holding(holding)
        return total(self.spec, terms, rows_of(permutation))

    def gain(self, permutation: Permutation, group: str) -> Tensor:
        """Return `Float[Tensor, "*parents n n"]`: what old unit k is worth as new unit i, all other groups fixed.

        C[i,k] = sum over the places that carry the group of unfold(F(A))_i . unfold(pi_others(F(B)))_k. It does not
        depend on the group's own index, unless the group stands on two axes of one block: there the objective is
        quadratic in it, and C is its gradient at `permutation`.
        """
        level, rows = Level(self.spec), rows_of(permutation)
        return level.gains(level.free(self.terms(group), rows, group), group)

    @cached_property
    def blocks(self) -> tuple[Term, ...]:
        """The bilinear terms of the objective, as views of the features in their own dtype."""
        features = (feature_terms(f.a, f.b, self.spec.tensors[f.name]) for f in self.features)
        constants = (constant_term(self.spec, group, gain) for group, gain in self.gains.items())
        return (*itertools.chain.from_iterable(features), *constants)

    @cached_property
    def _holding(self) -> dict[str, list[Term]]:
        result: dict[str, list[Term]] = {}
        for term in self.blocks:
            for group in term.unmoved:
                result.setdefault(group, []).append(term)
        return result

    def terms(self, holding: str | None = None) -> Iterator[Term]:
        """Yield the terms of the objective, or of those the ones that hold a group.

        Half precision is widened to float32 here, one after the other, so that no copy of a whole model is made.
        """
        return (term.widened() for term in (self.blocks if holding is None else self.holding(holding)))

    def holding(self, group: str) -> Sequence[Term]:
        """Return the terms that hold a group, in their own dtype."""
        return self._holding.get(group, [])

    @property
    def nbytes(self) -> int:
        """The size of all features and gains, in bytes."""
        tensors = [*(x for f in self.features for x in (f.a, f.b)), *self.gains.values()]
        return sum(tensor.nbytes for tensor in tensors)

    def scale(self) -> float:
        """Return a bound of the absolute value: sum of |F(A)| |F(B)| (Frobenius) and of each unit's largest gain."""
        return math.fsum(term.bound for term in self.blocks)


def _feature_problems(objective: Objective) -> Iterator[str]:
    shapes = objective.spec.shapes
    for feature in objective.features:
        if feature.name not in shapes:
            yield f"{feature.name}: no such tensor"
            continue
        for tensor in (feature.a, feature.b):
            if tuple(tensor.shape) != shapes[feature.name]:
                yield f"{feature.name}: {tuple(tensor.shape)} instead of {shapes[feature.name]}"


def _gain_problems(objective: Objective) -> Iterator[str]:
    for name, gain in objective.gains.items():
        if name not in objective.spec.sizes:
            yield f"{name}: no such group"
        elif tuple(gain.shape) != objective.spec.index_shape(name) * 2:
            yield f"gain of {name}: {tuple(gain.shape)} instead of {objective.spec.index_shape(name) * 2}"
