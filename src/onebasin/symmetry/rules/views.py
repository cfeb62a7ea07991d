"""Reshapes, axis moves and repeats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from onebasin.symmetry.abstract import Abstract, Blocks
from onebasin.symmetry.axes import Term, leaf, product, refactor, split_product, split_sum
from onebasin.symmetry.call import Call, Value


def view(call: Call) -> Value:
    """Any reshape, from the input and output shapes alone.

    A factor that is split off and later cut (the 3 of a fused qkv) is remembered from the run before; the view then
    keeps the parts apart as blocks.
    """
    value = call.arguments[next(iter(call.arguments))]
    if isinstance(value, Blocks):
        moved = _squeezed(value, call.shape)
        if moved is not None:
            return moved
    x = call.tensor(next(iter(call.arguments)))
    axes = [leaf(1) for _ in call.shape]
    blocks: Blocks | None = None
    for sources, targets in _segments(x.shape, call.shape):
        terms = [x.axes[number] for number in sources]
        at = next((n for n in targets[:-1] if (call.node.name, n) in call.context.cuts), None)
        if at is None or blocks is not None:
            _spread(call, axes, terms, targets)
            continue
        before, inside = [n for n in targets if n < at], [n for n in targets if n >= at]
        rest = math.prod(call.shape[n] for n in inside)
        *outer, row = refactor(terms, [*(call.shape[n] for n in before), rest])
        for number, term in zip(before, outer, strict=True):
            _place(call, axes, number, term)
        blocks = _cut_rows(call, row, inside)
    if blocks is None:
        return Abstract(tuple(axes))
    inside = [n for n, size in enumerate(blocks.parts[0].shape) if size != 1 or n == blocks.dim]
    return Blocks(blocks.dim, tuple(_filled(axes, part, inside) for part in blocks.parts))


def _spread(call: Call, axes: list[Term], terms: Sequence[Term], targets: Sequence[int]) -> None:
    """Regroup `terms` into the output axes `targets`; mark all but the last as split off here."""
    found = refactor(terms, [call.shape[number] for number in targets])
    axes[targets[-1]] = found[-1]
    for number, term in zip(targets[:-1], found, strict=False):
        _place(call, axes, number, term)


def _place(call: Call, axes: list[Term], number: int, term: Term) -> None:
    axes[number] = term
    term.root().views.add((call.node.name, number))


def _cut_rows(call: Call, term: Term, targets: Sequence[int]) -> Blocks:
    """Cut the first of `targets` where a later operation cuts it; each part gets inner axes of its own."""
    first, inner = targets[0], targets[1:]
    width = math.prod(call.shape[number] for number in inner)
    ends = [0, *sorted(call.context.cuts[call.node.name, first]), call.shape[first]]
    parts = []
    for row in split_sum(term, [(end - start) * width for start, end in pairwise(ends)]):
        axes = [leaf(1) for _ in call.shape]
        found = refactor([row], [row.size // width, *(call.shape[number] for number in inner)])
        for number, part in zip(targets, found, strict=True):
            axes[number] = part
        for number in targets[:-1]:
            axes[number].root().views.add((call.node.name, number))
        parts.append(Abstract(tuple(axes)))
    return Blocks(first, tuple(parts))


def _filled(axes: Sequence[Term], part: Abstract, inside: Sequence[int]) -> Abstract:
    return Abstract(tuple(part.axes[n] if n in inside else axes[n] for n in range(len(axes))))


def _segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair runs of input axes with runs of output axes of equal size; axes of size 1 are left out."""
    left = [number for number, size in enumerate(before) if size != 1]
    right = [number for number, size in enumerate(after) if size != 1]
    found: list[tuple[list[int], list[int]]] = []
    while left or right:
        sources, targets = [left.pop(0)], [right.pop(0)]
        have, want = before[sources[0]], after[targets[0]]
        while have != want:
            if have < want:
                sources.append(left.pop(0))
                have *= before[sources[-1]]
            else:
                targets.append(right.pop(0))
                want *= after[targets[-1]]
        found.append((sources, targets))
    return found


def _squeezed(value: Blocks, shape: tuple[int, ...]) -> Value | None:
    """Return blocks whose reshape only adds or drops axes of size 1, or None if it does more."""
    kept = [number for number, size in enumerate(value.shape) if size != 1 or number == value.dim]
    places = [number for number, size in enumerate(shape) if size != 1]
    if [value.shape[number] for number in kept] != [shape[number] for number in places]:
        return None
    where = dict(zip(places, kept, strict=True))
    return move_blocks(
        value,
        lambda axes: tuple(axes[where[number]] if number in where else leaf(1) for number in range(len(shape))),
        {old: new for new, old in where.items()}[value.dim],
    )


