"""What every layer of any model sees: second moments of the inputs of each trained weight, in one pass over batches."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from onebasin.errors import no_batches
from onebasin.functional import check_repeatable
from onebasin.layers import LayerStatistics, Operand
from onebasin.moments import ChannelMoments, SecondMoments, SecondStatistics
from onebasin.params import check_measured, check_shapes, params_of, widened_to
from onebasin.progress import Progress, silent
from onebasin.reading import Readers
from onebasin.symmetry.contracted import Place, places_of
from onebasin.symmetry.export import Exported, Outputs
from onebasin.symmetry.graph import graph_function


@dataclass(frozen=True)
class LayerInputs:
    """Measures what every trained weight of a network is multiplied with.

    A weight is any parameter, or a view of it, that the model contracts with something that depends on the inputs: in a
    linear layer, a convolution, a matrix product, an einsum. Left out are weights that are not multiplied as they are
    (inside an LSTM, looked up by number, computed from others), and those whose parts are used in different ways.

    Args:
        model: the architecture; it is left alone.
        batches: inputs: tensors, `(inputs, labels)`, or dicts of keyword inputs (labels are ignored).
        patches: measure what the kernels of convolutions see, too: `LayerStatistics.patches`.
        outputs: as it was given to `permutation_spec`.
    """

    model: nn.Module
    batches: Iterable[Any]
    patches: bool = False
    outputs: Outputs = None

    def __call__(self, params: Mapping[str, Tensor], progress: Progress = silent) -> dict[str, LayerStatistics]:
        """Return weight name -> statistics over all batches. Tied names have one entry, that of the first.

        Raises:
            UsageError: no batches, batches that can be read only once, or one that the model rejects.
            ParamsError: params do not fit the model, or inputs of a layer are not finite.
        """
        check_repeatable(self.batches)
        moments = LayerMoments(self.model, params, self.patches, self.outputs)
        total = length_hint(self.batches)
        for done, batch in enumerate(self.batches, 1):
            moments.update(batch)
            progress("layer inputs", done, total)
        return moments.finalize()


class LayerMoments:
    """Streaming moments of what every trained weight is multiplied with: `update`, `merge`, `finalize`.

    A weight used at several places sums over them. Memory: one in x in matrix per weight (in*k x in*k with patches).

    Args:
        model: the architecture. It is traced once per shape of batch.
        params: the network, on the device of `model`.
        patches: see `LayerInputs`.
        outputs: as it was given to `permutation_spec`.

    Raises:
        ParamsError: params do not fit the model.
    """

    def __init__(
        self, model: nn.Module, params: Mapping[str, Tensor], patches: bool = False, outputs: Outputs = None
    ) -> None:
        own = params_of(model)
        check_shapes(params, {name: tuple(tensor.shape) for name, tensor in own.items()}, owner="the model")
        self.params, self.patches, self.batches = widened_to(own, params), patches, 0
        self.streams: dict[str, _Stream] = {}
        self._readers = Readers(model, outputs, _Reader)

    def update(self, batch: Any) -> None:
        """Add a batch: a tensor of inputs, `(inputs, labels)`, or a dict of keyword inputs.

        Raises:
            UsageError: the model rejects the batch.
        """
        reader, flat = self._readers(batch)
        self.take(reader.places, reader.function(self.params, flat))

    def take(self, places: Sequence[Place], values: Sequence[Tensor]) -> None:
        """Add what was read: the input and the output of each place, in turn."""
        self.batches += 1
        seen: dict[Hashable, SecondMoments] = {}  # layers that read one value in one way share its moments
        for place, x, y in zip(places, values[::2], values[1::2], strict=True):
            if place.key not in seen:
                rows = place.input_rows(x)
                seen[place.key] = SecondMoments(*rows.shape[:-2], rows.shape[-1])
                seen[place.key].update(rows)
            if place.name not in self.streams:
                self.streams[place.name] = _Stream(place.operand)
            self.streams[place.name].take(seen[place.key], place.output_channels(y))
            if self.patches and place.windows is not None:
                self.streams[place.name].take_patches(place.windows(x))

    def merge(self, other: LayerMoments) -> None:
        """Add everything that `other`, a stream of the same network, has seen."""
        self.batches += other.batches
        for name, stream in other.streams.items():
            self.streams.setdefault(name, _Stream(stream.operand)).merge(stream)

    def finalize(self) -> dict[str, LayerStatistics]:
        """Return weight name -> statistics of all batches so far; the stream may go on.

        Raises:
            UsageError: no batches.
            ParamsError: inputs of a layer are not finite.
        """
        if not self.batches:
            raise no_batches()
        found = {name: stream.finalize() for name, stream in self.streams.items()}
        measured = {name: one.inputs.covariance for name, one in found.items()}
        check_measured(measured, "inputs that are not finite", "weights")
        return found


class _Reader:
    """Reads the inputs and outputs of all weights for batches of one shape."""

    def __init__(self, exported: Exported) -> None:
        self.places = places_of(exported)
        self.function = graph_function(exported, [node for place in self.places for node in place.nodes])


@dataclass
class _Stream:
    """The moments of one weight.

    Args:
        operand: how the weight is multiplied.
        inputs: moments of its input channels.
        outputs: moments of its output channels.
        patches: sum of `u u^T` over all that its kernel has seen, and how many these were.
    """

    operand: Operand
    inputs: SecondMoments | None = None
    outputs: ChannelMoments | None = None
    patches: tuple[Tensor, int] | None = None

    def take(self, inputs: SecondMoments, channels: Tensor) -> None:
        """Add the moments of inputs, and `Float[Tensor, "samples channels *positions"]`."""
        if self.inputs is None:
            self.inputs, self.outputs = SecondMoments(*inputs.mean.shape), ChannelMoments(channels.shape[1])
        assert self.outputs is not None
        self.inputs.merge(inputs)
        self.outputs.update(channels)

    def take_patches(self, rows: Tensor) -> None:
        """Add `Float[Tensor, "matrices samples in*k"]`."""
        total, count = (rows.mT @ rows).double(), rows.shape[-2]
        before = self.patches or (torch.zeros_like(total), 0)
        self.patches = (before[0] + total, before[1] + count)

    def merge(self, other: _Stream) -> None:
        """Add everything that `other` has seen."""
        if other.inputs is None or other.outputs is None:
            return
        if self.inputs is None or self.outputs is None:
            self.inputs = SecondMoments(*other.inputs.mean.shape)
            self.outputs = ChannelMoments(other.outputs.mean.numel())
        self.inputs.merge(other.inputs)
        self.outputs.merge(other.outputs)
        if other.patches is not None:
            total, count = self.patches or (torch.zeros_like(other.patches[0]), 0)
            self.patches = (total + other.patches[0].to(total), count + other.patches[1])

    def finalize(self) -> LayerStatistics:
        """Return the statistics so far."""
        assert self.inputs is not None
        assert self.outputs is not None
        moments, stacked = self.inputs.finalize(), self.operand.counts[0] > 0
        deviation = self.outputs.finalize().variance.sqrt()
        patches = None if self.patches is None else self.patches[0] / self.patches[1]
        if stacked:
            return LayerStatistics(self.operand, moments, deviation.reshape(len(moments.mean), -1), patches)
        single = SecondStatistics(moments.count, moments.mean[0], moments.covariance[0])
        return LayerStatistics(self.operand, single, deviation, None if patches is None else patches[0])
