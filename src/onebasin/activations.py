"""Activations: runs both networks over batches and fills cross moments wherever a group's units can be read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import length_hint
from typing import Any

from torch import Tensor, fx, nn

from onebasin import layout
from onebasin.batchnorm import recompute_batchnorm
from onebasin.errors import SpecError, no_batches
from onebasin.functional import check_repeatable
from onebasin.layout import Axes
from onebasin.moments import CrossMoments, CrossStatistics
from onebasin.params import Params, check_measured, check_shapes, compute_dtype, params_of, widened_to
from onebasin.progress import Progress, silent
from onebasin.reading import Readers
from onebasin.spec import PermutationSpec
from onebasin.symmetry.discover import lay_out
from onebasin.symmetry.export import Exported, Outputs
from onebasin.symmetry.graph import driven, pair_function


class ActivationMoments:
    """Streaming cross moments of the units of two networks, per group: `update`, `merge`, `finalize`.

    Units are read where the next contraction consumes them (the taps of the spec: after the nonlinearity; a residual
    stream at every layer that reads it). All places of a group fill one stream. Samples are the examples, tokens and
    pixels. For a nested group the features are the units under every parent unit, `"*parents n"`, flattened. A value
    that holds other groups too is averaged over their units: an average does not depend on their order.

    Memory: one n x n matrix per group, and what two forward passes need: no activations are kept.

    Args:
        model: the architecture; only its forward pass is used. It is traced once per shape of batch.
        spec: what may be permuted, discovered or written by hand.
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
        check_shapes(model.state_dict(), spec.shapes, "the weights of the model")
        for params, what in ((params_a, "the reference"), (params_b, "the other network")):
            check_shapes(params, spec.shapes, what)
        self.spec = spec
        own = params_of(model)
        self.params = (widened_to(own, params_a), widened_to(own, params_b))
        self.batches = 0
        self.streams: dict[str, CrossMoments] = {}
        self._readers = Readers(model, outputs, lambda traced: _Reader(Taps.of(model, spec, traced, outputs)))

    def update(self, batch: Any) -> None:
        """Add a batch: a tensor of inputs, `(inputs, labels)`, or a dict of keyword inputs.

        Raises:
            UsageError: the model rejects the batch.
        """
        reader, flat = self._readers(batch)
        reader.function(*self.params, flat, partial(self.take, reader.taps))
        self.batches += 1

    def take(self, taps: Taps, number: int, value_a: Tensor, value_b: Tensor) -> None:
        """Add what one of the taps holds of both networks."""
        units = (self._units(value, taps.axes[number], taps) for value in (value_a, value_b))
        for (group, a), (_, b) in zip(*units, strict=True):
            if group not in self.streams:
                self.streams[group] = CrossMoments(a.shape[1])
            self.streams[group].update(a, b)

    def merge(self, other: ActivationMoments) -> None:
        """Add everything that `other`, a stream of the same networks, has seen.

        Raises:
            SpecError: it is of another spec.
        """
        if other.spec != self.spec:
            raise SpecError("moments of another spec", "two streams of the same networks", "merge streams of one pair")
        self.batches += other.batches
        for group, stream in other.streams.items():
            self.streams.setdefault(group, CrossMoments(stream.a.mean.numel())).merge(stream)

    def finalize(self) -> dict[str, CrossStatistics]:
        """Return group -> statistics of all samples so far; the stream may go on.

        A group that is read nowhere (a recurrent layer's inner states) is not in it.

        Raises:
            UsageError: no batches.
            ParamsError: activations are not finite.
        """
        if not self.batches:
            raise no_batches()
        found = {name: self.streams[name].finalize() for name in self.spec.sizes if name in self.streams}
        measured = {name: statistics.covariance for name, statistics in found.items()}
        check_measured(measured, "activations that are not finite", "groups")
        return found

    def _units(self, value: Tensor, axes: Axes, taps: Taps) -> Iterator[tuple[str, Tensor]]:
        """Yield the groups whose units stand in a value, with `Float[Tensor, "samples units positions"]`."""
        parents = self.spec.parents
        for view, leaves in layout.blocks(value, axes):
            groups = [taps.names.get(leaf.group or "") for leaf in leaves]
            above = {parent for group in groups if group for parent in parents.get(group, ())}
            for dim, group in enumerate(groups):
                if group is not None and group not in above and set(parents.get(group, ())) <= set(groups):
                    units = [*(groups.index(parent) for parent in parents.get(group, ())), dim]
                    yield group, _features(view, groups, units)


