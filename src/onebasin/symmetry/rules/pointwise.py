"""Operations that treat every element alike."""

from __future__ import annotations

from onebasin.symmetry.abstract import Abstract, Blocks
from onebasin.symmetry.call import Call, Value, flat


def pointwise(call: Call) -> Value:
    """Align operands from the right, as broadcasting does."""
    given = [value for value in flat(call.arguments) if isinstance(value, (Abstract, Blocks))]
    if len(given) == 1 and isinstance(given[0], Blocks):
        return given[0]
    rank = len(call.shape)
    operands = [(value.axes, range(rank - len(value.axes), rank)) for value in call.operands()]
    return Abstract(call.join(operands, range(rank)))


def retyped(call: Call) -> Value:
    """to, type_as: the first operand in another type; a second one only says in which."""
    given = call["self"]
    return given if isinstance(given, Blocks) else Abstract(call.tensor("self").axes, fill=given.fill)


def prelu(call: Call) -> Value:
    """The slope stands on the channel axis, not on the last one."""
    x, slope = call.tensor("self"), call.tensor("weight")
    labels = range(len(x.axes))
    channel = [1 if len(x.axes) > 1 else 0] if slope.axes else []
    return Abstract(call.join([(x.axes, labels), (slope.axes, channel)], labels))


def softmax(call: Call) -> Value:
    """Passes; the normaliser is a tensor without the softmax axis."""
    x = call.tensor("self")
    dim = call.dim(len(x.axes))
    call.hidden(term for number, term in enumerate(x.axes) if number != dim)
    return Abstract(x.axes)


def along_order(call: Call) -> Value:
    """Cumulative sums, flips, rolls and the like depend on the order along their dimensions."""
    x = call.tensor("self")
    given = call.get("dims") or call.get("dim")
    dims = range(len(x.axes)) if given in (None, []) else [given] if isinstance(given, int) else given
    why = "the order along this axis matters"
    call.freeze((x.axes[dim] for dim in dims), why)
    axes = tuple(t if t.size == size else call.fixed(size, why) for t, size in zip(x.axes, call.shape, strict=True))
    found = [Abstract(axes) for _ in call.shapes]
    return found[0] if len(found) == 1 else found


def triangle(call: Call) -> Value:
    """tril and triu keep a triangle of the last two axes."""
    x = call.tensor("self")
    call.freeze(x.axes[-2:], "a triangle of this axis is kept")
    return Abstract(x.axes)
