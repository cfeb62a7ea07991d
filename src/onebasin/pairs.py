"""All that matching asks of data: the units and the layers of two networks, measured in one pass of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from onebasin.activations import ActivationMoments, Taps
from onebasin.layer_inputs import LayerMoments
from onebasin.layers import LayerStatistics
from onebasin.moments import CrossStatistics
from onebasin.reading import Readers
from onebasin.spec import PermutationSpec
from onebasin.symmetry.contracted import places_of
from onebasin.symmetry.export import Outputs
from onebasin.symmetry.graph import graph_function


@dataclass(frozen=True)
class PairStatistics:
    """Statistics of two networks on the same batches.

    Args:
        units: group -> cross statistics of its units, as `Activations` gives them.
        layers_a: weight of the reference -> statistics of what it is multiplied with, as `LayerInputs` gives them.
        layers_b: the same of the other network.
    """

    units: Mapping[str, CrossStatistics]
    layers_a: Mapping[str, LayerStatistics]
    layers_b: Mapping[str, LayerStatistics]


class PairMoments:
    """Streaming moments of the units and of the layers of two networks: `update`, `merge`, `finalize`.

    It is `ActivationMoments` and two `LayerMoments`, all fed by one forward pass of each network per batch.

    Args:
        model: the architecture; it is traced once per shape of batch.
        spec: what may be permuted.
        params_a: the reference, on the device of `model`.
        params_b: the other network, likewise.
        outputs: as it was given to `permutation_spec`.

    Raises:
        ParamsError: params or model do not fit the spec.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        outputs: Outputs = None,
    ) -> None:
        self.units = ActivationMoments(model, spec, params_a, params_b, outputs)
        self.layers = [LayerMoments(model, params, outputs=outputs) for params in (params_a, params_b)]
        self._readers = Readers(model, outputs, lambda traced: _Reader(Taps.of(model, spec, traced, outputs)))

    def update(self, batch: Any) -> None:
        """Add a batch: a tensor of inputs, `(inputs, labels)`, or a dict of keyword inputs.

        Raises:
            UsageError: the model rejects the batch.
        """
        reader, flat = self._readers(batch)
        units, cut = [], len(reader.taps.nodes)
        for layers in self.layers:
            values = reader.function(layers.params, flat)
            layers.take(reader.places, values[cut:])
            units.append(values[:cut])
        for number, pair in enumerate(zip(*units, strict=True)):
            self.units.take(reader.taps, number, *pair)
        self.units.batches += 1

    def merge(self, other: PairMoments) -> None:
        """Add everything that `other`, a stream of the same networks, has seen."""
        self.units.merge(other.units)
        for own, one in zip(self.layers, other.layers, strict=True):
            own.merge(one)

    def finalize(self) -> PairStatistics:
        """Return the statistics of all batches so far; the stream may go on.

        Raises:
            UsageError: no batches.
            ParamsError: activations are not finite.
        """
        return PairStatistics(self.units.finalize(), *(layers.finalize() for layers in self.layers))


class _Reader:
    """Reads taps and layers for batches of one shape."""

    def __init__(self, taps: Taps) -> None:
        self.taps, self.places = taps, places_of(taps.exported)
        nodes = [*taps.nodes, *(node for place in self.places for node in place.nodes)]
        self.function = graph_function(taps.exported, nodes)
