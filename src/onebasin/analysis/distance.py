"""How far apart two networks are, and how much closer an alignment brings them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onebasin.params import check_shapes
from onebasin.spec import PermutationSpec


@dataclass(frozen=True)
class Distance:
    """L2 distance to the reference before and after the other model was moved.

    Args:
        before: `|a - b|`.
        after: `|a - P b|`.
        layers: layer name -> the distance of its tensors alone; their squares sum to the square of the whole.
    """

    before: float
    after: float
    layers: Mapping[str, Distance] = field(default_factory=dict)

    @property
    def reduction(self) -> float:
        """The reduction rate `100 (before - after) / before`, in percent; 0 if there was no distance."""
        return 100 * (self.before - self.after) / self.before if self.before else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values, layers included."""
        own = {"before": self.before, "after": self.after, "reduction_percent": self.reduction}
        return own | ({"layers": {name: layer.to_json() for name, layer in self.layers.items()}} if self.layers else {})

    def __str__(self) -> str:
        rows = [*self.layers.items(), ("all", self)]
        width = max(len(name) for name, _ in rows)
        lines = [
            f"{name:<{width}}  {row.before:12.6g} -> {row.after:12.6g}  {row.reduction:6.2f} % closer"
            for name, row in rows
        ]
        return "\n".join(["L2 distance of the trained parameters", *lines])


def distance(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
) -> Distance:
    """Measure how much closer to `params_a` moving `params_b` has brought it: `|a - b|` against `|a - P b|`.

    All trained parameters count, those that no group moves too; statistics and other buffers do not, nor tensors the
    outputs do not depend on. Tied tensors count once. Sums are in float64.

    Args:
        spec: says which tensors are trained.
        params_a: the reference.
        params_b: the other model as it was.
        moved: the other model aligned, by whatever method.

    Raises:
        ParamsError: params that do not fit the spec.

    Source: ito2025, section 3 and Table 1 (there 6-20 % for weight matching).
    """
    for params, what in ((params_a, "the reference"), (params_b, "the other model"), (moved, "the moved model")):
        check_shapes(params, spec.shapes, what)
    squares: dict[str, list[float]] = {}
    for name in spec.trained:
        sums = squares.setdefault(name.rpartition(".")[0] or name, [0.0, 0.0])
        for number, params in enumerate((params_b, moved)):
            sums[number] += _square(params_a[name], params[name])
    layers = {name: Distance(math.sqrt(before), math.sqrt(after)) for name, (before, after) in squares.items()}
    return Distance(
        math.hypot(*(layer.before for layer in layers.values())),
        math.hypot(*(layer.after for layer in layers.values())),
        layers,
    )


def _square(a: Tensor, b: Tensor) -> float:
    wide = torch.promote_types(a.dtype, torch.float64)
    return torch.linalg.vector_norm(a.to(wide) - b.to(a.device, wide)).square().item()
