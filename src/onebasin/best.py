"""Best: run the methods that do well, keep what the networks themselves agree with most, and polish it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import length_hint
from typing import Any

import torch
from torch import nn

from onebasin.batchnorm import recompute_batchnorm
from onebasin.errors import check_counts
from onebasin.functional import BatchLoss, check_repeatable
from onebasin.matching import (
    ActivationMatching,
    Alignment,
    BestOf,
    Criterion,
    Descent,
    Feature,
    Hybrid,
    Matcher,
    Polish,
    StopReason,
    WeightMatching,
)
from onebasin.matching.features import covariance_features
from onebasin.merging.normed import RepairedCriterion
from onebasin.pairs import PairMoments, PairStatistics
from onebasin.params import Params, params_of, widened_to
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec
from onebasin.symmetry.export import Outputs


@dataclass(frozen=True, eq=False)
class Best:
    """The matcher to use in practice: several methods, the choice between them, and polish. It needs inputs, no labels.

    1. Both networks see the batches once: cross moments of their units, and what every layer is multiplied with.
    2. The candidates (`candidates`) are solved: weights, activations, and hybrids of both.
    3. One is taken by `Criterion` J, how far the network half way between the two is from agreeing with them: weights,
       unless J of another one is surely lower (`BestOf`).
    4. `Descent` follows the gradient of J from the gains of activations.
    5. `Polish` lowers J further by swaps of units.

    The last two look at some of the batches, and are kept if that lowers J of the rest: so where weights alone match
    well, as on plain networks, they stay. On narrow networks with batch norm they do most, and take most of the time.
    Thousands of inputs are meant, in batches of about 128: of eight batches and more, eight are the choice's, and of
    sixteen and more, eight are the rest. Of a single batch there is no rest.
    `Alignment.objective` is minus J of the rest, from what the descent found on.

    Args:
        model: the architecture, a classifier unless there is a `loss`, on the device of the reference.
        batches: inputs: tensors, `(inputs, labels)`, or dicts of keyword inputs, readable many times. Labels are
            ignored, but by a `loss`.
        loss: `(predict, batch) -> scalar`, in the place of J: one with labels, or of a network that is no classifier.
        rounds: of polish, at most; 0 for neither descent nor polish.
        batchnorm: recompute each network's batch-norm statistics on the batches first, as synthetic inputs need.
        outputs: as it was given to `permutation_spec`.
        seed: of all visiting orders.
        repair: the merged network will be repaired (`repair`): then J is that of the repaired midpoint, whose units
            have the mean of both networks' statistics in every batch. Without a norm the two have different optima.

    Raises:
        UsageError: batches that can be read only once, or a negative number of rounds.

    Differs: no paper has it; the methods are those of ainsworth2023 and their hybrids.
    """

    model: nn.Module = field(repr=False)
    batches: Iterable[Any] = field(repr=False)
    loss: BatchLoss | None = field(default=None, repr=False)
    rounds: int = 10
    batchnorm: bool = False
    outputs: Outputs = None
    seed: int = 0
    repair: bool = False

    def __post_init__(self) -> None:
        check_repeatable(self.batches)
        check_counts(0, rounds=self.rounds)

    @property
    def criterion(self) -> Criterion:
        """What is lowered."""
        return (RepairedCriterion if self.repair else Criterion)(self.model, self.batches, self.loss)

    def candidates(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> dict[str, Matcher]:
        """Measure both networks in one pass, and return the matchers to choose from, by name.

        They are for these two networks, whose statistics they hold.

        Raises:
            UsageError: no batches, or one that the model rejects.
            ParamsError: activations are not finite.
        """
        return self._candidates(spec, *self._fresh(params_a, params_b, progress), progress)

    def _candidates(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress
    ) -> dict[str, Matcher]:
        seen = self._statistics(spec, params_a, params_b, progress)
        features = Given(covariance_features(spec, params_a, params_b, seen.layers_a, seen.layers_b))
        unit, product = WeightMatching(self.seed, features="unit"), ActivationMatching(lambda *_: seen.units)
        correlation = replace(product, statistic="correlation")
        relaxed = WeightMatching(self.seed, solver="frank-wolfe", features=features)
        descent = replace(relaxed, solver=unit.solver)
        return {
            "weights": unit,
            "activations, product": product,
            "activations, correlation": correlation,
            **{f"hybrid, mu {mu:g}": Hybrid(correlation, relaxed, mu) for mu in (1.0, 3.0, 10.0)},
            "hybrid from activations": After(correlation, Hybrid(correlation, descent)),
            "unit hybrid from activations": After(correlation, Hybrid(correlation, unit)),
        }

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Measure, choose and polish. An interrupt keeps the best so far, once there is one."""
        params_a, params_b = (widened_to(params_of(self.model), params) for params in (params_a, params_b))
        params_a, params_b = self._fresh(params_a, params_b, progress)
        if self.loss is not None and self.rounds:  # one without a gradient is told before the work begins
            part = next(self.criterion.between(params_a, params_b).parts(1))
            list(part.slopes(params_a, 0, torch.Generator()))
        candidates = self._candidates(spec, params_a, params_b, progress)
        seen = self.criterion.subject(spec, params_a, params_b, progress)
        of_these = {name: Of(spec, params_a, params_b, matcher) for name, matcher in candidates.items()}
        choice: Matcher = BestOf(seen.criterion.few(), of_these)
        if self.rounds:
            descent = Descent(seen.criterion, candidates["activations, correlation"], choice)  # type: ignore[arg-type]
            choice = Polish(seen.criterion, descent, self.rounds, self.seed)
        found = choice.match(seen.spec, seen.a, seen.b, seen.order(start), progress)
        return replace(found, matcher=self, permutation=Permutation(spec, found.permutation.indices))

    def _fresh(self, params_a: Params, params_b: Params, progress: Progress) -> tuple[Params, Params]:
        """Return both, their batch-norm statistics recomputed if that is wanted."""
        if not self.batchnorm:
            return params_a, params_b
        a, b = (recompute_batchnorm(self.model, one, self.batches, progress) for one in (params_a, params_b))
        return a, b

    def _statistics(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress
    ) -> PairStatistics:
        moments = PairMoments(self.model, spec, params_a, params_b, self.outputs)
        total = length_hint(self.batches)
        for done, batch in enumerate(self.batches, 1):
            moments.update(batch)
            progress("statistics", done, total)
        return moments.finalize()


