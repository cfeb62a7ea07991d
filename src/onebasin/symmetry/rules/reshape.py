"""One algorithm for every reshape, from the input and output shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from onebasin.symmetry.abstract import Abstract, Blocks
from onebasin.symmetry.axes import Kind, Term, concat, interleave, leaf, product, refactor, split_sum, summands, unify
from onebasin.symmetry.call import Call, Value
from onebasin.symmetry.rules.views import move_blocks

Segment = tuple[list[int], list[int]]  # input axes and output axes of equal total size


def view(call: Call) -> Value:
    """Regroup axes.

    Where a split-off factor separates parts that differ (it is cut later on, as the 3 of a fused qkv, or the axis was a
    concatenation to begin with), the parts stay apart as blocks.
    """
    first = next(iter(call.arguments))
    value = call.arguments[first]
    if isinstance(value, Blocks):
        kept = _squeezed(value, call.shape) or _flattened(value, call.shape)
        if kept is not None:
            return kept
    x = call.tensor(first)
    axes = [leaf(1) for _ in call.shape]
    apart: tuple[list[int], list[Term]] | None = None
    for sources, targets in _segments(x.shape, call.shape):
        terms = [x.axes[number] for number in sources]
        cut = None if apart else _cut(call, terms, targets)
        if cut is None:
            _place(call, axes, terms, targets)
        else:
            apart = _rows(call, axes, terms, targets, *cut)
    if apart is None:
        return Abstract(tuple(axes))
    targets, rows = apart
    return Blocks(targets[0], tuple(_row(call, axes, row, targets) for row in rows))


def _place(call: Call, axes: list[Term], terms: Sequence[Term], targets: Sequence[int]) -> None:
    """Regroup `terms` into the output axes `targets`; mark all but the last as split off here."""
    for number, term in zip(targets, refactor(terms, [call.shape[n] for n in targets]), strict=True):
        axes[number] = term
        if number != targets[-1]:
            term.root().views.add((call.node.name, number))


def _cut(call: Call, terms: Sequence[Term], targets: Sequence[int]) -> tuple[int, list[int]] | None:
    """Return which of `targets` falls apart, and at which offsets."""
    for number in targets[:-1]:
        offsets = call.context.cuts.get((call.node.name, number))
        if offsets:
            return number, sorted(offsets)
    whole = terms[0].root()
    if len(terms) > 1 or len(targets) == 1 or whole.kind is not Kind.SUM:
        return None
    width = whole.size // call.shape[targets[0]]
    ends = list(accumulate(part.size for part in summands(whole)))
    return None if any(end % width for end in ends) else (targets[0], [end // width for end in ends[:-1]])


def _rows(
    call: Call, axes: list[Term], terms: Sequence[Term], targets: Sequence[int], at: int, offsets: Sequence[int]
) -> tuple[list[int], list[Term]]:
    """Place the axes before `at`; return those from `at` on, and the parts into which they fall."""
    inside = [number for number in targets if number >= at]
    sizes = [call.shape[number] for number in targets if number < at]
    *before, rest = refactor(terms, [*sizes, math.prod(call.shape[n] for n in inside)])
    for number, term in zip(targets, before, strict=False):
        axes[number] = term
        term.root().views.add((call.node.name, number))
    width = rest.size // call.shape[at]
    ends = [0, *offsets, call.shape[at]]
    return inside, split_sum(rest, [(end - start) * width for start, end in pairwise(ends)])


def _row(call: Call, axes: Sequence[Term], row: Term, targets: Sequence[int]) -> Abstract:
    own = list(axes)
    inner = [call.shape[number] for number in targets[1:]]
    for number, term in zip(targets, refactor([row], [row.size // math.prod(inner), *inner]), strict=True):
        own[number] = term
        if number != targets[-1]:
            term.root().views.add((call.node.name, number))
    return Abstract(tuple(own))


def _segments(before: Sequence[int], after: Sequence[int]) -> list[Segment]:
    """Pair runs of input axes with runs of output axes of equal size; axes of size 1 are left out."""
    left = [number for number, size in enumerate(before) if size != 1]
    right = [number for number, size in enumerate(after) if size != 1]
    found: list[Segment] = []
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


def _flattened(value: Blocks, shape: tuple[int, ...]) -> Value | None:
    """Return blocks laid out along one axis: one after the other, or position by position in turn; None otherwise."""
    axes = [leaf(1) for _ in shape]
    for sources, targets in _segments(value.shape, shape):
        if len(targets) > 1 or (value.dim not in sources and len(sources) > 1):
            return None
        if value.dim not in sources:
            axes[targets[0]] = _common([part.axes[sources[0]] for part in value.parts])
        elif sources[0] == value.dim:
            axes[targets[0]] = concat(product(part.axes[n] for n in sources) for part in value.parts)
        elif sources[-1] == value.dim and all(part.shape[value.dim] == 1 for part in value.parts):
            axes[targets[0]] = interleave([product(part.axes[n] for n in sources[:-1]) for part in value.parts])
        else:
            return None
    return Abstract(tuple(axes))


def _common(terms: Sequence[Term]) -> Term:
    for term in terms[1:]:
        unify(terms[0], term)
    return terms[0].root()
