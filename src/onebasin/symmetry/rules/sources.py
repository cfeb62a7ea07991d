"""Tensors made from nothing."""

from __future__ import annotations

from onebasin.symmetry.abstract import Abstract
from onebasin.symmetry.axes import leaf
from onebasin.symmetry.call import Call, Value


def fill(call: Call) -> Value:
    """zeros, ones, full and the like: every use may reorder them as it likes; so it may what nothing was written to."""
    return Abstract(tuple(leaf(size) for size in call.shape), fill=True)


def created(call: Call) -> Value:
    """arange, eye, random numbers: positions are what they are."""
    found = [Abstract(tuple(call.fixed(size, "made in the forward pass") for size in shape)) for shape in call.shapes]
    return found[0] if len(found) == 1 else found
