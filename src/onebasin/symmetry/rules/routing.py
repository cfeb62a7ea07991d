"""Positions chosen by value, and looked up again: top-k routers and the experts behind them.

The numbers a top-k returns are positions of the expert axis. As long as they are only used to look that axis up, the
experts may change places: the router's rows, the numbers and the look-ups all move together.
"""

from __future__ import annotations

from dataclasses import replace

from onebasin.symmetry.abstract import Abstract, Meaning
from onebasin.symmetry.axes import Term, leaf, split_product, unify
from onebasin.symmetry.call import Call, Value

# Operations that copy or rearrange elements: what the integers stand for stays true of the result.
PASSING = frozenset(
    """to _to_copy clone contiguous alias detach view _unsafe_view reshape flatten unflatten squeeze unsqueeze permute
    transpose t expand lift_fresh_copy""".split()
)


def chosen(call: Call) -> Value:
    """topk, sort, argsort, argmax: the numbers returned are positions of `dim`."""
    x = call.arguments["self"]
    if isinstance(x, Abstract) and x.meaning is not None and len(x.axes) == 1:
        return _sorted_by_choice(call, x)
    x = call.tensor("self")
    if not x.axes or call.get("dim") is None:
        return call.frozen("the number of a position is used")
    dim = call.dim(len(x.axes))
    meaning = Meaning("choice", x.axes[dim])
    ranks = call.fixed(call.shape[dim], "ranked by value") if call.name in ("topk", "sort", "argsort") else None
    if ranks is not None:
        ranks.chooses.append(x.axes[dim])
    kept = [] if ranks is None else [ranks]
    if call.get("keepdim"):
        kept = [leaf(1)]
    axes = (*x.axes[:dim], *kept, *x.axes[dim + 1 :])
    numbers = Abstract(axes, meaning=meaning)
    return numbers if len(call.shapes) == 1 else [Abstract(axes), numbers]


def _sorted_by_choice(call: Call, x: Abstract) -> Value:
    """Sorting tokens by expert gives an axis of its own; sorting that order again gives the way back."""
    assert x.meaning is not None
    if x.meaning.kind == "order":
        back = Abstract((_known(x.meaning.sorted),), meaning=replace(x.meaning, kind="inverse"))
        return back if len(call.shapes) == 1 else [Abstract(x.axes), back]
    line = call.fixed(x.axes[0].size, "sorted by choice")
    line.chooses.append(x.meaning.axis)
    order = Abstract((line,), meaning=Meaning("order", x.meaning.axis, line, x.axes[0]))
    values = Abstract((line,), meaning=x.meaning)
    return order if len(call.shapes) == 1 else [values, order]


def row_of(call: Call) -> Value | None:
    """order // k: the row, in a grid of k columns, that each sorted position came from."""
    order, columns = call.arguments["self"], call.arguments["other"]
    if not isinstance(columns, int) or order.meaning.kind != "order" or order.meaning.source.size % columns:
        return None
    source = order.meaning.source
    rows, _ = split_product(source, source.size // columns, columns)
    return Abstract(order.axes, meaning=replace(order.meaning, kind="row order", source=rows))


def counts(call: Call) -> Value | None:
    """histc and bincount of a choice: one number per position of the axis chosen from."""
    choice = call.arguments["self"].meaning
    if choice.kind != "choice" or call.shape != (choice.axis.size,):
        return None
    return Abstract((choice.axis,), meaning=Meaning("counts", choice.axis))


def offsets(call: Call) -> Value | None:
    """cumsum of counts: where in the sorted axis each position of the chosen axis ends."""
    given = call.arguments["self"]
    if given.meaning.kind != "counts":
        return None
    return Abstract(given.axes, meaning=replace(given.meaning, kind="offsets"))


def look_up(call: Call, x: Term, index: Abstract) -> tuple[Term, ...] | None:
    """Return the axes that take the place of `x` when it is looked up by `index`; None: freeze it."""
    meaning = index.meaning
    if meaning is None:
        return None
    expected = {"choice": meaning.axis, "inverse": meaning.sorted}.get(meaning.kind, meaning.source)
    if expected is None or expected.size != x.size:
        return None
    unify(x, expected)
    return (_known(meaning.source),) if meaning.kind == "inverse" else index.axes


def inverse_order(call: Call) -> Value | None:
    """x[order] = arange: the inverse of an order, written into an empty tensor."""
    given = [value for value in call["indices"] if value is not None]
    values = call["values"]
    if len(given) != 1 or given[0].meaning is None or given[0].meaning.kind != "order":
        return None
    constant = values.constant if isinstance(values, Abstract) else None
    if constant is None or constant.tolist() != list(range(given[0].axes[0].size)):
        return None
    meaning = given[0].meaning
    return Abstract((_known(meaning.sorted),), meaning=replace(meaning, kind="inverse"))


def grouped_matmul(call: Call) -> Value:
    """Rows sorted by expert times the matrix of their expert: experts may move, their units each for itself."""
    names = list(call.arguments)
    x, weight, ends = (call.arguments[name] for name in names[:3])
    bounds = ends.meaning if isinstance(ends, Abstract) else None
    if bounds is None or bounds.kind != "offsets" or len(x.axes) != 2 or len(weight.axes) != 3 or call.get("bias"):
        return call.given_up("experts bounded by offsets of unknown origin")
    unify(bounds.axis, weight.axes[0])
    row, inner = x.axes
    expert, summed, out = weight.axes
    unify(inner, summed)
    call.context.record.operations.append(
        [[(row, "expert"), (inner, "sum")], [(expert, "expert"), (summed, "sum"), (out, "out")]]
    )
    call.tap(names[0], x.axes)
    return Abstract((row, out))


# Operations that keep track of what numbers stand for; None from them means that here they do not.
AWARE = {"floor_divide": row_of, "histc": counts, "bincount": counts, "cumsum": offsets, "index_put": inverse_order}


def _known(term: Term | None) -> Term:
    assert term is not None
    return term
