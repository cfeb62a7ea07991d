"""Axis moves and repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onebasin.symmetry.abstract import Abstract, Blocks
from onebasin.symmetry.axes import Term, leaf, product, refactor, split_product
from onebasin.symmetry.call import Call, Value


def move_blocks(value: Blocks, move: Callable[[Sequence[Term]], tuple[Term, ...]], dim: int) -> Blocks:
    """Apply the same axis move to every block; `dim` is where the blocks lie afterwards."""
    return Blocks(dim, tuple(Abstract(move(part.axes)) for part in value.parts))


def _reorder(value: Abstract | Blocks, order: Sequence[int]) -> Value:
    if isinstance(value, Blocks):
        return move_blocks(value, lambda axes: tuple(axes[n] for n in order), list(order).index(value.dim))
    return Abstract(tuple(value.axes[number] for number in order))


def at_least(call: Call) -> Value:
    """atleast_1d, 2d, 3d of tensors that have these axes already."""
    (given,) = call.arguments.values()
    values = given if isinstance(given, (list, tuple)) else [given]
    if [value.shape for value in values] != call.shapes:
        return call.given_up("axes of size 1 are added")
    return given


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
        return call.given_up("repeated by a tensor of counts")
    axes = [product(x.axes)] if call.get("dim") is None else list(x.axes)
    dim = call.dim(len(axes)) if call.get("dim") is not None else 0
    axes[dim] = product([axes[dim], leaf(int(call["repeats"]))])
    return Abstract(tuple(axes))


def as_complex(call: Call) -> Value:
    """view_as_complex: the last axis (real, imaginary) becomes one number."""
    x = call.tensor("self")
    call.freeze(x.axes[-1:], "real and imaginary part")
    return Abstract(x.axes[:-1])


def as_real(call: Call) -> Value:
    """view_as_real: a new last axis (real, imaginary)."""
    return Abstract((*call.tensor("self").axes, call.fixed(2, "real and imaginary part")))


def meshgrid(call: Call) -> Value:
    """One result per vector, constant along all other axes."""
    vectors = call.tensors("tensors")
    places = list(range(len(vectors)))
    if call.get("indexing") == "xy":
        places[:2] = places[1::-1]
    return [
        Abstract(
            tuple(vector.axes[0] if n == place and vector.axes else leaf(size) for n, size in enumerate(call.shape))
        )
        for vector, place in zip(vectors, places, strict=True)
    ]


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
