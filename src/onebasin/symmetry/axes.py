"""Axis terms: what is known about the positions of an axis while a model is interpreted. No torch.

A term is a leaf, a sum (concatenation), a product (row-major grid) or an interleaving (a0 b0 a1 b1 ...) of terms. Terms
live in a union-find structure and are refined in place: a leaf that turns out to be a concatenation becomes a sum, and
every tensor that uses it sees so. In the end each free leaf is a permutation group; a frozen one keeps the first reason
it was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from itertools import accumulate, pairwise

from onebasin.layout import NOT_UNDERSTOOD

# An axis cut at odd places inside a product is unrolled into that many copies of the inner factor, not more.
MAX_COPIES = 64
UNEVEN = NOT_UNDERSTOOD + "interleaved parts of different length"


class Kind(Enum):
    """What a term is made of."""

    LEAF = auto()
    SUM = auto()
    PRODUCT = auto()
    INTERLEAVE = auto()


class Term:
    """`size` positions, and what has been learnt about them.

    `why` is set on a frozen leaf, and `mixed` if an operation moves or combines its positions, so that they are not the
    same ones wherever it stands. `views` are the reshapes that split this factor off. `chooses` are axes of which each
    position here has picked one position, as the top-k axis of a router does of the experts.
    """

    __slots__ = ("_link", "chooses", "kids", "kind", "mixed", "size", "views", "why")

    def __init__(self, size: int, kind: Kind = Kind.LEAF, kids: Sequence[Term] = (), why: str | None = None) -> None:
        self.size, self.kind, self.kids, self.why = size, kind, list(kids), why
        self.views: set[tuple[str, int]] = set()
        self.chooses: list[Term] = []
        self.mixed = False
        self._link: Term | None = None

    def root(self) -> Term:
        """Return the node that stands for this one after all unifications."""
        node = self
        while node._link is not None:
            if node._link._link is not None:
                node._link = node._link._link
            node = node._link
        return node

    def become(self, kind: Kind, kids: Sequence[Term]) -> None:
        """Turn this leaf into a sum or product of `kids`."""
        if self.mixed:
            for kid in kids:
                freeze(kid, self.why or "")
        self.kind, self.kids, self.why = kind, list(kids), None

    def link(self, other: Term) -> None:
        """Let `other` stand for this node from now on."""
        if self is not other:
            other.views |= self.views
            other.chooses += self.chooses
            other.mixed |= self.mixed
            self._link, self.kids = other, []

    def __repr__(self) -> str:
        node = self.root()
        if node.kind is Kind.LEAF:
            return f"{node.size}" + ("!" if node.why else "")
        sign = {Kind.SUM: " + ", Kind.PRODUCT: " x ", Kind.INTERLEAVE: " | "}[node.kind]
        return "(" + sign.join(map(repr, node.kids)) + ")"


def leaf(size: int, why: str | None = None) -> Term:
    """Return a new leaf; a single position is frozen, since nothing can move it."""
    return Term(size, why=why or ("a single position" if size <= 1 else None))


def factors(term: Term) -> list[Term]:
    """Return the factors of `term`, nested products flattened, factors of size 1 left out."""
    node = term.root()
    if node.size == 1:
        return []
    if node.kind is not Kind.PRODUCT:
        return [node]
    return [factor for kid in node.kids for factor in factors(kid)]


def summands(term: Term) -> list[Term]:
    """Return the summands of `term`, nested sums flattened, empty ones left out."""
    node = term.root()
    if node.size == 0:
        return []
    if node.kind is not Kind.SUM:
        return [node]
    return [part for kid in node.kids for part in summands(kid)]


def product(terms: Iterable[Term]) -> Term:
    """Return the row-major product of `terms`."""
    kids = [factor for term in terms for factor in factors(term)]
    if len(kids) == 1:
        return kids[0]
    return Term(math.prod(kid.size for kid in kids), Kind.PRODUCT, kids) if kids else leaf(1)


def concat(terms: Iterable[Term]) -> Term:
    """Return the concatenation of `terms`."""
    kids = [part for term in terms for part in summands(term)]
    if len(kids) == 1:
        return kids[0]
    return Term(sum(kid.size for kid in kids), Kind.SUM, kids) if kids else leaf(0)


def interleave(terms: Sequence[Term]) -> Term:
    """Return the axis that takes one position of each term in turn; the first may be one longer than the last."""
    kids = [term.root() for term in terms if term.size]
    if len(kids) == 1:
        return kids[0]
    if all(kid.size == 1 for kid in kids):
        return concat(kids)
    return Term(sum(kid.size for kid in kids), Kind.INTERLEAVE, kids)


def leaves(term: Term) -> Iterator[Term]:
    """Yield the leaves of `term` from left to right."""
    node = term.root()
    if node.kind is Kind.LEAF:
        yield node
    else:
        for kid in node.kids:
            yield from leaves(kid)


def freeze(term: Term, why: str, mixed: bool = True) -> None:
    """Freeze every leaf of `term` that is still free; `mixed` unless each position stays what it is."""
    for node in leaves(term):
        node.why = node.why or why
        node.mixed |= mixed


def split_sum(term: Term, sizes: Sequence[int]) -> list[Term]:
    """Cut `term` into consecutive parts of `sizes`; refine it so that it is their concatenation."""
    node = term.root()
    assert sum(sizes) == node.size, (sizes, node.size)
    wanted = [size for size in sizes if size]
    if len(wanted) == 1:
        found = [node]
    elif node.kind is Kind.LEAF:
        found = [leaf(size, node.why) for size in wanted]
        node.become(Kind.SUM, found)
    elif node.kind is Kind.SUM:
        found = _cut_sum(node, wanted)
    elif node.kind is Kind.INTERLEAVE:
        found = _cut_interleaved(node, wanted)
    else:
        found = _cut_product(node, wanted)
    pieces = iter(found)
    return [next(pieces) if size else leaf(0) for size in sizes]


def split_product(term: Term, outer: int, inner: int) -> tuple[Term, Term]:
    """Write `term` as a row-major grid of `outer` rows and `inner` columns; refine it to be one, or freeze it."""
    node = term.root()
    assert outer * inner == node.size, (outer, inner, node.size)
    if outer == 1:
        return leaf(1), node
    if inner == 1:
        return node, leaf(1)
    if node.kind is Kind.LEAF:
        pair = leaf(outer, node.why), leaf(inner, node.why)
        node.become(Kind.PRODUCT, pair)
        return pair
    if node.kind is Kind.SUM:
        return _grid_of_sum(node, outer, inner)
    if node.kind is Kind.INTERLEAVE:
        return split_product(_even(node), outer, inner)
    return _regroup(node, outer, inner)


def split_interleave(term: Term, turns: int) -> list[Term]:
    """Write `term` as positions of `turns` parts in turn; refine it to be so, or freeze it."""
    node = term.root()
    sizes = [(node.size - first + turns - 1) // turns for first in range(turns)]
    if node.kind is Kind.LEAF:
        parts = [leaf(size, node.why) for size in sizes]
        node.become(Kind.INTERLEAVE, parts)
        return parts
    if node.kind is Kind.INTERLEAVE and len(node.kids) == turns:
        return node.kids
    why = NOT_UNDERSTOOD + "every n-th position is taken"
    if node.size % turns:
        freeze(node, why)
        return [leaf(size, why) for size in sizes]
    row, column = split_product(node, node.size // turns, turns)
    freeze(column, why)
    return [row] * turns


def refactor(terms: Sequence[Term], sizes: Sequence[int]) -> list[Term]:
    """Regroup the product of `terms` into factors of `sizes`."""
    rest, found = product(terms), []
    for size in sizes[:-1]:
        first, rest = split_product(rest, size, rest.root().size // size)
        found.append(first)
    return [*found, rest] if sizes else []


def unify(one: Term, other: Term) -> Term:
    """Declare that two axes are the same; refine both to a common structure, or freeze what has none."""
    a, b = one.root(), other.root()
    assert a.size == b.size, (a.size, b.size)
    if a is b or a.size <= 1:
        return b
    if Kind.LEAF in (a.kind, b.kind):
        if a.kind is not Kind.LEAF:
            a, b = b, a
        if a.why:
            freeze(b, a.why, a.mixed)
        a.link(b)
    elif Kind.INTERLEAVE in (a.kind, b.kind):
        _unify_interleaved(a, b)
    elif a.kind is not b.kind:
        _unify_product_with_sum(*((a, b) if a.kind is Kind.PRODUCT else (b, a)))
    elif a.kind is Kind.SUM:
        _unify_sums(a, b)
    else:
        _unify_products(a, b)
    return b.root()


def _cut_sum(node: Term, sizes: Sequence[int]) -> list[Term]:
    found: list[Term] = []
    waiting = summands(node)[::-1]
    for size in sizes:
        taken: list[Term] = []
        while (missing := size - sum(part.size for part in taken)) > 0:
            part = waiting.pop()
            if part.size > missing:
                head, tail = split_sum(part, [missing, part.size - missing])
                waiting += [*summands(tail)[::-1], *summands(head)[::-1]]
            else:
                taken.append(part)
        found.append(concat(taken))
    return found


def _cut_product(node: Term, sizes: Sequence[int]) -> list[Term]:
    first, *rest = factors(node)
    inner = product(rest)
    runs: list[list[int]] = [[]]  # whole rows each: cuts between rows come first, odd ones then stay within theirs
    for size in sizes:
        runs[-1].append(size)
        if sum(runs[-1]) % inner.size == 0:
            runs.append([])
    if len(runs) > 2:
        rows = split_sum(first, [sum(run) // inner.size for run in runs[:-1]])
        return [
            part for row, run in zip(rows, runs[:-1], strict=True) for part in split_sum(product([row, inner]), run)
        ]
    why = NOT_UNDERSTOOD + "a concatenation cuts through the rows of a grid"
    if first.size > MAX_COPIES:
        freeze(node, why)
        return [leaf(size, why) for size in sizes]
    freeze(first, why)
    return _cut_sum(Term(node.size, Kind.SUM, [inner] * first.size), sizes)


def _cut_interleaved(node: Term, sizes: Sequence[int]) -> list[Term]:
    """Cut in turn: after `size` positions the next one belongs to the kid that follows."""
    kids, found = list(node.kids), []
    for size in sizes:
        turns = len(kids)
        taken = [(size - number + turns - 1) // turns for number in range(turns)]
        halves = [split_sum(kid, [count, kid.size - count]) for kid, count in zip(kids, taken, strict=True)]
        found.append(interleave([head for head, _ in halves]))
        rest = [tail for _, tail in halves]
        kids = rest[size % turns :] + rest[: size % turns]
    return found


def _even(node: Term) -> Term:
    """Give up the difference between interleaved kids: a grid of equal columns, or frozen if lengths differ."""
    first, *others = node.kids
    if any(kid.size != first.size for kid in others):
        freeze(node, UNEVEN)
        return leaf(node.size, UNEVEN)
    for kid in others:
        unify(first, kid)
    node.become(Kind.PRODUCT, [first, leaf(len(others) + 1, "columns of a grid")])
    return node


def _unify_interleaved(a: Term, b: Term) -> None:
    if a.kind is b.kind and [kid.size for kid in a.kids] == [kid.size for kid in b.kids]:
        for left, right in zip(a.kids, b.kids, strict=True):
            unify(left, right)
        return
    grids = [_even(node) if node.kind is Kind.INTERLEAVE else node for node in (a, b)]
    for grid, node in zip(grids, (a, b), strict=True):
        if grid is not node:
            freeze(grids[0], UNEVEN)
            freeze(grids[1], UNEVEN)
            return
    unify(*grids)


def _grid_of_sum(node: Term, outer: int, inner: int) -> tuple[Term, Term]:
    parts = summands(node)
    if any(part.size % inner for part in parts):
        return _give_up(node, outer, inner)
    pairs = [split_product(part, part.size // inner, inner) for part in parts]
    for _, column in pairs[1:]:
        unify(pairs[0][1], column)
    return concat([row for row, _ in pairs]), pairs[0][1]


def _regroup(node: Term, outer: int, inner: int) -> tuple[Term, Term]:
    kids = factors(node)
    for count, reached in enumerate(accumulate((kid.size for kid in kids), lambda x, y: x * y)):
        if reached == outer:
            return product(kids[: count + 1]), product(kids[count + 1 :])
        if reached > outer:
            before = reached // kids[count].size
            if outer % before or reached % outer:
                return _give_up(node, outer, inner)
            head, tail = split_product(kids[count], outer // before, reached // outer)
            return product([*kids[:count], head]), product([tail, *kids[count + 1 :]])
    raise AssertionError("the sizes of a product do not multiply to its own size")


def _give_up(node: Term, outer: int, inner: int) -> tuple[Term, Term]:
    why = NOT_UNDERSTOOD + "a reshape regroups positions that have no common grid"
    freeze(node, why)
    return leaf(outer, why), leaf(inner, why)


def _unify_sums(a: Term, b: Term) -> None:
    ends = [set(accumulate(part.size for part in summands(node))) for node in (a, b)]
    cuts = [0, *sorted(ends[0] | ends[1])]
    sizes = [end - start for start, end in pairwise(cuts)]
    for left, right in zip(split_sum(a, sizes), split_sum(b, sizes), strict=True):
        unify(left, right)
    a.root().link(b.root())


def _unify_products(a: Term, b: Term) -> None:
    left, right = factors(a)[::-1], factors(b)[::-1]
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size == y.size:
            unify(x, y)
        elif max(x.size, y.size) % min(x.size, y.size) == 0:
            small, big, waiting = (x, y, right) if x.size < y.size else (y, x, left)
            head, tail = split_product(big, small.size, big.size // small.size)
            unify(small, head)
            waiting += factors(tail)[::-1]
        else:
            _freeze_unlike([x], left, [y], right)


def _freeze_unlike(xs: list[Term], left: list[Term], ys: list[Term], right: list[Term]) -> None:
    """Freeze the factors of two grids up to where they have the same size again; those after them still meet."""
    while (one := math.prod(x.size for x in xs)) != (other := math.prod(y.size for y in ys)):
        (xs if one < other else ys).append((left if one < other else right).pop())
    for term in (*xs, *ys):
        freeze(term, NOT_UNDERSTOOD + "two grids of different shape meet on one axis")


def _unify_product_with_sum(grid: Term, total: Term) -> None:
    parts = summands(total)
    for left, right in zip(split_sum(grid, [part.size for part in parts]), parts, strict=True):
        unify(left, right)
