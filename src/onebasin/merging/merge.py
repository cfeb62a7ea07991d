"""Merge networks by aligning each to the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import Tensor

from onebasin.errors import UsageError
from onebasin.interpolate import mean
from onebasin.matching import Alignment, Matcher, align
from onebasin.params import Params
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# combine(models, weights) -> params; the models are aligned, the first is the reference.
Combine = Callable[[Sequence[Mapping[str, Tensor]], Sequence[float] | None], Params]


@dataclass(frozen=True)
class Merge:
    """Networks merged into one.

    Args:
        params: the merged weights.
        alignments: how each model was aligned, in the order given; the reference, which stays as it is, has none.
        provenance: how it was made, in JSON values: version, method, number of models, matcher and its settings,
            weights, combination.
    """

    params: Params
    alignments: tuple[Alignment, ...]
    provenance: Mapping[str, Any]

    def __str__(self) -> str:
        made = self.provenance
        head = f"{made['models']} models merged: {made['method']}, {made['matcher']}, {made['combine']}"
        return "\n".join([head, *(f"model {number}: {found}" for number, found in enumerate(self.alignments, 2))])


def merge(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, Tensor]],
    matcher: Matcher | None = None,
    *,
    weights: Sequence[float] | None = None,
    combine: Combine = mean,
    progress: Progress = silent,
) -> Merge:
    """Align every model to the first, then average: `combine([a, P_b b, P_c c, ...], weights)`.

    Args:
        spec: the symmetries of their architecture.
        models: two or more sets of params; the first is the reference, into whose order of units the others are put.
        matcher: how permutations are found; default `WeightMatching()`.
        weights: one number per model, of positive sum; default: all equal.
        combine: what is done with the aligned models; default `mean`. On the arc between two:
            `lambda models, weights: slerp(*models, 0.5)`.
        progress: called after each model, and by the matcher.

    Returns:
        The merged params and how they came about. A network with batch norm needs `recompute_batchnorm` before use.

    Raises:
        UsageError: fewer than two models, or weights that do not fit.
        ParamsError: params that do not fit the spec, or are not finite.

    Source: ainsworth2023, section 3 (two models). Differs: more than two are each aligned to the first.
    """
    if len(models) < 2:
        raise UsageError(f"{len(models)} models to merge", "two or more", "pass [params_a, params_b, ...]")
    alignments, aligned = [], [models[0]]
    for number, moved in enumerate(models[1:], 1):
        alignments.append(align(spec, models[0], moved, matcher, progress=progress))
        aligned.append(alignments[-1].permutation.apply(moved))
        progress("align", number, len(models) - 1)
    method = alignments[0].to_json()
    provenance = {
        "version": version("onebasin"),
        "method": "each model aligned to the first",
        "models": len(models),
        "matcher": method["matcher"],
        "settings": method["settings"],
        "weights": None if weights is None else list(weights),
        "combine": getattr(combine, "__name__", str(combine)),
    }
    return Merge(combine(aligned, weights), tuple(alignments), provenance)
