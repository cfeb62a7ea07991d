"""Which group may carry an own permutation for each unit of another: units within heads, channels within conv groups.

Group b may be nested under a if and only if a is present wherever b is. In every live tensor that holds b, each
position of b must also be indexed by exactly one copy of a; and wherever an operation matches operands along b, all of
them must hold a on an axis they share.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from onebasin.symmetry.abstract import Record
from onebasin.symmetry.axes import Kind, Term, leaves

# child leaf -> its parents, outermost first; leaves are named by the id of their root.
Parents = dict[int, tuple[int, ...]]
# A frozen axis as a parent is written out as that many separate groups, so a long one is not taken.
MAX_FROZEN_PARENT = 128


def nest(record: Record) -> Parents:
    """Choose parents for every free leaf, the largest gain in symmetries first."""
    known = {id(leaf): leaf for row in record.tensors for term in row for leaf in leaves(term) if leaf.size > 1}
    allowed = _present_everywhere(record.tensors, known)
    for row in record.stored:  # what a stored tensor holds must be read off its own axes, without knowing the choices
        own = {id(leaf) for term in row for leaf in leaves(term)}
        for child in own & allowed.keys():
            allowed[child] &= own
    operations = _operations_by_leaf(record)
    allowed = {b: {a for a in row if _shared_wherever(operations.get(b, ()), b, a)} for b, row in allowed.items()}
    pairs = [(_gain(known[b], known[a]), b, a) for b, row in allowed.items() for a in row]
    chosen: dict[int, set[int]] = {child: set() for child in allowed}
    for _, child, parent in sorted(pairs, key=lambda pair: -pair[0]):
        _adopt(chosen, allowed, child, parent)
    return {child: tuple(sorted(row, key=lambda a: len(chosen.get(a, ())))) for child, row in chosen.items() if row}


def _gain(child: Term, parent: Term) -> float:
    return (parent.size - 1) * math.lgamma(child.size + 1)


def _adopt(chosen: dict[int, set[int]], allowed: Mapping[int, set[int]], child: int, parent: int) -> None:
    """Put `child`, and what is nested under it, under `parent` and its parents, unless that makes a circle."""
    wanted = {parent} | chosen.get(parent, set())
    below = [child, *(other for other, row in chosen.items() if child in row)]
    if all(wanted <= allowed[other] | chosen[other] and other not in wanted for other in below):
        for other in below:
            chosen[other] |= wanted


def _present_everywhere(tensors: Iterable[Sequence[Term]], known: Mapping[int, Term]) -> dict[int, set[int]]:
    """Return for every free leaf those others that index each of its positions exactly once in every tensor."""
    found: dict[int, set[int]] = {}
    for row in _distinct(tensors):
        for child, beside in _occurrences(row):
            if known[child].why is None:
                others = {a for a, count in beside.items() if count == 1 and a != child}
                found[child] = found[child] & others if child in found else others
    return {child: {a for a in row if _may_be_parent(known[a])} for child, row in found.items()}


def _may_be_parent(leaf: Term) -> bool:
    """Say whether other units may have an order of their own for each position of `leaf`."""
    return leaf.why is None or (leaf.size <= MAX_FROZEN_PARENT and not leaf.mixed)


def _distinct(tensors: Iterable[Sequence[Term]]) -> Iterator[list[Term]]:
    seen: set[tuple[int, ...]] = set()
    for row in tensors:
        roots = [term.root() for term in row if term.size > 1]
        key = tuple(map(id, roots))
        if key not in seen:
            seen.add(key)
            yield roots


Operation = list[list[tuple[Term, Hashable]]]
Counts = dict[int, int | None]  # leaf -> how many copies of it index a position; None: not the same everywhere


def _occurrences(row: Sequence[Term]) -> Iterator[tuple[int, Counts]]:
    """Yield every leaf of a tensor with the copies of other leaves that index its positions."""
    totals = [_copies(term) for term in row]
    for number, term in enumerate(row):
        beside = _added(total for other, total in enumerate(totals) if other != number)
        yield from _within(term, beside)


def _within(term: Term, beside: Counts) -> Iterator[tuple[int, Counts]]:
    node = term.root()
    if node.kind is Kind.LEAF:
        if node.size > 1:
            yield id(node), beside
    elif node.kind is not Kind.PRODUCT:
        for kid in node.kids:
            yield from _within(kid, beside)
    else:
        totals = [_copies(kid) for kid in node.kids]
        for number, kid in enumerate(node.kids):
            siblings = _added([beside, *(total for other, total in enumerate(totals) if other != number)])
            yield from _within(kid, siblings)


def _copies(term: Term) -> Counts:
    """Count for every leaf how many copies of it index each position of `term`."""
    node = term.root()
    if node.kind is Kind.LEAF:
        return dict.fromkeys(_names(node), 1)
    kids = [_copies(kid) for kid in node.kids if kid.size > 0]
    if node.kind is Kind.PRODUCT:
        return _added(kids)
    names = {name for kid in kids for name in kid}
    return {name: _common(kid.get(name, 0) for kid in kids) for name in names}


def _names(leaf: Term) -> list[int]:
    """Return the names under which a leaf indexes a tensor: its own, and those of axes it has chosen from."""
    chosen = [id(term.root()) for term in leaf.chooses if term.root().kind is Kind.LEAF]
    return [id(leaf), *chosen] if leaf.size > 1 else chosen


def _added(counts: Iterable[Counts]) -> Counts:
    total: Counts = {}
    for row in counts:
        for name, count in row.items():
            before = total.get(name, 0)
            total[name] = None if before is None or count is None else before + count
    return total


def _common(values: Iterable[int | None]) -> int | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _operations_by_leaf(record: Record) -> dict[int, list[Operation]]:
    found: dict[int, list[Operation]] = {}
    for operation in record.operations:
        for name in {id(leaf) for row in operation for term, _ in row for leaf in leaves(term)}:
            found.setdefault(name, []).append(operation)
    return found


def _shared_wherever(operations: Iterable[Operation], child: int, parent: int) -> bool:
    """Return whether in every operation all operands with `child` on one label hold `parent` on a common label."""
    for operands in operations:
        labels = _labels_of(operands, child)
        for label in labels:
            sharing = [row for row in operands if any(own == label and term.size > 1 for term, own in row)]
            common = set.intersection(*(_labels_of([row], parent) for row in sharing))
            if len(sharing) > 1 and not common:
                return False
    return True


def _labels_of(operands: Iterable[Sequence[tuple[Term, Hashable]]], name: int) -> set[Hashable]:
    return {label for row in operands for term, label in row if any(name in _names(leaf) for leaf in leaves(term))}
