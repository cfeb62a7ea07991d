"""Activation matching: the permutation that brings the activations of two models closest together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from onebasin.errors import UsageError
from onebasin.matching.alignment import Alignment
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.matching.objective import Objective
from onebasin.moments import CrossStatistics
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# measure(spec, params_a, params_b, progress) -> group -> statistics of its units, those of a nested group flattened.
Measure = Callable[[PermutationSpec, Params, Params, Progress], Mapping[str, CrossStatistics]]
Statistic = Literal["product", "correlation"]


@dataclass(frozen=True)
class ActivationMatching:
    """Minimise the distance of the activations, sum over samples of | z_A - pi(z_B) |^2, for each group by itself.

    That is to maximise sum over units i of R[i, pi(i)] with R = E[z_A z_B^T]: one assignment per group, independent of
    all others; a group and what is nested under it are solved together. Every place where a group is read counts.
    A group that is read nowhere (the inner states of a recurrent layer) keeps the order of the start.

    Args:
        measure: how the statistics of two networks are obtained: `Activations(model, batches)`, or any function of
            their spec, params and a `Progress` that returns group -> `CrossStatistics`.
        statistic: "product": E[z_A z_B^T], neither centred nor scaled, the paper's; "correlation": Pearson's, which
            weighs all units alike and gives a unit that never changes no preference.

    Source: ainsworth2023, section 3.1.
    Differs: the paper has one place per group; here those of a residual stream are pooled.
    """

    measure: Measure = field(repr=False)
    statistic: Statistic = "product"

    def __post_init__(self) -> None:
        if self.statistic not in ("product", "correlation"):
            raise UsageError(f"statistic {self.statistic!r}", '"product" or "correlation"', "choose one of them")
        if not callable(self.measure):
            do = "pass Activations(model, batches)"
            raise UsageError(f"a {type(self.measure).__name__} as measure", "what measures the activations", do)

    def objective(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> Objective:
        """Return the objective that has the statistics as constant gains."""
        found = self.measure(spec, params_a, params_b, progress)
        return Objective(spec, gains={name: self._gain(spec, name, statistics) for name, statistics in found.items()})

    def _gain(self, spec: PermutationSpec, group: str, statistics: CrossStatistics) -> Tensor:
        gain = statistics.product if self.statistic == "product" else statistics.correlation
        return gain.reshape(spec.index_shape(group) * 2)

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Measure, then solve every group exactly from `start`."""
        return CoordinateDescent().maximise(self.objective(spec, params_a, params_b, progress), start, self, progress)
