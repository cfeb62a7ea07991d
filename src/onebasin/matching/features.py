"""Features: what weight matching compares of each tensor."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.matching.objective import Feature
from onebasin.params import Params, compute_dtype
from onebasin.spec import PermutationSpec

FeatureName = Literal["raw", "unit"]


def features_of(choice: FeatureName, spec: PermutationSpec, params_a: Params, params_b: Params) -> tuple[Feature, ...]:
    """Return the features called `choice` of every trained tensor that a group moves.

    - "raw": the weights themselves.
    - "unit": F = W / sqrt(|W_A| |W_B|) with Frobenius norms, so that a perfect match of a tensor is worth 1, whatever
      its size; tensors of one axis (biases, norm scales) are left out, and so are those that are all zero.

    Raises:
        UsageError: there are no features of this name.
    """
    pairs = {name: Feature(name, params_a[name], params_b[name]) for name in spec.matched}
    if choice == "raw":
        return tuple(pairs.values())
    if choice == "unit":
        scales = {name: _norm(pair.a) * _norm(pair.b) for name, pair in pairs.items() if pair.a.dim() > 1}
        # All of the scale goes to A: products are the same, and one model is copied instead of two.
        return tuple(
            Feature(name, pairs[name].a.to(compute_dtype(pairs[name].a)) / scale, pairs[name].b)
            for name, scale in scales.items()
            if scale > 0
        )
    raise UsageError(f"features {choice!r}", '"raw" or "unit"', "choose one of them")


def _norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor, dtype=compute_dtype(tensor)).item()
