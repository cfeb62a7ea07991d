"""Concatenations and the cuts that undo them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from onebasin.symmetry.abstract import Abstract, Blocks
from onebasin.symmetry.axes import Term, concat, leaf, split_interleave, unify
from onebasin.symmetry.call import Call, Value
from onebasin.symmetry.rules.pointwise import along_order
from onebasin.symmetry.rules.views import move_blocks


def cat(call: Call) -> Value:
    """Concatenate along `dim`; all other axes meet."""
    rank = len(call.shape)
    tensors = [t for t in call.tensors("tensors") if len(t.axes) == rank]  # torch lets empty 1-D tensors pass
    return Blocks(call.dim(rank), tuple(tensors)).collapse()


def stack(call: Call) -> Value:
    """Lay tensors side by side along a new axis; they stay apart until something mixes them."""
    tensors = call.tensors("tensors")
    dim = call.dim(len(tensors[0].axes) + 1)
    return Blocks(dim, tuple(Abstract((*t.axes[:dim], leaf(1), *t.axes[dim:])) for t in tensors))


def split(call: Call) -> Value:
    """split, chunk, split_with_sizes, tensor_split: as long as the results are."""
    dim = call.dim(len(call["self"].shape))
    return pieces(call, dim, [shape[dim] for shape in call.shapes])


def unbind(call: Call) -> Value:
    """One result per position of `dim`."""
    dim = call.dim(len(call["self"].shape))
    return [_dropped(piece, dim) for piece in pieces(call, dim, [1] * len(call.shapes))]


def select(call: Call) -> Value:
    """One position of `dim`, which vanishes."""
    size = call["self"].shape
    dim = call.dim(len(size))
    if not isinstance(call["index"], int):
        return call.frozen("a position that depends on data is taken")
    index = call["index"] % size[dim]
    return _dropped(pieces(call, dim, [index, 1, size[dim] - index - 1])[1], dim)


def narrow(call: Call) -> Value:
    """slice and narrow: a run of positions of `dim`."""
    size = call["self"].shape
    dim = call.dim(len(size))
    if int(call.get("step", 1)) != 1:
        return _stepped(call, dim)
    length = call.shape[dim]
    start = _start(call.get("start"), size[dim])
    return pieces(call, dim, [start, length, size[dim] - start - length])[1]


def glu(call: Call) -> Value:
    """a * sigmoid(b) for the two halves a, b of an axis."""
    x = call.tensor("self")
    dim = call.dim(len(x.axes))
    one, other = call.cut(x.axes[dim], [x.axes[dim].size // 2] * 2)
    rest = [number for number in range(len(x.axes)) if number != dim]
    halves = [tuple(half if n == dim else x.axes[n] for n in range(len(x.axes))) for half in (one, other)]
    labels = [*rest[:dim], "half", *rest[dim:]]
    return Abstract(call.join([(axes, labels) for axes in halves], labels))


def pad(call: Call) -> Value:
    """Constant padding concatenates constants; any other mode looks at the order."""
    x = call.tensor("self")
    amounts = [int(amount) for amount in call["pad"]]
    pairs = [(amounts[n], amounts[n + 1]) for n in range(0, len(amounts), 2)]
    axes = list(x.axes)
    for number, (before, after) in enumerate(pairs):
        dim = len(axes) - 1 - number
        if call.get("mode", "constant") != "constant":
            call.freeze([axes[dim]], "padded by values from other positions")
            axes[dim] = call.fixed(call.shape[dim], "padded by values from other positions")
            continue
        term, size = axes[dim], axes[dim].size
        cropped = call.cut(term, [max(-before, 0), size - max(-before, 0) - max(-after, 0), max(-after, 0)])[1]
        axes[dim] = concat([leaf(max(before, 0)), cropped, leaf(max(after, 0))])
    return Abstract(tuple(axes))


def put_slice(call: Call) -> Value:
    """slice_scatter and select_scatter: a run of positions is replaced."""
    x, source = call.tensor("self"), call.tensor("src")
    dim = call.dim(len(x.axes))
    size = x.axes[dim].size
    if int(call.get("step", 1)) != 1:
        return along_order(call)
    new = [*source.axes[:dim], leaf(1), *source.axes[dim:]] if "index" in call.arguments else list(source.axes)
    start = int(call["index"]) % size if "index" in call.arguments else _start(call.get("start"), size)
    before, _, after = call.cut(x.axes[dim], [start, new[dim].size, size - start - new[dim].size])
    axes = [term if number == dim else unify(term, new[number]) for number, term in enumerate(x.axes)]
    axes[dim] = concat([before, new[dim], after])
    return Abstract(tuple(axes))


def _start(given: Value, size: int) -> int:
    start = int(given or 0)
    return min(max(start + size if start < 0 else start, 0), size)


def _stepped(call: Call, dim: int) -> Abstract:
    """Every n-th position: one of n parts that take turns on the axis, or a run of it."""
    x, step = call.tensor("self"), int(call["step"])
    start, length = _start(call.get("start"), x.axes[dim].size), call.shape[dim]
    part = split_interleave(x.axes[dim], step)[start % step]
    first = start // step
    run = call.cut(part, [first, length, part.size - first - length])[1]
    return Abstract((*x.axes[:dim], run, *x.axes[dim + 1 :]))


def pieces(call: Call, dim: int, sizes: Sequence[int]) -> list[Value]:
    """Cut the operand along `dim` into consecutive parts of `sizes`; blocks stay blocks."""
    value = call["self"]
    if isinstance(value, Blocks):
        if value.dim != dim:
            by_part = [_cut(call, part, dim, sizes) for part in value.parts]
            return [Blocks(value.dim, tuple(part[n] for part in by_part)) for n in range(len(sizes))]
        found = _whole_blocks(value, sizes)
        if found is not None:
            return found
    return list(_cut(call, call.tensor("self"), dim, sizes))


def _cut(call: Call, x: Abstract, dim: int, sizes: Sequence[int]) -> list[Abstract]:
    terms: list[Term] = call.cut(x.axes[dim], sizes)
    return [Abstract((*x.axes[:dim], term, *x.axes[dim + 1 :])) for term in terms]


def _whole_blocks(value: Blocks, sizes: Sequence[int]) -> list[Value] | None:
    """Hand out whole blocks, if no cut goes through one."""
    ends = list(accumulate(part.shape[value.dim] for part in value.parts))
    wanted = list(accumulate(sizes))
    if any(end not in (0, *ends) for end in wanted):
        return None
    starts = [end - size for end, size in zip(wanted, sizes, strict=True)]
    groups = [
        tuple(part for part, at in zip(value.parts, ends, strict=True) if start < at <= end)
        for start, end in zip(starts, wanted, strict=True)
    ]
    return [parts[0] if len(parts) == 1 else Blocks(value.dim, parts) if parts else None for parts in groups]


def _dropped(value: Value, dim: int) -> Value:
    if isinstance(value, Blocks):
        at = value.dim - (dim < value.dim)
        return move_blocks(value, lambda axes: tuple(axes[:dim]) + tuple(axes[dim + 1 :]), at)
    return Abstract(value.axes[:dim] + value.axes[dim + 1 :])
