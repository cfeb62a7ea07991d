"""MergeMany: several networks brought into one common order, each aligned in turn to the mean of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Self

import torch
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.interpolate import shares_of
from onebasin.matching import Alignment, Matcher, StopReason, align
from onebasin.matching.align import matcher_of
from onebasin.matching.best_of import Incumbent
from onebasin.matching.criterion import criterion_of
from onebasin.merging.merge import Merge, check_count, provenance
from onebasin.params import Params, check_finite, check_real, check_shapes, compute_dtype, map_tensors
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# A move must bring the model closer to the others by this share of its squared norm: the paper's figure, made relative.
IMPROVEMENT = 1e-12
MAX_ROUNDS = 100  # the default of ainsworth2023's code
PIECE = 1 << 20  # elements that are computed in float64 at a time


def merge_many(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, Tensor]],
    matcher: Matcher | None = None,
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    max_rounds: int = MAX_ROUNDS,
    progress: Progress = silent,
) -> Merge:
    """Find a common order for all models, in which they lie closest to their mean, and return that mean.

    Minimises `sum_i w_i |P_i theta_i - mean|^2` over the permutations of all models: in every round each model, in a
    fresh random order, is aligned to the mean of the others as they stand. It ends when a round moves none of them.
    No model is special; at the end all are put into the order of the first, which is then the identity's.

    Besides the models given it needs the memory of one more.

    Args:
        spec: the symmetries of their architecture.
        models: two or more sets of params.
        matcher: how a model is aligned to the mean of the others; default `WeightMatching()`.
        weights: how much each model counts, not negative, at least two of them positive; default: all the same.
        seed: of the orders in which models are visited.
        max_rounds: give up after so many rounds; 100 is the default of ainsworth2023's code.
        progress: called after each model with the number of models aligned; the total is unknown.

    Returns:
        The mean and how it came about. An interrupt from the keyboard does not raise: the best so far is returned, and
        `stop` says so. A network with batch norm needs `recompute_batchnorm` before use.

    Raises:
        UsageError: fewer than two models, no rounds, no matcher, or weights that do not fit.
        ParamsError: params that do not fit the spec, or are not finite.

    Source: ainsworth2023, appendix A.10, Alg. 3.
    Differs: weights; and a permutation is taken only if it brings the model closer to the others in the
    float64 sum, so the distance never rises. With a matcher that lowers a `Criterion`, as `Best` does, only that is
    looked at, between the model and the mean of the others: it must surely fall (`BestOf`), and the distance may rise.
    """
    run = Rounds.of(spec, models, matcher, weights, max_rounds)
    stop = run.search(seed, progress)
    return run.merged(stop, "every model aligned to the mean of the others", {"seed": seed, "max_rounds": max_rounds})


@dataclass
class Rounds:
    """The models and the order each has been brought into so far.

    Args:
        spec: what may be permuted.
        models: the models as given.
        shares: how much each counts, of sum 1.
        weights: the same as given.
        matcher: how a model is aligned to the mean of the others.
        most: give up after so many rounds.
        permutations: the present order of each.
        alignments: number of a model -> how it was aligned last.
        spread: the distances to the mean so far.
    """

    spec: PermutationSpec
    models: Sequence[Mapping[str, Tensor]]
    shares: Sequence[float]
    weights: Sequence[float] | None
    matcher: Matcher
    most: int
    permutations: list[Permutation] = field(init=False)
    alignments: dict[int, Alignment] = field(default_factory=dict)
    spread: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.permutations = [Permutation.identity(self.spec)] * len(self.models)

    @classmethod
    def of(
        cls,
        spec: PermutationSpec,
        models: Sequence[Mapping[str, Tensor]],
        matcher: Matcher | None,
        weights: Sequence[float] | None,
        most: int,
    ) -> Self:
        """Begin with all models as they are, once they have been checked."""
        check_count(models)
        if most < 1:
            raise UsageError(f"max_rounds={most}", "at least one round", "use `merge` to align all to the first")
        for number, params in enumerate(models, 1):
            check_shapes(params, spec.shapes, f"params of model {number}")
            check_real(params, spec.matched, f"params of model {number}")
            check_finite(params, f"params of model {number}")
        return cls(spec, models, _shares(len(models), weights), weights, matcher_of(matcher), most)

    def merged(self, stop: StopReason, method: str, settings: Mapping[str, Any]) -> Merge:
        """Return the mean, all models in the order of the first."""
        common = self.permutations[0].inverse()
        self.permutations = [common @ permutation for permutation in self.permutations]
        aligned = tuple(sorted(self.alignments))
        alignments = tuple(self.alignments[number] for number in aligned)
        made = provenance(method, len(self.models), self.matcher, self.weights) | dict(settings)
        everyone = range(len(self.models))
        params = map_tensors(self.models[0], lambda name, first: self.average(name, everyone).to(first.dtype))
        return Merge(params, tuple(self.permutations), alignments, aligned, made, stop, tuple(self.spread))

    def search(self, seed: int, progress: Progress) -> StopReason:
        """Visit the models in random orders until none moves any more."""
        orders = torch.Generator().manual_seed(seed)
        self.note_spread()
        try:
            return self.rounds(orders, progress)
        except KeyboardInterrupt:
            if len(self.spread) == 1 and not self.alignments:
                raise  # nothing has been found yet
            self.note_spread()
            return StopReason.INTERRUPTED

    def rounds(self, orders: torch.Generator, progress: Progress) -> StopReason:
        """Align each model to the mean of all others, again and again."""
        done = 0
        for _ in range(self.most):
            moved = False
            for number in torch.randperm(len(self.models), generator=orders).tolist():
                moved |= self.step(number, progress)
                done += 1
                progress("merge", done, 0)
            self.note_spread()
            if not moved:
                return StopReason.CONVERGED
        return StopReason.MAX_SWEEPS

    def step(self, number: int, progress: Progress) -> bool:
        """Align one model to the mean of the others; take the result, and return True, if it is better."""
        mean = self.mean([other for other in range(len(self.models)) if other != number])
        model, before = self.models[number], self.permutations[number]
        found = align(self.spec, mean, model, self.matcher, start=before, progress=progress)
        self.alignments[number] = found
        criterion = criterion_of(self.matcher)
        if criterion is not None:
            seen = criterion.subject(self.spec, mean, dict(model), progress)
            best = Incumbent(seen.criterion.between(seen.a, seen.b), seen.order(before))
            better = best.challenge(seen.order(found.permutation))
        else:
            least = IMPROVEMENT * math.fsum(_squares(model[name]) for name in self.spec.trained)
            better = self.apart(mean, number, before) - self.apart(mean, number, found.permutation) > least
        if better:
            self.permutations[number] = found.permutation
        if found.stop is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        return better

    def mean(self, numbers: Sequence[int]) -> Params:
        """Return the weighted mean of some models in their present order, computed tensor by tensor."""
        return map_tensors(self.models[numbers[0]], lambda name, _: self.average(name, numbers))

    def average(self, name: str, numbers: Sequence[int]) -> Tensor:
        """Return the weighted mean of one tensor; one that is not a number on a scale is that of the first."""
        first = self.moved(name, numbers[0])
        if not (first.is_floating_point() or first.is_complex()):
            return first
        dtype = reduce(torch.promote_types, (compute_dtype(self.models[number][name]) for number in numbers))
        total, whole = torch.zeros_like(first, dtype=dtype), sum(self.shares[number] for number in numbers)
        for number in numbers:
            total.add_(self.moved(name, number).to(total), alpha=self.shares[number] / whole)
        return total

    def moved(self, name: str, number: int, permutation: Permutation | None = None) -> Tensor:
        """Return one tensor of one model in its present order, or in that of `permutation`."""
        return (permutation or self.permutations[number]).move(self.models[number][name], self.spec.tensors[name])

    def apart(self, mean: Params, number: int, permutation: Permutation) -> float:
        """Return the squared distance of a model in some order from the mean of the others."""
        return math.fsum(_squares(mean[name], self.moved(name, number, permutation)) for name in self.spec.trained)

    def note_spread(self) -> None:
        """Note how far all models are from their mean now."""
        self.spread.append(self.squared_distance())

    def squared_distance(self) -> float:
        """Return the weighted mean of the squared distances of all models to their mean."""
        everyone, parts = range(len(self.models)), []
        for name in self.spec.trained:
            mean = self.average(name, everyone)
            parts += [self.shares[number] * _squares(mean, self.moved(name, number)) for number in everyone]
        return math.fsum(parts)


def _squares(one: Tensor, other: Tensor | None = None) -> float:
    """Return the sum of squares of a tensor, or of the difference of two, in float64, a piece at a time."""
    parts = one.reshape(-1).split(PIECE)
    others = [None] * len(parts) if other is None else other.reshape(-1).split(PIECE)
    return math.fsum(_norm(part, minus) ** 2 for part, minus in zip(parts, others, strict=True))


def _norm(one: Tensor, minus: Tensor | None) -> float:
    wide = one.to(torch.promote_types(one.dtype, torch.float64))
    return torch.linalg.vector_norm(wide if minus is None else wide - minus.to(wide)).item()


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    shares = shares_of(count, weights)
    if min(shares) < 0 or sum(share > 0 for share in shares) < 2:
        raise UsageError(
            f"{count} models and the weights {weights}",
            "one finite weight per model, none negative, at least two positive",
            "pass one weight per model, or none for the plain mean",
        )
    return shares
