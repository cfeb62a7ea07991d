"""REPAIR: units of a merged network get back the mean and the deviation that averaging took from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from operator import length_hint
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from onebasin import layout
from onebasin.batchnorm import check_streams, recompute_batchnorm, tracking_layers
from onebasin.errors import UsageError, no_batches
from onebasin.functional import check_repeatable, eval_mode, inputs_of, with_params
from onebasin.interpolate import mean, shares_of
from onebasin.layout import Axes
from onebasin.moments import ChannelMoments, ChannelStatistics
from onebasin.params import TOO_NARROW, Params, check_finite, check_shapes, compute_dtype, params_of
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
LAST = (nn.Linear, nn.LayerNorm)  # units lie on the last axis of their outputs, and on axis 1 of others
PRODUCERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *NORMS)
NO_BIAS = "has no bias"
Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]
Statistics = dict[str, Tensor]  # "mean" and "deviation" of every unit a layer puts out


def repair(
    model: nn.Module,
    spec: PermutationSpec,
    merged: Mapping[str, Tensor],
    ends: Sequence[Mapping[str, Tensor]],
    batches: Iterable[Any],
    weights: Sequence[float] | None = None,
    progress: Progress = silent,
) -> tuple[Params, dict[str, str]]:
    """Set the statistics of every unit of a merged network to the weighted mean of those of its ends.

    The output z of every linear, convolutional or normalisation layer that puts out units of the spec becomes

        (z - mean of z) / deviation of z * sum_i w_i deviation_i + sum_i w_i mean_i

    per unit, over all samples and positions, which is folded into the layer's weight and bias (scale and shift, of a
    norm): no layer is added. The statistics of the merged network are those of layers whose inputs have been repaired
    too, batch by batch, as in the train mode of batch norm; they are exact to the extent that batches are large.
    Batch-norm statistics are recomputed as well, and need no call of their own.

    Args:
        model: the architecture; it is left alone.
        spec: its symmetries, of whose groups only the units are repaired.
        merged: the merged weights.
        ends: the networks that were merged, in the order of `merged`: `permutation.apply(params)` of each.
        batches: inputs, read several times: a few thousand examples, in large batches.
        weights: how much each end counts, as in the merge, none negative; default: all the same.
        progress: called after each batch.

    Returns:
        New params, and layer -> reason for each layer with units of the spec that was left as it is. Units that no
        layer of these kinds puts out (embeddings, transposed convolutions, recurrent layers) are named there as well.
        A layer without a bias whose output goes into a norm is not named: the norm carries the change.

    Raises:
        UsageError: no batches, batches that can be read only once, or weights that do not fit.
        ParamsError: model, spec and params do not fit each other; or statistics or repaired weights are not finite.

    Source: jordan2023, sections 3 and 4.
    Differs: no batch norm is inserted and fused; biases are needed, and layers without are left alone; norms that are
        there get their scale and shift repaired, where the paper only recomputes the statistics of batch norm.
    """
    check_weights(len(ends), weights)
    repairs = Repairs(model, spec, ends, batches, progress)
    return recompute_batchnorm(model, repairs.of(merged, weights, progress), batches, progress), repairs.left


class Repairs:
    """Repairs of any networks between the same ends, whose statistics are measured once; see `repair`.

    Args:
        model: the architecture.
        spec: its symmetries.
        ends: the networks that were merged.
        batches: inputs.
        progress: called after each batch, with all that one repair reads as the total.

    Attributes:
        left: layer -> reason for each layer with units of the spec that is left as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: PermutationSpec,
        ends: Sequence[Mapping[str, Tensor]],
        batches: Iterable[Any],
        progress: Progress = silent,
    ) -> None:
        check_shapes(params_of(model), spec.shapes, "the weights of the model")
        check_repeatable(batches)
        self.model, self.batches, self.left = model, batches, _left(model, spec)
        layers = {n: one for n, one in model.named_modules() if n not in self.left and _puts_out(n, one, spec)}
        self.size = length_hint(batches)
        told = _counted(progress, 0, (len(ends) + 1) * self.size)
        self.found = [_measured(model, params, layers, batches, told) for params in ends]
        lost = [name for name in layers if any(name not in one for one in self.found)]
        self.left |= dict.fromkeys(lost, "is not called exactly once per batch")
        self.layers = {name: layer for name, layer in layers.items() if name not in lost}
        for name in _carried(model, ends[0], self.left, self.layers, batches):
            del self.left[name]

    def of(
        self, merged: Mapping[str, Tensor], weights: Sequence[float] | None = None, progress: Progress = silent
    ) -> Params:
        """Return `merged`, the mean of the ends by `weights`, repaired; batch norm's statistics must be recomputed."""
        goals = {name: mean([one[name] for one in self.found], weights) for name in self.layers}
        ends = len(self.found)
        told = _counted(progress, ends * self.size, (ends + 1) * self.size)
        own = _measured(self.model, merged, self.layers, self.batches, told, goals)
        result = dict(merged)
        for name in self.layers:
            _fold(result, name, own[name], goals[name])
        folded = {key: tensor for key, tensor in result.items() if key.rpartition(".")[0] in self.layers}
        check_finite(folded, "repaired weights", TOO_NARROW)
        return result


def check_weights(count: int, weights: Sequence[float] | None) -> None:
    """Raise `UsageError` if the weights do not fit `count` networks, or one is negative."""
    if any(share < 0 for share in shares_of(count, weights)):
        raise UsageError(
            f"repair with the weights {weights}",
            "none that is negative: a unit's deviation might be, too",
            "merge with weights from 0 on, or do without repair",
        )


