"""Specs made wrong on purpose: what the numerical check of the fuzzer must catch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from onebasin import layout
from onebasin.layout import Axis, Leaf
from onebasin.spec import PermutationSpec


def corruptions(spec: PermutationSpec, seed: int = 0) -> Iterator[tuple[str, PermutationSpec]]:
    """Yield (what is wrong, wrong spec): a tensor left out, two groups exchanged in one tensor, a wrong parent."""
    drawn = random.Random(seed)
    holding = [name for name in spec.matched if name not in {twin for names in spec.ties for twin in names}]
    if not holding:
        return
    tensor = drawn.choice(holding)
    groups = [leaf.group for axis in spec.tensors[tensor] for leaf in layout.leaves(axis) if leaf.group is not None]
    group = drawn.choice(groups)
    yield f"{tensor} does not move with {group}", _changed(spec, tensor, lambda leaf: _left_out(leaf, group))
    equal = [name for name, size in spec.sizes.items() if size == spec.sizes[group] and name != group]
    equal = [name for name in equal if spec.index_shape(name) == spec.index_shape(group)]
    if equal:
        other = drawn.choice(equal)
        swap = {group: other, other: group}
        yield f"{tensor}: {group} and {other} exchanged", _changed(spec, tensor, lambda leaf: _renamed(leaf, swap))
    children = [name for name, parents in spec.parents.items() if len(parents) == 1]
    if children:
        child = drawn.choice(children)
        yield f"{child} stands above its parent, not below", _inverted(spec, child)


def _changed(spec: PermutationSpec, tensor: str, change: Callable[[Leaf], Leaf]) -> PermutationSpec:
    def inside(axis: Axis) -> Axis:
        return change(axis) if isinstance(axis, Leaf) else type(axis)(tuple(inside(part) for part in axis.parts))

    return replace(spec, tensors={**spec.tensors, tensor: tuple(inside(axis) for axis in spec.tensors[tensor])})


def _left_out(leaf: Leaf, group: str) -> Leaf:
    return Leaf(leaf.size, None, "left out") if leaf.group == group else leaf


def _renamed(leaf: Leaf, names: dict[str, str]) -> Leaf:
    return Leaf(leaf.size, names[leaf.group]) if leaf.group in names else leaf


def _inverted(spec: PermutationSpec, child: str) -> PermutationSpec:
    """Put the parent of `child` under `child`; whatever else was nested is nested no more."""
    (parent,) = spec.parents[child]
    return replace(spec, parents={parent: (child,)})
