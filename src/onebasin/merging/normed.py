"""A network that carries the statistics of its units with it, so that REPAIR is part of every merged one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from onebasin.matching.criterion import Criterion, Subject
from onebasin.merging.repair import LAST, Repairs, Statistics
from onebasin.params import Params, compute_dtype
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# The name under which a layer holds its norm, and what is added to variances: nothing beside those of units that live.
NORM, EPS = "unit_statistics", 1e-10


class UnitStatistics(_BatchNorm):
    """Mean (`bias`) and deviation (`weight`) of the units that a layer puts out.

    In eval mode it lets everything through. In train mode it gives the units of a batch these statistics: those of the
    network's own in a trained one, and the mean of both ends' in one half way between two, as REPAIR does.

    Args:
        units: how many.
        axis: on which they lie.
        like: a tensor on the device, and in the dtype.
    """

    def __init__(self, units: int, axis: int, like: Tensor) -> None:
        super().__init__(units, EPS, track_running_stats=False, device=like.device, dtype=compute_dtype(like))
        self.axis = axis

    def forward(self, input: Tensor) -> Tensor:
        """Return `Float[Tensor, "..."]` with units of these statistics."""
        if not self.training:
            return input
        rows = input.movedim(self.axis, 1)
        return batch_norm(rows, None, None, self.weight, self.bias, True, 0.0, self.eps).movedim(1, self.axis)


class RepairedCriterion(Criterion):
    """`Criterion` of the repaired network half way between two models: that of networks merged with `repair`.

    Statistics of the models are those of all batches, and of the midpoint those of each batch, as for batch norm.
    """

    def subject(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> Subject:
        """Measure the statistics of both models' units, and return the models with these.

        Raises:
            UsageError: no batches.
            ParamsError: model, spec and params do not fit each other.
        """
        ends = params_a, params_b
        repairs = Repairs(self.model, spec, ends, self.batches, progress)
        model, (a, b) = _with_norms(self.model, repairs), _with_statistics(ends, repairs.found, repairs.layers)
        return Subject(Criterion(model, self.batches, self.loss), _with_axes(spec, repairs.layers), a, b)


def _with_norms(model: nn.Module, repairs: Repairs) -> nn.Module:
    """Return `model` with a norm after each layer that can be repaired; it shares all tensors with `model`."""
    normed = copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
    for name, layer in repairs.layers.items():
        axis = -1 if isinstance(layer, LAST) else 1
        own = normed.get_submodule(name)
        own.add_module(NORM, UnitStatistics(len(layer.weight), axis, layer.weight))
        own.register_forward_hook(lambda layer, _, output: layer.get_submodule(NORM)(output))
    return normed


def _with_statistics(
    ends: Sequence[Params], found: Sequence[Mapping[str, Statistics]], layers: Iterable[str]
) -> list[Params]:
    return [
        params | {name: value for layer in layers for name, value in _named(layer, one[layer], params).items()}
        for params, one in zip(ends, found, strict=True)
    ]


def _named(layer: str, own: Statistics, params: Params) -> Params:
    weight = params[f"{layer}.weight"]
    where: dict[str, Any] = {"device": weight.device, "dtype": compute_dtype(weight)}
    return {
        f"{layer}.{NORM}.weight": own["deviation"].to(**where),
        f"{layer}.{NORM}.bias": own["mean"].to(**where),
    }


def _with_axes(spec: PermutationSpec, layers: Iterable[str]) -> PermutationSpec:
    """Return `spec` with the statistics of units, which move as these do."""
    more = {
        f"{layer}.{NORM}.{key}": spec.tensors[f"{layer}.weight"][:1] for layer in layers for key in ("weight", "bias")
    }
    return replace(spec, tensors={**spec.tensors, **more})
