"""Operations that sum an axis away."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from onebasin.symmetry.abstract import Abstract
from onebasin.symmetry.axes import Term, leaf
from onebasin.symmetry.call import Call, Value
from onebasin.symmetry.rules.pointwise import pointwise
from onebasin.symmetry.rules.routing import chosen


def reduce(call: Call) -> Value:
    """Sums, means, norms, variances: symmetric in the reduced axes, which vanish."""
    x = call.tensor("self")
    axes = _without(x.axes, _dims(call, len(x.axes)), bool(call.get("keepdim")))
    return _as_returned(call, Abstract(axes))


def extreme(call: Call) -> Value:
    """max, min, median and mode: of two tensors pointwise, of one a reduction; where the index is used, a choice."""
    if "other" in call.arguments:
        return pointwise(call)
    if len(call.shapes) == 2 and uses(call.node, 1):
        return chosen(call)
    return reduce(call)


def similarity(call: Call) -> Value:
    """Cosine of two tensors along `dim`, which vanishes."""
    operands = call.operands()
    rank = max(len(value.axes) for value in operands)
    labels = range(rank)
    axes = call.join([(value.axes, labels[rank - len(value.axes) :]) for value in operands], labels)
    call.hidden(axes)
    return Abstract(_without(axes, [call.dim(rank)], False))


def _dims(call: Call, rank: int) -> list[int]:
    given = call.get("dim")
    if given is None or given == []:
        return list(range(rank))
    return [dim % max(rank, 1) for dim in ([given] if isinstance(given, int) else given)]


def _without(axes: Sequence[Term], dims: Sequence[int], keep: bool) -> tuple[Term, ...]:
    kept = [(leaf(1) if number in dims else term, number in dims) for number, term in enumerate(axes)]
    return tuple(term for term, reduced in kept if keep or not reduced)


def _as_returned(call: Call, value: Abstract) -> Value:
    return value if isinstance(call.node.meta.get("val"), Tensor) else [value] * len(call.shapes)


def uses(node: fx.Node, number: int) -> bool:
    """Return whether result `number` of `node` is used."""
    return any(user.args[1:] == (number,) and user.users for user in node.users)
