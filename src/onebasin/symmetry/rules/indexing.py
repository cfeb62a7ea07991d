"""Looking positions up by number: the indexed axis keeps its order, the others pass."""

from __future__ import annotations

from dataclasses import replace

import torch

from onebasin.symmetry.abstract import Abstract
from onebasin.symmetry.axes import Term, leaf, unify
from onebasin.symmetry.call import Call, Value
from onebasin.symmetry.rules.routing import look_up
from onebasin.symmetry.rules.sums import pieces

WHY = "looked up by number"


def index(call: Call) -> Value:
    """x[i, :, j]: advanced indexing by tensors; a constant run of positions is a slice."""
    given = {dim: value for dim, value in enumerate(call["indices"]) if value is not None}
    if len(given) == 1:
        (dim, chosen), *_ = given.items()
        sizes = _constant_run(chosen, call["self"].shape[dim])
        if sizes is not None:
            return pieces(call, dim, sizes)[1]
        looked = look_up(call, call.tensor("self").axes[dim], chosen)
        if looked is not None:
            axes = call.tensor("self").axes
            return Abstract((*axes[:dim], *looked, *axes[dim + 1 :]))
    x = call.tensor("self")
    call.freeze((x.axes[dim] for dim in given), WHY)
    looked = _broadcast(call, [call._use(value) for value in given.values()])
    dims = list(given)
    together = dims == list(range(dims[0], dims[0] + len(dims)))
    before = x.axes[: dims[0]] if together else ()
    rest = tuple(term for dim, term in enumerate(x.axes) if dim not in given and not (together and dim < dims[0]))
    return Abstract((*before, *looked, *rest))


def index_select(call: Call) -> Value:
    """Positions of `dim` chosen by a vector."""
    x, chosen = call.tensor("self"), call["index"]
    dim = call.dim(len(x.axes))
    looked = look_up(call, x.axes[dim], chosen)
    if looked is None:
        call.freeze([x.axes[dim]], WHY)
        looked = call.tensor("index").axes or (leaf(1),)
    return Abstract((*x.axes[:dim], *looked, *x.axes[dim + 1 :]))


def gather(call: Call) -> Value:
    """gather(dim, index): other axes of index and input meet where they are equally long."""
    x = call.tensor("self")
    dim = call.dim(len(x.axes))
    chosen = _chosen_along(call, x.axes[dim])
    return Abstract(_meet(call, x, chosen, dim))


def scatter(call: Call) -> Value:
    """scatter, scatter_add, scatter_reduce, index_add, index_copy, index_fill: the result looks like the input.

    Along `dim` the source goes with the index: position by position, whatever the numbers there are.
    """
    x = call.tensor("self")
    dim = call.dim(len(x.axes))
    chosen = _chosen_along(call, x.axes[dim])
    sources = [value for value in map(call.optional, ("src", "source")) if value is not None]
    for source in sources:
        _meet(call, x, source, dim)
        row = chosen.axes if len(chosen.axes) == len(source.axes) else (*chosen.axes, leaf(1))[:1]
        unify(source.axes[dim], row[dim if len(row) > 1 else 0])
    if len(chosen.axes) == len(x.axes):
        _meet(call, x, chosen, dim)
    return Abstract(x.axes)


def _chosen_along(call: Call, term: Term) -> Abstract:
    """Return the index of a gather or scatter along `term`, which stays free if the index chose from it."""
    chosen = call["index"]
    if look_up(call, term, chosen) is not None:
        return replace(chosen, meaning=None)
    call.freeze([term], WHY)
    return call.tensor("index")


def index_put(call: Call) -> Value:
    """x[i, :, j] = v: indexed axes keep their order, the others meet those of v from the right."""
    x, values = call.tensor("self"), call.tensor("values")
    given = {dim: value for dim, value in enumerate(call["indices"]) if value is not None}
    call.freeze((x.axes[dim] for dim in given), WHY)
    looked = _broadcast(call, [call._use(value) for value in given.values()])
    if list(given) != list(range(len(given))):
        return call.given_up("positions of inner axes are written by number")
    row: tuple[Term, ...] = (*looked, *x.axes[len(given) :])
    labels = range(len(row))
    axes = call.join([(row, labels), (values.axes, labels[len(row) - len(values.axes) :])], labels)
    return Abstract((*x.axes[: len(given)], *axes[len(looked) :]))


def one_hot(call: Call) -> Value:
    """A new axis of classes: the axis chosen from, if that is known."""
    given = call["self"]
    if given.meaning is not None and given.meaning.kind == "choice" and call.shape[-1] == given.meaning.axis.size:
        return Abstract((*given.axes, given.meaning.axis))
    return Abstract((*call.tensor("self").axes, call.fixed(call.shape[-1], WHY)))


def _constant_run(value: Value, size: int) -> list[int] | None:
    """Return [before, length, after] if `value` is known to be a run of consecutive positions."""
    numbers = getattr(value, "constant", None)
    if numbers is None or numbers.dim() != 1 or not numbers.numel() or numbers.dtype == torch.bool:
        return None
    numbers = torch.where(numbers < 0, numbers + size, numbers)
    start, length = int(numbers[0]), numbers.numel()
    if not torch.equal(numbers, torch.arange(start, start + length).to(numbers)):
        return None
    return [start, length, size - start - length]


def _broadcast(call: Call, tensors: list[Abstract]) -> tuple[Term, ...]:
    rank = max((len(value.axes) for value in tensors), default=0)
    for value in tensors:
        call.freeze(value.axes, WHY)
    return call.join([(value.axes, range(rank - len(value.axes), rank)) for value in tensors], range(rank))


def _meet(call: Call, x: Abstract, other: Abstract, dim: int) -> tuple[Term, ...]:
    labels = [
        number if a.size == b.size else -number - 1
        for number, (a, b) in enumerate(zip(x.axes, other.axes, strict=True))
    ]
    for number, label in enumerate(labels):
        if label < 0 and number != dim:
            call.freeze([x.axes[number], other.axes[number]], WHY)
    kept = [number for number, label in enumerate(labels) if label >= 0 and number != dim]
    met = call.join([([t.axes[n] for n in kept], kept) for t in (x, other)], kept)
    found = dict(zip(kept, met, strict=True))
    return tuple(found.get(number, other.axes[number]) for number in range(len(labels)))