def move_blocks(value: Blocks, move: Callable[[Sequence[Term]], tuple[Term, ...]], dim: int) -> Blocks:
    """Apply the same axis move to every block; `dim` is where the blocks lie afterwards."""
    return Blocks(dim, tuple(Abstract(move(part.axes)) for part in value.parts))


def _reorder(value: Abstract | Blocks, order: Sequence[int]) -> Value:
    if isinstance(value, Blocks):
        return move_blocks(value, lambda axes: tuple(axes[n] for n in order), list(order).index(value.dim))
    return Abstract(tuple(value.axes[number] for number in order))


def permute(call: Call) -> Value:
    """permute(dims)."""
    value = call["self"]
    return _reorder(value, [dim % len(value.shape) for dim in call["dims"]])


def transpose(call: Call) -> Value:
    """transpose(dim0, dim1), swapaxes, t, mT, numpy_T."""
    value = call["self"]
    rank = len(value.shape)
    order = list(range(rank))
    if call.name in ("numpy_T", "t"):
        return _reorder(value, order[::-1])
    given = [call.get(key) for key in ("dim0", "axis0", "dim1", "axis1")]
    one, other = [int(dim) % rank for dim in given if dim is not None] or [rank - 2, rank - 1]
    order[one], order[other] = order[other], order[one]
    return _reorder(value, order)


def movedim(call: Call) -> Value:
    """movedim(source, destination)."""
    value = call["self"]
    rank = len(value.shape)
    source, target = [
        [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]
        for dims in (call["source"], call["destination"])
    ]
    rest = iter(number for number in range(rank) if number not in source)
    goes = dict(zip(target, source, strict=True))
    return _reorder(value, [goes[number] if number in goes else next(rest) for number in range(rank)])


def expand(call: Call) -> Value:
    """A new or stretched axis is constant along itself: a fresh free one."""
    x = call.tensor("self")
    new = len(call.shape) - len(x.axes)
    old = [None] * new + list(x.axes)
    return Abstract(
        tuple(t if t is not None and t.size == size else leaf(size) for t, size in zip(old, call.shape, strict=True))
    )


def repeat(call: Call) -> Value:
    """repeat and tile: copies, then the axis."""
    x = call.tensor("self")
    old = [leaf(1)] * (len(call.shape) - len(x.axes)) + list(x.axes)
    return Abstract(
        tuple(
            t if t.size == size else product([leaf(size // t.size), t]) for t, size in zip(old, call.shape, strict=True)
        )
    )


def repeat_interleave(call: Call) -> Value:
    """repeat_interleave by one number: the axis, then copies."""
    x = call.tensor("self")
    if not isinstance(call.get("repeats"), int):
        return call.frozen("repeated by a tensor of counts")
    axes = [product(x.axes)] if call.get("dim") is None else list(x.axes)
    dim = call.dim(len(axes)) if call.get("dim") is not None else 0
    axes[dim] = product([axes[dim], leaf(int(call["repeats"]))])
    return Abstract(tuple(axes))


def pixel_shuffle(call: Call) -> Value:
    """(c r r, h, w) -> (c, h r, w r)."""
    x, r = call.tensor("self"), int(call["upscale_factor"])
    *batch, channels, height, width = x.axes
    c, above, left = refactor([channels], [channels.size // (r * r), r, r])
    return Abstract((*batch, c, product([height, above]), product([width, left])))


def pixel_unshuffle(call: Call) -> Value:
    """(c, h r, w r) -> (c r r, h, w)."""
    x, r = call.tensor("self"), int(call["downscale_factor"])
    *batch, channels, tall, wide = x.axes
    height, above = split_product(tall, tall.size // r, r)
    width, left = split_product(wide, wide.size // r, r)
    return Abstract((*batch, product([channels, above, left]), height, width))


def channel_shuffle(call: Call) -> Value:
    """(groups x inner) -> (inner x groups) on the channel axis."""
    x, groups = call.tensor("self"), int(call["groups"])
    group, inner = split_product(x.axes[1], groups, x.axes[1].size // groups)
    return Abstract((x.axes[0], product([inner, group]), *x.axes[2:]))
