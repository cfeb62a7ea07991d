"""Hybrid matching: weights and activations together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from onebasin.errors import UsageError
from onebasin.matching.alignment import Alignment
from onebasin.matching.objective import Objective
from onebasin.matching.weight import WeightMatching
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec


class Gains(Protocol):
    """A matcher whose objective is made of constant gains, such as `ActivationMatching`."""

    def objective(self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress) -> Objective:
        """Return the objective."""
        ...


@dataclass(frozen=True)
class Hybrid:
    """Maximise the fit of weights and activations: features of the tensors + mu x activation gains.

        sum over tensors of < F(A), pi(F(B)) >  +  mu sum over groups of 1/n sum over units i of R[i, pi(i)]

    n counts the units of the group (those of a nested group under all its parents). With unit-norm features and
    correlations as gains, a perfect match is worth 1 per tensor and mu per group.

    Args:
        activations: where the gains R come from; `ActivationMatching(..., statistic="correlation")` is meant.
        weights: which features ("unit" or `Covariance` is meant), and the solver that maximises the sum.
        mu: weight of the activations. In a study of small networks 1, 3 and 10 did about equally well.

    Differs: no paper has it; it is the sum of the objectives of ainsworth2023, sections 3.1 and 3.2, each normalised.
    """

    activations: Gains
    weights: WeightMatching = field(default_factory=lambda: WeightMatching(features="unit"))
    mu: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.mu < math.inf:
            raise UsageError(f"mu={self.mu}", "a number from 0 on", "pass 1, 3 or 10, say")

    def objective(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> Objective:
        """Return the sum."""
        found = self.activations.objective(spec, params_a, params_b, progress)
        shares = {name: gain * (self.mu / math.prod(spec.index_shape(name))) for name, gain in found.gains.items()}
        return self.weights.objective(spec, params_a, params_b, progress) + Objective(spec, found.features, shares)

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Maximise the sum from `start` on."""
        objective = self.objective(spec, params_a, params_b, progress)
        return self.weights.solve(objective, start, self, progress)
