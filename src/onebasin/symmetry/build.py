"""From the axes of an interpretation to a PermutationSpec: every tensor of the state dict, buffers and ties."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from onebasin.layout import leaves as leaves_of
from onebasin.params import storage_key, tied_names
from onebasin.spec import UNUSED, PermutationSpec
from onebasin.symmetry.axes import Term, freeze, leaf, unify
from onebasin.symmetry.call import schema_arguments
from onebasin.symmetry.export import Exported
from onebasin.symmetry.interpret import Interpretation
from onebasin.symmetry.layouts import Layouts
from onebasin.symmetry.nesting import Parents

STATISTICS_OF_NORMS = ("running_mean", "running_var")


def movable_buffers(model: nn.Module, exported: Exported) -> frozenset[str]:
    """Return the buffers that belong to units: running statistics of norms, power-iteration vectors of spectral norm.

    A buffer is a running statistic if the graph hands it to a norm as one, whatever its name; other buffers (position
    tables, masks) keep their order, since moving them helps no one align two trained models.
    """
    nodes = (node for node in exported.graph.nodes if node.op == "placeholder" and node.name in exported.sources)
    statistics = {exported.sources[node.name] for node in nodes if _is_statistic(node)}
    spectral = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, _SpectralNorm)
        for name, _ in module.named_buffers(recurse=False)
    }
    old_spectral = {name for name, _ in model.named_buffers() if name.endswith(("weight_u", "weight_v"))}
    return frozenset(statistics | spectral | old_spectral)


def _is_statistic(node: fx.Node) -> bool:
    uses = [name for user in node.users for name, value in schema_arguments(user) if value is node]
    return bool(uses) and all(name in STATISTICS_OF_NORMS for name in uses)


def build_spec(model: nn.Module, found: Interpretation, parents: Parents) -> PermutationSpec:
    """Lay out every tensor of the state dict of `model` by the terms and the nesting that were found."""
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    terms = _terms_of_state(state, found)
    trained = {name for name, value in state.items() if isinstance(value, nn.Parameter)}
    layouts = Layouts(terms, trained, parents)
    taps = {node: layouts.row(row) for node, row in found.taps.items()}
    return PermutationSpec(
        layouts.sizes(),
        {name: layouts.row(row) for name, row in terms.items()},
        layouts.nesting(),
        buffers=frozenset(state) - trained,
        ties=tied_names(state),
        taps={node: row for node, row in taps.items() if any(leaf.group for axis in row for leaf in leaves_of(axis))},
    )


def _terms_of_state(state: Mapping[str, Tensor], found: Interpretation) -> dict[str, tuple[Term, ...]]:
    """Return the axes of every tensor of the state dict: tied names share theirs, unused tensors are frozen."""
    by_tensor: dict[object, tuple[Term, ...]] = {}
    for name, value in state.items():
        if name in found.tensors:
            known = by_tensor.setdefault(storage_key(value), found.tensors[name])
            for one, other in zip(known, found.tensors[name], strict=True):
                unify(one, other)
    for name, other_name in _overlaps(state):
        for own, partner in ((name, other_name), (other_name, name)):
            for term in by_tensor.get(storage_key(state[own]), ()):
                freeze(term, f"shares memory with {partner} in another shape")
    return {
        name: by_tensor.get(storage_key(value)) or tuple(leaf(size, UNUSED) for size in value.shape)
        for name, value in state.items()
    }


def _overlaps(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield pairs of neighbouring tensors that share memory without being tied."""
    spans = sorted(
        (value.data_ptr(), value.data_ptr() + _extent(value), name)
        for name, value in state.items()
        if value.device.type != "meta" and value.numel()
    )
    for (_, end, name), (start, _, other) in itertools.pairwise(spans):
        if start < end and storage_key(state[name]) != storage_key(state[other]):
            yield name, other


def _extent(value: Tensor) -> int:
    steps = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return (steps + 1) * value.element_size()