@dataclass(frozen=True)
class Given:
    """Features that were computed before, for the two networks at hand."""

    features: tuple[Feature, ...] = field(repr=False)

    def of(self, *_: object) -> tuple[Feature, ...]:
        """Return them."""
        return self.features


@dataclass(frozen=True)
class Of:
    """What a matcher finds for two models, as an order of other networks with the same groups."""

    spec: PermutationSpec
    params_a: Params = field(repr=False)
    params_b: Params = field(repr=False)
    matcher: Matcher

    def match(
        self, spec: PermutationSpec, _: Params, __: Params, start: Permutation, progress: Progress = silent
    ) -> Alignment:
        """Match the two models."""
        begin = Permutation(self.spec, start.indices)
        found = self.matcher.match(self.spec, self.params_a, self.params_b, begin, progress)
        return replace(found, permutation=Permutation(spec, found.permutation.indices))


@dataclass(frozen=True)
class After:
    """One matcher after another, which begins where the first ended."""

    first: Matcher
    then: Matcher

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Run both, unless the first is interrupted."""
        found = self.first.match(spec, params_a, params_b, start, progress)
        if found.stop is StopReason.INTERRUPTED:
            return found
        last = self.then.match(spec, params_a, params_b, found.permutation, progress)
        return replace(last, certificate=found.certificate + last.certificate)
