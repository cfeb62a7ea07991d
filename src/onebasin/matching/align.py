"""Align two models: check them, then match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from onebasin.errors import SpecError, UsageError, near
from onebasin.matching.alignment import Alignment, Matcher
from onebasin.matching.weight import WeightMatching
from onebasin.params import DIVERGED, check_finite, check_real, check_shapes
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import STATISTICS, PermutationSpec

# What the command line calls a matcher -> the object that it is in Python.
MatcherName = Literal["weight", "activation", "straight-through", "sinkhorn", "frank-wolfe", "best"]
NAMED: dict[str, str] = {
    "weight": "ob.WeightMatching()",
    "activation": "ob.ActivationMatching(ob.Activations(model, batches))",
    "straight-through": "ob.StraightThrough(model, batches)",
    "sinkhorn": "ob.SinkhornRebasin(model, batches)",
    "frank-wolfe": 'ob.WeightMatching(solver="frank-wolfe")',
    "best": "ob.Best(model, batches)",
}


def matcher_of(matcher: Matcher | None) -> Matcher:
    """Return `matcher`, or the default; raise `UsageError` if it is none: a name, or a class that was not called."""
    if matcher is None:
        return WeightMatching()
    if isinstance(matcher, type) or not callable(getattr(matcher, "match", None)):
        given = f"the class {matcher.__name__}" if isinstance(matcher, type) else repr(matcher)
        meant = near(matcher, NAMED) if isinstance(matcher, str) else []
        do = f"pass {NAMED[meant[0]]}" if meant else "pass one of these objects"
        raise UsageError(f"{given:.60} as matcher", f"one of {', '.join(NAMED.values())}, or your own", do)
    return matcher


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
        UsageError: `matcher` is none, as a name is.
    """
    method = matcher_of(matcher)
    for params, what in ((params_a, "the reference"), (params_b, "the moved model")):
        check_shapes(params, spec.shapes, what)
        check_real(params, spec.matched, what)
        check_numbers(spec, params, what)
    if start is not None and start.spec != spec:
        raise SpecError(
            "a start for another spec", "a permutation of the spec given", "build it with Permutation(spec, ...)"
        )
    first = Permutation.identity(spec) if start is None else start
    return method.match(spec, dict(params_a), dict(params_b), first, progress)


def check_numbers(spec: PermutationSpec, params: Mapping[str, Tensor], what: str, do: str = DIVERGED) -> None:
    """Raise `ParamsError` if parameters or running statistics are not finite, all named, and say what to `do`."""
    # Other buffers may hold infinities on purpose (attention masks).
    numbers = [name for name in params if name not in spec.buffers or name.rpartition(".")[2] in STATISTICS]
    check_finite({name: params[name] for name in numbers}, what, do)
