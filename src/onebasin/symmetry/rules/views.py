"""Reshapes, axis moves and repeats."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

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
    axes: list[Term | None] = [leaf(1) if size == 1 else None for size in call.shape]
    cut: list[tuple[int, list[Term]]] = []
    for sources, targets in _segments(x.shape, call.shape):
        terms = [x.axes[number] for number in sources]
        sizes = [call.shape[number] for number in targets]
        offsets = sorted(call.context.cuts.get((call.node.name, targets[0]), ())) if targets else []
        if offsets and len(targets) > 1:
            cut.append((targets[0], _rows(product(terms), sizes, offsets)))
            continue
        for number, term in zip(targets, refactor(terms, sizes), strict=True):
            axes[number] = term
        for number in targets[:-1]:
            _mark(axes[number], call.node.name, number)
    if not cut:
        return Abstract(tuple(term for term in axes if term is not None))
    return _as_blocks(call, axes, *cut[0])


def _mark(term: Term | None, name: str, number: int) -> None:
    if term is not None:
        term.root().views.add((name, number))


def _rows(term: Term, sizes: list[int], offsets: list[int]) -> list[Term]:
    inner = term.size // sizes[0]
    ends = [0, *offsets, sizes[0]]
    return split_sum(term, [(end - start) * inner for start, end in itertools.pairwise(ends)])


def _as_blocks(call: Call, axes: list[Term | None], dim: int, rows: list[Term]) -> Blocks:
    parts = []
    inner = [number for number in range(dim + 1, len(axes)) if axes[number] is None]
    width = 1
    for number in inner:
        width *= call.shape[number]
    for row in rows:
        own = list(axes)
        terms = refactor([row], [row.size // width, *(call.shape[number] for number in inner)])
        for number, term in zip([dim, *inner], terms, strict=True):
            own[number] = term
            if number != inner[-1]:
                _mark(term, call.node.name, number)
        parts.append(Abstract(tuple(term for term in own if term is not None)))
    return Blocks(dim, tuple(parts))


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
