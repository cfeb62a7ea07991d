"""Points between networks: linear and spherical interpolation, and the weighted mean. Params in, new params out.

Tied tensors stay tied; dtype and device are those of the first (the reference); bf16 and fp16 are computed in float32.
Tensors that are not numbers on a scale (counters, masks, indices) cannot be interpolated: they are the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from onebasin.errors import ParamsError, UsageError, listing
from onebasin.params import Params, check_shapes, compute_dtype, map_tensors, tied_names
from onebasin.spec import STATISTICS

# Below this sine two directions count as parallel: arc and chord then differ by less than rounding in float32.
PARALLEL = 1e-6
Interpolation = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], float], Params]
Blend = Callable[[str, Tensor, Tensor], Tensor]


def lerp(a: Mapping[str, Tensor], b: Mapping[str, Tensor], lam: float) -> Params:
    """Return `(1 - lam) * a + lam * b`, tensor by tensor.

    Args:
        a: the reference, at `lam = 0`, bit by bit.
        b: the moved model, at `lam = 1`, bit by bit, its counters and masks included.
        lam: the position on the line; outside [0, 1] it extrapolates.

    Raises:
        ParamsError: the two do not have the same tensors, all differences listed.
    """
    return _between(a, b, lam, lambda _, one, other: torch.lerp(one, other, lam))


def slerp(a: Mapping[str, Tensor], b: Mapping[str, Tensor], lam: float) -> Params:
    """Turn each tensor of `a` towards its counterpart in `b`: the direction on the great circle, the norm linearly.

    For a tensor with unit directions u of `a` and v of `b`, w their angle, the direction is
    `(sin((1 - lam) w) u + sin(lam w) v) / sin w` and the norm `(1 - lam) |a| + lam |b|`.

    Each tensor has its own angle: every layer's scale enters the function by itself, while the angle between two whole
    parameter vectors would be that of the largest tensors. Directions that are parallel, opposite, or of a zero tensor
    span no unique arc, and statistics of normalisation layers are no directions: these are interpolated linearly.

    Args:
        a: the reference, at `lam = 0`, bit by bit.
        b: the moved model, at `lam = 1`, bit by bit.
        lam: the position on the arc.

    Raises:
        ParamsError: the two do not have the same tensors, all differences listed.

    Source: shoemake1985; tried on aligned networks in ainsworth2023, footnote 3.
    Differs: Shoemake's arc is for unit vectors, so norms are interpolated apart from it.
    """
    return _between(a, b, lam, lambda name, one, other: _arc(name, one, other, lam))


def mean(models: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> Params:
    """Return `sum_i w_i models[i] / sum_i w_i`, tensor by tensor.

    Args:
        models: at least one; the first is the reference.
        weights: one number per model, of positive sum; default: all equal. Negative ones extrapolate.

    Raises:
        ParamsError: models do not have the same tensors.
        UsageError: no models, or weights that do not fit.
    """
    shares = shares_of(len(models), weights)
    for number, other in enumerate(models[1:], 2):
        _check_fit(models[0], other, f"params of model {number}")

    def average(name: str, first: Tensor) -> Tensor:
        # Equal tensors stay as they are, as in `_between`. Each is looked up only when it is needed, to be freed again.
        if not _on_a_scale(first) or all(torch.equal(first, model[name].to(first)) for model in models[1:]):
            return first.clone()
        total = first.to(compute_dtype(first)) * shares[0]
        for model, share in zip(models[1:], shares[1:], strict=True):
            tensor = model[name]
            total = total.to(torch.promote_types(total.dtype, compute_dtype(tensor)))
            total = total.add_(tensor.to(total), alpha=share)
        return total.to(first.dtype)

    return map_tensors(models[0], average)


def shares_of(count: int, weights: Sequence[float] | None) -> list[float]:
    """Return how much each of `count` models counts, of sum 1. Raises `UsageError` if the weights do not fit."""
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if not count or len(given) != count or not all(map(math.isfinite, given)) or not sum(given) > 0:
        raise UsageError(
            f"{count} models and the weights {weights}",
            "at least one model, and one finite weight per model, of positive sum",
            "pass one weight per model, or none for the plain mean",
        )
    return [weight / sum(given) for weight in given]


def _between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], lam: float, blend: Blend) -> Params:
    _check_fit(a, b, "params of the moved model")

    def one(name: str, tensor: Tensor) -> Tensor:
        other = b[name]
        if lam == 1:
            return other.to(tensor.device, tensor.dtype, copy=True)
        # Equal tensors stay as they are: masks hold infinities, whose difference is not a number.
        if lam == 0 or not _on_a_scale(tensor) or torch.equal(tensor, other.to(tensor)):
            return tensor.clone()
        dtype = torch.promote_types(compute_dtype(tensor), compute_dtype(other))
        return blend(name, tensor.to(dtype), other.to(tensor.device, dtype)).to(tensor.dtype)

    return map_tensors(a, one)


def _arc(name: str, a: Tensor, b: Tensor, lam: float) -> Tensor:
    norm_a, norm_b = (float(torch.linalg.vector_norm(tensor, dtype=_wide(tensor))) for tensor in (a, b))
    if name.rpartition(".")[2] in STATISTICS or not norm_a or not norm_b:
        return torch.lerp(a, b, lam)
    u, v = a / norm_a, b / norm_b
    # The arc tangent keeps its precision at small angles, where the arc cosine of the inner product loses half of it.
    apart, together = (float(torch.linalg.vector_norm(tensor, dtype=_wide(tensor))) for tensor in (u - v, u + v))
    angle = 2 * math.atan2(apart, together)
    if math.sin(angle) < PARALLEL:
        return torch.lerp(a, b, lam)
    norm = ((1 - lam) * norm_a + lam * norm_b) / math.sin(angle)
    return u.mul_(norm * math.sin((1 - lam) * angle)).add_(v, alpha=norm * math.sin(lam * angle))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float64)


def _on_a_scale(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _check_fit(a: Mapping[str, Tensor], b: Mapping[str, Tensor], what: str) -> None:
    check_shapes(b, {name: tuple(tensor.shape) for name, tensor in a.items()}, what, "the reference")
    apart = [name for first, *rest in tied_names(a) for name in rest if not torch.equal(b[first], b[name])]
    if apart:
        raise ParamsError(
            f"{what} hold different values where the reference has one tied tensor: {listing(apart)}",
            "tensors that are tied in the reference to be equal in every other model",
            "untie the reference (clone the tensors), or take models trained with the same ties",
        )