@dataclass(frozen=True)
class Activations:
    """Measures the units of any two networks of one architecture on the same batches: what `ActivationMatching` needs.

    Args:
        model: the architecture.
        batches: inputs: tensors, `(inputs, labels)`, or dicts of keyword inputs (labels are ignored). They are read
            again for every pair. Without data: `synthetic_batches`.
        batchnorm: recompute each network's batch-norm statistics on the batches first, as synthetic inputs need.
        outputs: as it was given to `permutation_spec`.
    """

    model: nn.Module
    batches: Iterable[Any]
    batchnorm: bool = False
    outputs: Outputs = None

    def __call__(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> dict[str, CrossStatistics]:
        """Return group -> cross statistics, in one pass over the batches (and one each for batch norm).

        Raises:
            UsageError: no batches, batches that can be read only once, or one that the model rejects.
            ParamsError: activations are not finite.
        """
        check_repeatable(self.batches)
        if self.batchnorm:
            params_a = recompute_batchnorm(self.model, params_a, self.batches, progress)
            params_b = recompute_batchnorm(self.model, params_b, self.batches, progress)
        moments = ActivationMoments(self.model, spec, params_a, params_b, self.outputs)
        total = length_hint(self.batches)
        for done, batch in enumerate(self.batches, 1):
            moments.update(batch)
            progress("activations", done, total)
        return moments.finalize()


@dataclass(frozen=True)
class Taps:
    """Where the units of a model are read, in a trace of it on batches of one shape.

    Args:
        exported: the trace.
        nodes: what is read.
        axes: the layout of each value, in groups as this trace names them.
        names: group of this trace -> group of the spec.
    """

    exported: Exported
    nodes: Sequence[fx.Node]
    axes: Sequence[Axes]
    names: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module, spec: PermutationSpec, traced: Exported, outputs: Outputs) -> Taps:
        """Find the taps of a model that was traced on inputs of some shape."""
        moves = {
            name for name in spec.buffers for axis in spec.tensors[name] if any(x.group for x in layout.leaves(axis))
        }
        exported, found = lay_out(model, traced, outputs, moves)
        nodes = driven(exported)
        taps = {nodes[name]: axes for name, axes in found.taps.items() if name in nodes and _fits(nodes[name], axes)}
        return cls(exported, list(taps), list(taps.values()), _common_names(found, spec))


class _Reader:
    """Reads the taps for batches of one shape."""

    def __init__(self, taps: Taps) -> None:
        self.taps = taps
        self.function = pair_function(taps.exported, taps.nodes)


def _fits(node: fx.Node, axes: Axes) -> bool:
    """Return whether the value has this layout: a tap inside a region may have the name of a node outside."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and tuple(value.shape) == tuple(axis.size for axis in axes)


def _common_names(found: PermutationSpec, spec: PermutationSpec) -> dict[str, str]:
    """Return group of `found` -> group of `spec` at the same place; what `spec` keeps fixed is left out."""
    names: dict[str, str] = {}
    for tensor, row in found.tensors.items():
        for one, other in zip(row, spec.tensors[tensor], strict=True):
            pairs = list(zip(layout.leaves(one), layout.leaves(other), strict=False))
            if all(a.size == b.size for a, b in pairs):
                names |= {a.group: b.group for a, b in pairs if a.group and b.group}
    return names


def _features(view: Tensor, groups: Sequence[str | None], units: list[int]) -> Tensor:
    """Return `Float[Tensor, "samples units positions"]`, averaged over the units of other groups.

    Positions are the samples that stand behind the units: a map of a convolution is read as it lies in memory.
    """
    samples = [dim for dim, group in enumerate(groups) if group is None]
    others = [dim for dim, group in enumerate(groups) if group is not None and dim not in units]
    behind = [dim for dim in samples if dim > max(units)] if _adjacent(units) else []
    parts = ([dim for dim in samples if dim not in behind], units, behind, others)
    count = [math.prod(view.shape[dim] for dim in dims) for dims in parts]
    found = view.permute(*(dim for dims in parts for dim in dims)).reshape(count)
    return found[..., 0] if not others else found.to(compute_dtype(found)).mean(-1)


def _adjacent(dims: list[int]) -> bool:
    return dims == list(range(dims[0], dims[0] + len(dims)))
