"""From the axes of an interpretation to a PermutationSpec: name the groups, lay out every tensor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from onebasin import layout
from onebasin.layout import Axes, Axis, Leaf, Product, Sum
from onebasin.params import storage_key
from onebasin.spec import UNUSED, PermutationSpec
from onebasin.symmetry.axes import Kind, Term, factors, freeze, leaf, leaves, summands, unify
from onebasin.symmetry.call import schema_arguments
from onebasin.symmetry.export import Exported
from onebasin.symmetry.interpret import Interpretation
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
    names = _group_names(terms, trained)
    used = {
        id(term): Leaf(term.size, names[id(term)])
        for row in terms.values()
        for axis in row
        for term in leaves(axis)
        if id(term) in names
    }
    tensors = {name: _row(row, used) for name, row in terms.items()}
    taps = {node: _row(row, used) for node, row in found.taps.items()}
    return PermutationSpec(
        {leaf.group: leaf.size for leaf in used.values() if leaf.group is not None},
        tensors,
        _named_parents(parents, names),
        buffers=frozenset(state) - trained,
        ties=_ties(state),
        taps={node: row for node, row in taps.items() if any(_moves(axis) for axis in row)},
    )


def _named_parents(parents: Parents, names: Mapping[int, str]) -> dict[str, tuple[str, ...]]:
    rows = {
        names[child]: tuple(names[p] for p in row if p in names) for child, row in parents.items() if child in names
    }
    return {name: row for name, row in rows.items() if row}


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


def _ties(state: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    by_key: dict[object, list[str]] = {}
    for name, value in state.items():
        by_key.setdefault(storage_key(value), []).append(name)
    return tuple(tuple(names) for names in by_key.values() if len(names) > 1)


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


def _group_names(terms: Mapping[str, tuple[Term, ...]], trained: set[str]) -> dict[int, str]:
    """Name each free leaf after the first layer that puts it out (axis 0), or else the first that holds it."""
    first: dict[int, str] = {}
    produced: dict[int, str] = {}
    for name in (name for name in terms if name in trained):
        for number, axis in enumerate(terms[name]):
            for term in (term for term in leaves(axis) if not term.why):
                layer = name.rpartition(".")[0] or name
                first.setdefault(id(term), layer)
                if number == 0:
                    produced.setdefault(id(term), layer)
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    for key, layer in first.items():
        base = produced.get(key, layer)
        taken[base] = taken.get(base, 0) + 1
        names[key] = base if taken[base] == 1 else f"{base}#{taken[base]}"
    return names


def _row(terms: tuple[Term, ...], used: Mapping[int, Leaf]) -> Axes:
    return tuple(_axis(term, used) for term in terms)


def _axis(term: Term, used: Mapping[int, Leaf]) -> Axis:
    node = term.root()
    if node.kind is Kind.LEAF or node.size <= 1:
        return used.get(id(node)) or Leaf(node.size, None, node.why or "belongs to no trained tensor")
    adding = node.kind is Kind.SUM
    parts: list[Axis] = []
    for axis in (_axis(kid, used) for kid in (summands if adding else factors)(node)):
        if parts and _is_fixed(axis) and _is_fixed(parts[-1]):
            parts[-1] = _merged(parts[-1], axis, adding)
        else:
            parts.append(axis)
    return parts[0] if len(parts) == 1 else (Sum if adding else Product)(tuple(parts))


def _is_fixed(axis: Axis) -> bool:
    return isinstance(axis, Leaf) and axis.group is None


def _merged(one: Axis, other: Axis, adding: bool) -> Leaf:
    reasons = dict.fromkeys(leaf.why for axis in (one, other) for leaf in layout.leaves(axis))
    return Leaf(one.size + other.size if adding else one.size * other.size, None, "; ".join(reasons))


def _moves(axis: Axis) -> bool:
    return any(leaf.group is not None for leaf in layout.leaves(axis))
