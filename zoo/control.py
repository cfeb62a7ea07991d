"""Specs made wrong on purpose: what the numerical check of the fuzzer must catch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from onebasin.layout import Axis, Leaf
from onebasin.spec import PermutationSpec


def corruptions(spec: PermutationSpec, seed: int = 0) -> Iterator[tuple[str, PermutationSpec]]:
    """Yield (what is wrong, wrong spec): a group left out of a tensor, two exchanged in one, one under a wrong parent.

    Nearly all of them change the outputs. Not those that a model cannot feel: a bias before an argmax, say.
    """
    drawn = random.Random(seed)
    holders = _holders(spec)
    places = [(tensor, group) for group, tensors in holders.items() if len(tensors) > 1 for tensor in tensors]
    if places:
        tensor, group = drawn.choice(places)
        yield f"{tensor} does not move with {group}", _changed(spec, tensor, lambda leaf: _left_out(leaf, group))
    twins = [(*place, other) for place in places for other in spec.sizes if _alike(spec, place[1], other)]
    if twins:
        tensor, one, other = drawn.choice(twins)
        swap = {one: other, other: one}
        yield f"{tensor}: {one} and {other} exchanged", _changed(spec, tensor, lambda leaf: _renamed(leaf, swap))
    families = [
        (child, other) for child, own in spec.parents.items() for other in spec.sizes if _like(spec, own, other)
    ]
    if families:
        child, other = drawn.choice(families)
        yield f"{child} is put under {other}", replace(spec, parents={**spec.parents, child: (other,)})


def _holders(spec: PermutationSpec) -> dict[str, list[str]]:
    """Return group name -> tensors that hold it, tied ones once."""
    repeated = {name for names in spec.ties for name in names[1:]}
    found = {name: {tensor for tensor, _ in group.axes} - repeated for name, group in spec.groups.items()}
    return {name: sorted(tensors) for name, tensors in found.items()}


def _alike(spec: PermutationSpec, one: str, other: str) -> bool:
    same_parents = spec.parents.get(one) == spec.parents.get(other)
    return one != other and spec.sizes[one] == spec.sizes[other] and same_parents


def _like(spec: PermutationSpec, parents: tuple[str, ...], other: str) -> bool:
    """Say whether `other` could be taken for the only one of `parents`."""
    return len(parents) == 1 and other != parents[0] and _alike(spec, parents[0], other)


def _changed(spec: PermutationSpec, tensor: str, change: Callable[[Leaf], Leaf]) -> PermutationSpec:
    def inside(axis: Axis) -> Axis:
        return change(axis) if isinstance(axis, Leaf) else type(axis)(tuple(inside(part) for part in axis.parts))

    names = next((names for names in spec.ties if tensor in names), (tensor,))
    row = tuple(inside(axis) for axis in spec.tensors[tensor])
    return replace(spec, tensors={**spec.tensors, **dict.fromkeys(names, row)})


def _left_out(leaf: Leaf, group: str) -> Leaf:
    return Leaf(leaf.size, None, "left out") if leaf.group == group else leaf


def _renamed(leaf: Leaf, names: dict[str, str]) -> Leaf:
    return Leaf(leaf.size, names[leaf.group]) if leaf.group in names else leaf
