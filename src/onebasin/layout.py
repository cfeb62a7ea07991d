"""How the positions of one tensor axis are made up of units: a tree of leaves, sums, products and interleavings.

A `Leaf` is a run of positions that one permutation group moves (or that nothing moves: `group=None`, and `why`).
A `Sum` is a concatenation of parts; an `Interleave` takes one position of each part in turn. A `Product` is a row-major
grid of parts, as a flattened (channel, row, column). `("fc1", None)` in a hand-written spec is the layout
`Leaf(512, "fc1")`, `Leaf(784)` of a 512 x 784 weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

from torch import Tensor

from onebasin.errors import SpecError

# So begins the reason why an axis is fixed for want of knowledge: there may be a larger group than the one found.
NOT_UNDERSTOOD = "not understood: "


@dataclass(frozen=True)
class Leaf:
    """`size` positions moved by `group`, or by nothing (`group=None`, for the reason `why`)."""

    size: int
    group: str | None = None
    why: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.group if self.group is not None else str(self.size)


@dataclass(frozen=True)
class Sum:
    """Concatenation of `parts`."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(part.size for part in self.parts)

    def __str__(self) -> str:
        return "(" + " + ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True)
class Product:
    """Row-major grid of `parts`."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return math.prod(part.size for part in self.parts)

    def __str__(self) -> str:
        return "(" + " x ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True)
class Interleave:
    """One position of each of `parts` in turn (a0 b0 a1 b1 ...), as a channel shuffle leaves them.

    When the axis ends within a turn, the first parts have one position more than the last.
    """

    parts: tuple[Axis, ...]

    def __post_init__(self) -> None:
        sizes = [part.size for part in self.parts]
        if sizes != [(self.size - turn + len(sizes) - 1) // len(sizes) for turn in range(len(sizes))]:
            raise SpecError(
                f"an interleaving {self} of parts with {', '.join(map(str, sizes))} positions",
                "parts that take turns: of one size, or the first of them longer by one",
                "cut the longer parts, and append what is left over in a Sum",
            )

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(part.size for part in self.parts)

    def __str__(self) -> str:
        return "(" + " | ".join(map(str, self.parts)) + ")"


Axis = Leaf | Sum | Product | Interleave
Axes = tuple[Axis, ...]


def leaves(axis: Axis) -> Iterator[Leaf]:
    """Yield the leaves of `axis` from left to right."""
    if isinstance(axis, Leaf):
        yield axis
    else:
        for part in axis.parts:
            yield from leaves(part)


def frozen_positions(axis: Axis) -> int:
    """Count the positions of `axis` that no group moves."""
    if isinstance(axis, Leaf):
        return axis.size if axis.group is None else 0
    counts = [frozen_positions(part) for part in axis.parts]
    return math.prod(counts) if isinstance(axis, Product) else sum(counts)


def renamed(axis: Axis, names: dict[str, str]) -> Axis:
    """Return `axis` in its simplest form, with every group name replaced through `names`."""
    if isinstance(axis, Leaf):
        return axis if axis.group is None else Leaf(axis.size, names[axis.group], axis.why)
    return joined(type(axis), [renamed(part, names) for part in axis.parts])


def joined(kind: type[Sum] | type[Product] | type[Interleave], axes: Iterable[Axis]) -> Axis:
    """Join axes; what is fixed throughout becomes one leaf, nested sums and products are flattened."""
    parts: list[Axis] = []
    if kind is Interleave:
        given = tuple(axes)
        return reduce(partial(_merged, Sum), given) if all(map(_is_fixed, given)) else Interleave(given)
    for axis in (part for given in axes for part in (given.parts if isinstance(given, kind) else (given,))):
        if parts and _is_fixed(axis) and _is_fixed(parts[-1]):
            parts[-1] = _merged(kind, parts[-1], axis)
        else:
            parts.append(axis)
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


def _is_fixed(axis: Axis) -> bool:
    return isinstance(axis, Leaf) and axis.group is None


def _merged(kind: type[Axis], one: Axis, other: Axis) -> Leaf:
    reasons = dict.fromkeys(leaf.why for axis in (one, other) for leaf in leaves(axis))
    size = one.size * other.size if kind is Product else one.size + other.size
    return Leaf(size, None, "; ".join(reasons))


def blocks(tensor: Tensor, axes: Axes) -> Iterator[tuple[Tensor, tuple[Leaf, ...]]]:
    """Cut `tensor` into views that have one dimension per leaf.

    Every element of the tensor lies in exactly one view; no data is copied. A 512 x (64 * 9) weight whose second axis
    is a `Product` of 64 units and 9 positions yields one view of shape (512, 64, 9).
    """
    yield from _blocks(tensor, list(axes), 0)


def _blocks(view: Tensor, axes: list[Axis], dim: int) -> Iterator[tuple[Tensor, tuple[Leaf, ...]]]:
    while dim < len(axes) and isinstance(axes[dim], Leaf):
        dim += 1
    if dim == len(axes):
        yield view, tuple(axes)  # type: ignore[arg-type]  # only leaves are left
        return
    axis, before, after = axes[dim], axes[:dim], axes[dim + 1 :]
    assert not isinstance(axis, Leaf)
    if isinstance(axis, Product):
        sizes = [part.size for part in axis.parts]
        yield from _blocks(view.unflatten(dim, sizes), [*before, *axis.parts, *after], dim)
        return
    for part, piece in zip(axis.parts, _pieces(view, axis, dim), strict=True):
        yield from _blocks(piece, [*before, part, *after], dim)


def _pieces(view: Tensor, axis: Sum | Interleave, dim: int) -> list[Tensor]:
    if isinstance(axis, Sum):
        return list(view.split([part.size for part in axis.parts], dim))
    every = [slice(None)] * dim
    return [view[(*every, slice(start, None, len(axis.parts)))] for start in range(len(axis.parts))]


def to_json(axis: Axis) -> Any:
    """Turn `axis` into plain JSON: `{"group", "size"}`, `{"size", "why"}`, `{"sum": [...]}`, ...."""
    if isinstance(axis, Leaf):
        if axis.group is not None:
            return {"group": axis.group, "size": axis.size}
        return {"size": axis.size, "why": axis.why}
    return {type(axis).__name__.lower(): [to_json(part) for part in axis.parts]}


def from_json(data: Any) -> Axis:
    """Read what `to_json` wrote. Raises `SpecError` for anything else."""
    match data:
        case {"group": str(group), "size": int(size), **rest} if not rest:
            return Leaf(size, group)
        case {"size": int(size), "why": str(why), **rest} if not rest:
            return Leaf(size, None, why)
        case {"sum": [*parts], **rest} if not rest and parts:
            return Sum(tuple(from_json(part) for part in parts))
        case {"product": [*parts], **rest} if not rest and parts:
            return Product(tuple(from_json(part) for part in parts))
        case {"interleave": [*parts], **rest} if not rest and parts:
            return Interleave(tuple(from_json(part) for part in parts))
    raise SpecError(
        f"an axis reads {data!r}",
        'one of {"group", "size"}, {"size", "why"}, {"sum": [...]}, {"product": [...]}, {"interleave": [...]}',
        "write the spec with PermutationSpec.to_json",
    )