def _counted(progress: Progress, before: int, total: int) -> Callable[[], None]:
    """Return what is called after each batch of every network, when so many have been read before."""
    numbers = count(before + 1)
    return lambda: progress("repair", next(numbers), total)


def _puts_out(name: str, layer: nn.Module, spec: PermutationSpec) -> bool:
    """Return whether `layer` is of a kind that can be repaired and puts out units of the spec."""
    return _repairable(layer) and _holds_units(spec.tensors.get(f"{name}.weight", ())[:1])


def _repairable(layer: nn.Module) -> bool:
    """Return whether `layer` is of a kind that can be repaired: its units lie on one axis of what it puts out."""
    return isinstance(layer, PRODUCERS) and not (isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1)


def _left(model: nn.Module, spec: PermutationSpec) -> dict[str, str]:
    """Return the layers with units of the spec that cannot be repaired, each with the reason."""
    tied = {name for names in spec.ties for name in names}
    left: dict[str, str] = {}
    for name, layer in model.named_modules():
        own = [f"{name}.{key}".lstrip(".") for key, _ in layer.named_parameters(recurse=False)]
        least = 1 if isinstance(layer, NORMS) else 2  # lone scales and biases of other kinds go with their layers
        if not any(len(spec.tensors[key]) >= least and _holds_units(spec.tensors[key]) for key in own):
            continue
        if not _repairable(layer):
            left[name] = f"is a {type(layer).__name__}"
        elif f"{name}.weight" not in spec.tensors:
            left[name] = "has a weight that is computed from others"
        elif _puts_out(name, layer, spec) and layer.bias is None:
            left[name] = NO_BIAS
        elif _puts_out(name, layer, spec) and tied & set(own):
            left[name] = "is tied to another layer"
    return left


def _carried(
    model: nn.Module,
    params: Mapping[str, Tensor],
    left: Mapping[str, str],
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
) -> set[str]:
    """Return the layers without a bias whose output is, as it is, the input of a norm among `layers`."""
    bare = [name for name, why in left.items() if why == NO_BIAS]
    norms = [layer for layer in layers.values() if isinstance(layer, NORMS)]
    if not bare or not norms:
        return set()
    outputs: dict[str, ref[Tensor]] = {}
    found: set[str] = set()

    def note(name: str) -> Hook:
        return lambda layer, args, output: outputs.update({name: ref(output)})

    def look(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        found.update(name for name, own in outputs.items() if args and own() is args[0])

    with ExitStack() as stack, eval_mode(model), torch.no_grad():
        for name in bare:
            stack.callback(model.get_submodule(name).register_forward_hook(note(name)).remove)
        for norm in norms:
            stack.callback(norm.register_forward_hook(look).remove)
        args, kwargs = inputs_of(next(iter(batches)))
        with_params(model, params)(*args, **kwargs)
    return found


def _holds_units(axes: Axes) -> bool:
    return any(leaf.group for axis in axes for leaf in layout.leaves(axis))


def _measured(
    model: nn.Module,
    params: Mapping[str, Tensor],
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    told: Callable[[], None],
    goals: Mapping[str, Statistics] | None = None,
) -> dict[str, Statistics]:
    """Return the statistics of the outputs of `layers`; with `goals`, each batch of them is given these first."""
    streams = {name: ChannelMoments(len(params[f"{name}.weight"])) for name in layers}
    calls, done = dict.fromkeys(layers, 0), 0
    predict = with_params(model, params)

    def hook(name: str, axis: int) -> Hook:
        def look(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            calls[name] += 1
            rows = output.movedim(axis, 1) if output.dim() > 1 else output[None]
            if goals is None:
                streams[name].update(rows)
                return None
            batch = ChannelMoments(rows.shape[1])
            batch.update(rows)
            streams[name].merge(batch)
            scale, shift = _change(_statistics(batch.finalize()), goals[name])
            shape = [-1 if dim == axis % output.dim() else 1 for dim in range(output.dim())]
            return output * scale.reshape(shape).to(output) + shift.reshape(shape).to(output)

        return look

    training = () if goals is None else tracking_layers(model)  # their statistics are to be recomputed
    with ExitStack() as stack, eval_mode(model, training), torch.no_grad():
        for name, layer in layers.items():
            axis = -1 if isinstance(layer, LAST) else 1
            stack.callback(layer.register_forward_hook(hook(name, axis)).remove)
        for batch in batches:
            args, kwargs = inputs_of(batch)
            predict(*args, **kwargs)
            done += 1
            check_streams(streams, done)
            told()
    if not done:
        raise no_batches()
    return {name: _statistics(stream.finalize()) for name, stream in streams.items() if calls[name] == done}


def _statistics(found: ChannelStatistics) -> Statistics:
    return {"mean": found.mean, "deviation": found.variance.sqrt()}


def _change(own: Statistics, goal: Statistics) -> tuple[Tensor, Tensor]:
    """Return scale and shift that bring the statistics to the goal; a unit that never changes is only shifted."""
    lively = own["deviation"] > 1e-10 * own["mean"].abs()
    scale = torch.where(lively, goal["deviation"] / own["deviation"].clamp_min(1e-300), 1.0)
    return scale, goal["mean"] - scale * own["mean"]


def _fold(params: Params, name: str, own: Statistics, goal: Statistics) -> None:
    """Put the change of a layer's output into its weight and bias."""
    scale, shift = _change(own, goal)
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    wide = compute_dtype(weight)
    scale, shift = scale.to(weight.device, wide), shift.to(weight.device, wide)
    rows = scale.reshape(-1, *[1] * (weight.dim() - 1))
    params[f"{name}.weight"] = (weight.to(wide) * rows).to(weight.dtype)
    params[f"{name}.bias"] = (bias.to(wide) * scale + shift).to(bias.dtype)
