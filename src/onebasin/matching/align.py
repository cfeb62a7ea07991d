"""Align two models: check them, then match."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from onebasin.errors import SpecError
from onebasin.matching.alignment import Alignment, Matcher
from onebasin.matching.weight import WeightMatching
from onebasin.params import check_finite, check_real, check_shapes
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import STATISTICS, PermutationSpec


def align(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    matcher: Matcher | None = None,
    *,
    start: Permutation | None = None,
    progress: Progress = silent,
) -> Alignment:
    """Find the order of B's units that fits A best.

    `align(spec, a, b).permutation.apply(b)` computes the same function as b, with its units in a's order.

    Args:
        spec: what may be permuted.
        params_a: the reference (lam = 0). It decides the device on which products are computed.
        params_b: the model to be moved (lam = 1); it may have another dtype, and be on another device.
        matcher: method and settings; default `WeightMatching()`.
        start: permutation to begin with; default the identity.
        progress: called as the work proceeds.

    Raises:
        ParamsError: one of the models does not fit the spec, or holds integers or values that are not finite; all are
            named.
        SpecError: `start` belongs to another spec.
    """
    for params, what in ((params_a, "the reference"), (params_b, "the moved model")):
        check_shapes(params, spec.shapes, what)
        check_real(params, spec.matched, what)
        # Other buffers may hold infinities on purpose (attention masks).
        numbers = [name for name in params if name not in spec.buffers or name.rpartition(".")[2] in STATISTICS]
        check_finite({name: params[name] for name in numbers}, what)
    if start is not None and start.spec != spec:
        raise SpecError(
            "a start for another spec", "a permutation of the spec given", "build it with Permutation(spec, ...)"
        )
    first = Permutation.identity(spec) if start is None else start
    return (matcher or WeightMatching()).match(spec, dict(params_a), dict(params_b), first, progress)
