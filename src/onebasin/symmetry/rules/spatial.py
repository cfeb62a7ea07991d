"""Pooling and resizing: channels pass, places keep their order."""

from __future__ import annotations

from onebasin.symmetry.abstract import Abstract
from onebasin.symmetry.axes import leaf, product
from onebasin.symmetry.call import Call, Value
from onebasin.symmetry.rules.reductions import uses

PLACE = "places keep their order"


def pool(call: Call) -> Value:
    """Pools and resizes of the last axes, as many as the operation's name says; one output place sums them all."""
    x = call.tensor(next(iter(call.arguments)))
    rank = next(int(letter) for letter in call.name if letter.isdigit())
    symmetric = "adaptive" in call.name and all(size == 1 for size in call.shape[-rank:]) and not uses(call.node, 1)
    if not symmetric:
        call.freeze(x.axes[-rank:], PLACE)
    places = [leaf(1) if size == 1 else call.fixed(size, PLACE) for size in call.shape[-rank:]]
    found = [Abstract((*x.axes[:-rank], *places)) for _ in call.shapes]
    return found[0] if len(found) == 1 else found


def grid_sample(call: Call) -> Value:
    """Places of the input are looked up by coordinates."""
    x, grid = call.tensor("input"), call.tensor("grid")
    call.freeze([*x.axes[2:], *grid.axes[1:]], PLACE)
    return Abstract((*x.axes[:2], *(call.fixed(size, PLACE) for size in call.shape[2:])))


def im2col(call: Call) -> Value:
    """Windows become rows of (channel, offset)."""
    x = call.tensor("self")
    call.freeze(x.axes[-2:], PLACE)
    channels = x.axes[-3]
    window = call.fixed(call.shape[-2] // channels.size, PLACE)
    return Abstract((*x.axes[:-3], product([channels, window]), call.fixed(call.shape[-1], PLACE)))


def windows(call: Call) -> Value:
    """Tensor.unfold: overlapping windows of one axis."""
    x = call.tensor("self")
    dim = call.dim(len(x.axes), "dimension")
    call.freeze([x.axes[dim]], PLACE)
    axes = [*x.axes[:dim], call.fixed(call.shape[dim], PLACE), *x.axes[dim + 1 :], call.fixed(call.shape[-1], PLACE)]
    return Abstract(tuple(axes))
