"""Merge networks by aligning each to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import Tensor

from onebasin.errors import UsageError
from onebasin.interpolate import mean, shares_of
from onebasin.matching import Alignment, Matcher, StopReason, align
from onebasin.matching.alignment import settings_of
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# combine(models, weights) -> params; the models are aligned, the first is the reference.
Combine = Callable[[Sequence[Mapping[str, Tensor]], Sequence[float] | None], Params]


@dataclass(frozen=True)
class Merge:
    """Networks merged into one.

    Args:
        params: the merged weights.
        permutations: for each model, in the order given, what brings it into the order of the first; that of the first
            is the identity.
        alignments: how models were aligned, in the order given: to the first, which has none itself; with `merge_many`
            last to the mean of the others.
        aligned: the numbers of these models, from 0. An interrupt leaves out those whose turn had not come.
        provenance: how it was made, in JSON values: version, method, number of models, matcher and its settings,
            weights, combination.
        stop: why it ended: that of the first alignment that did not converge, or of the rounds of `merge_many`; an
            interrupt comes first.
        spread: with `merge_many`, `sum_i w_i |P_i theta_i - mean|^2 / sum_i w_i` before and after every round.
    """

    params: Params
    permutations: tuple[Permutation, ...]
    alignments: tuple[Alignment, ...]
    aligned: tuple[int, ...]
    provenance: Mapping[str, Any]
    stop: StopReason
    spread: tuple[float, ...] = ()

    def between(self, reference: int, moved: int) -> Permutation:
        """Return what brings the model numbered `moved` (from 0) into the order of the one numbered `reference`.

        Around any cycle of models these compose to the identity, exactly.
        """
        return self.permutations[reference].inverse() @ self.permutations[moved]

    def __str__(self) -> str:
        made = self.provenance
        head = f"{made['models']} models merged: {made['method']}, {made['matcher']}, {made['combine']}"
        lines = [f"model {n + 1}: {found}" for n, found in zip(self.aligned, self.alignments, strict=True)]
        return "\n".join([head, *self.rounds(), *lines])

    def rounds(self) -> tuple[str, ...]:
        """Return the line that says what the rounds of `merge_many` did; none without rounds."""
        if not self.spread:
            return ()
        came = f"mean squared distance to the mean {self.spread[0]:.6g} -> {self.spread[-1]:.6g}"
        return (f"{came} in {len(self.spread) - 1} rounds. {self.stop.value}",)


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

    Besides the models given it needs the memory of one more, and that of the matcher. An interrupt from the keyboard
    ends the matching: the best permutations until then are used, and `stop` says so; a model whose turn had not come
    keeps its own order.

    Args:
        spec: the symmetries of their architecture.
        models: two or more sets of params; the first is the reference, into whose order of units the others are put.
        matcher: how permutations are found; default `WeightMatching()`.
        weights: one number per model, of positive sum; default: all equal.
        combine: what is done with the aligned models; default `mean`. On the arc between two:
            `lambda models, weights: slerp(*models, 0.5)`. Tensors of moved models are permuted when they are looked up.
        progress: called after each model, and by the matcher.

    Returns:
        The merged params and how they came about. A network with batch norm needs `recompute_batchnorm` before use.

    Raises:
        UsageError: fewer than two models, no matcher, or weights that do not fit.
        ParamsError: params that do not fit the spec, or are not finite.

    Source: ainsworth2023, section 3 (two models). Differs: more than two are each aligned to the first;
    `merge_many` treats all alike.
    """
    check_count(models)
    shares_of(len(models), weights)  # weights that do not fit are told before any work is done
    alignments = _to_first(spec, models, matcher, progress)
    left = [Permutation.identity(spec)] * (len(models) - 1 - len(alignments))
    permutations = (Permutation.identity(spec), *(found.permutation for found in alignments), *left)
    stops = [found.stop for found in alignments if found.stop is not StopReason.CONVERGED]
    cut = bool(left) or StopReason.INTERRUPTED in stops
    stop = StopReason.INTERRUPTED if cut else (*stops, StopReason.CONVERGED)[0]
    made = provenance("each model aligned to the first", len(models), alignments[0].matcher, weights)
    made["combine"] = getattr(combine, "__name__", str(combine))
    moved = [Moved(permutation, model) for permutation, model in zip(permutations[1:], models[1:], strict=True)]
    aligned = tuple(range(1, len(alignments) + 1))
    return Merge(combine([models[0], *moved], weights), permutations, tuple(alignments), aligned, made, stop)


def check_count(models: Sequence[object]) -> None:
    """Raise `UsageError` if there are fewer than two models, or what was passed is one."""
    if not isinstance(models, Sequence):
        do = "pass [params_a, params_b, ...]"
        raise UsageError(f"a {type(models).__name__} in the place of several models", "a list of params", do)
    if len(models) < 2:
        raise UsageError(f"{len(models)} models to merge", "two or more", "pass [params_a, params_b, ...]")


@dataclass(frozen=True)
class Moved(Mapping[str, Tensor]):
    """Params in another order, which are permuted one by one as they are looked up: no copy of all is held."""

    permutation: Permutation
    params: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.permutation.move(self.params[name], self.permutation.spec.tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)


def _to_first(
    spec: PermutationSpec, models: Sequence[Mapping[str, Tensor]], matcher: Matcher | None, progress: Progress
) -> list[Alignment]:
    """Align models to the first in turn; an interrupt ends it, unless nothing has been found yet."""
    found: list[Alignment] = []
    try:
        for number, moved in enumerate(models[1:], 1):
            found.append(align(spec, models[0], moved, matcher, progress=progress))
            if found[-1].stop is StopReason.INTERRUPTED:
                break
            progress("align", number, len(models) - 1)
    except KeyboardInterrupt:
        if not found:
            raise
    return found


def provenance(method: str, models: int, matcher: Matcher, weights: Sequence[float] | None) -> dict[str, Any]:
    """Return how a merge was made, in JSON values."""
    return {
        "version": version("onebasin"),
        "method": method,
        "models": models,
        "matcher": type(matcher).__name__,
        "settings": settings_of(matcher),
        "weights": None if weights is None else list(weights),
        "combine": "mean",
    }
