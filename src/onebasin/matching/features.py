"""Features: what weight matching compares of each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.layers import LayerStatistics
from onebasin.matching.objective import Feature
from onebasin.params import Params, compute_dtype
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

FeatureName = Literal["raw", "unit"]
# measure(params, progress) -> weight -> statistics of what it is multiplied with: `LayerInputs(model, batches)`.
LayerMeasure = Callable[[Params, Progress], Mapping[str, LayerStatistics]]
# An output that deviates by less than this share of the layer's liveliest one is rounding.
DEAD = 1e-10


class Features(Protocol):
    """A way to make features of two models: a frozen dataclass such as `Covariance`."""

    def of(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> tuple[Feature, ...]:
        """Return the features; tensors without one are not compared."""
        ...


@dataclass(frozen=True)
class Covariance:
    """Weights as the data see them: each network's layers, weighed by its own statistics, and of unit norm.

        F = diag(1 / s) W Sigma^(1/2), divided by sqrt(|F_A| |F_B|) (Frobenius norms)

    Sigma: covariance of the input channels of the weight, the same at every offset of a kernel; s: deviation of its
    outputs. | F_A - F_B | is then how far apart the outputs are, up to their means, had both networks the same inputs.
    F moves as the weight does. Where a matrix has one input (depthwise convolutions), rows are scaled only; a weight
    without statistics (embeddings, recurrent layers) is taken as it is; tensors of one axis are left out, as in "unit".

    Args:
        measure: how the statistics of one network are obtained: `LayerInputs(model, batches)`, or any function of its
            params and a `Progress` that returns weight -> `LayerStatistics`.

    Differs: no paper has it; it is weight matching (ainsworth2023, section 3.2) in another metric.
    """

    measure: LayerMeasure = field(repr=False)

    def of(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> tuple[Feature, ...]:
        """Measure both networks, and return the features."""
        seen = [self.measure(params, progress) for params in (params_a, params_b)]
        return covariance_features(spec, params_a, params_b, *seen)


def covariance_features(
    spec: PermutationSpec,
    params_a: Params,
    params_b: Params,
    seen_a: Mapping[str, LayerStatistics],
    seen_b: Mapping[str, LayerStatistics],
) -> tuple[Feature, ...]:
    """Return the features of `Covariance`, from the statistics of both networks."""
    a, b = (
        {name: _as_seen(params[name], seen[name]) if name in seen else params[name] for name in spec.matched}
        for params, seen in ((params_a, seen_a), (params_b, seen_b))
    )
    return _unit([Feature(name, a[name], b[name]) for name in spec.matched])


def features_of(
    choice: FeatureName | Features,
    spec: PermutationSpec,
    params_a: Params,
    params_b: Params,
    progress: Progress = silent,
) -> tuple[Feature, ...]:
    """Return the features called `choice` of every trained tensor that a group moves, or those that `choice` makes.

    - "raw": the weights themselves.
    - "unit": F = W / sqrt(|W_A| |W_B|) with Frobenius norms, so that a perfect match of a tensor is worth 1, whatever
      its size; tensors of one axis (biases, norm scales) are left out, and so are those that are all zero.

    Raises:
        UsageError: there are no features of this name.
    """
    if not isinstance(choice, str):
        if isinstance(choice, type) or not callable(getattr(choice, "of", None)):
            do = "pass Covariance(LayerInputs(model, batches)), or one of the names"
            raise UsageError(f"features {choice!r:.60}", '"raw", "unit" or `Covariance`', do)
        return choice.of(spec, params_a, params_b, progress)
    pairs = [Feature(name, params_a[name], params_b[name]) for name in spec.matched]
    if choice == "raw":
        return tuple(pairs)
    if choice == "unit":
        return _unit(pairs)
    raise UsageError(f"features {choice!r}", '"raw" or "unit"', "choose one of them, or pass Covariance(...)")


def _unit(pairs: list[Feature]) -> tuple[Feature, ...]:
    scales = [_norm(pair.a) * _norm(pair.b) if pair.a.dim() > 1 else 0.0 for pair in pairs]
    # All of the scale goes to A: products are the same, and one model is copied instead of two.
    return tuple(
        Feature(pair.name, pair.a.to(compute_dtype(pair.a)) / scale, pair.b)
        for pair, scale in zip(pairs, scales, strict=True)
        if scale > 0
    )


def _norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor, dtype=compute_dtype(tensor)).item()


def _as_seen(weight: Tensor, seen: LayerStatistics) -> Tensor:
    """Return diag(1/s) W Sigma^(1/2) of every matrix of the weight, laid out like the weight."""
    stack = seen.operand.stack(weight).to(seen.deviation)  # matrices out in offsets
    deviation, covariance = seen.deviation.reshape(stack.shape[:2]), seen.inputs.covariance
    alive = deviation > DEAD * deviation.max()
    stack = stack * torch.where(alive, 1 / deviation, 0.0)[..., None, None]
    if stack.shape[2] > 1:
        roots = _root(covariance).reshape(-1, 1, *covariance.shape[-2:])
        stack = (stack.mT @ roots).mT
    return seen.operand.put(weight, stack).to(compute_dtype(weight))


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of positive semidefinite matrices, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    # Rounding of an eigenvalue that is zero would be large in the root.
    rounding = values[..., -1:] * values.shape[-1] * torch.finfo(values.dtype).eps
    return (vectors * values.where(values > rounding, 0.0).sqrt()[..., None, :]) @ vectors.mT
