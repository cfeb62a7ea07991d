"""Writes terms as layouts: names the groups, and writes a group under a frozen axis out as one group per position.

Where heads cannot move (ALiBi gives each a slope of its own) the units of each head still can, each head for itself:
the grid of 4 fixed heads x 8 units becomes the sum of 4 groups of 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from onebasin.layout import Axes, Axis, Interleave, Leaf, Product, Sum, joined
from onebasin.symmetry.axes import Kind, Term, factors, leaves, summands
from onebasin.symmetry.nesting import Parents

Rows = tuple[int, ...]  # one position for each frozen parent of a leaf


class Layouts:
    """The groups of a set of tensors, and the layouts of terms in them.

    Args:
        terms: tensor name -> axes, of the whole state dict.
        trained: names of the tensors that make a group worth having.
        parents: what is nested under what.
    """

    def __init__(self, terms: Mapping[str, tuple[Term, ...]], trained: set[str], parents: Parents) -> None:
        self.leaves = {id(leaf): leaf for row in terms.values() for term in row for leaf in leaves(term)}
        base = _base_names(terms, trained)
        everywhere = [term for row in terms.values() for term in row]
        self.fixed = _written_out(self.leaves, {child: parents.get(child, ()) for child in base}, everywhere)
        self.parents = parents
        self.names = dict(_numbered(base, {key: self._grid(key) for key in base}))

    def _grid(self, key: int) -> Iterator[Rows]:
        return product(*(range(self.leaves[parent].size) for parent in self.fixed[key]))

    def sizes(self) -> dict[str, int]:
        """Return group name -> number of units."""
        return {name: self.leaves[key].size for (key, _), name in self.names.items()}

    def nesting(self) -> dict[str, tuple[str, ...]]:
        """Return group name -> names of its parents, outermost first."""
        found = {}
        for (key, rows), name in self.names.items():
            at = dict(zip(self.fixed[key], rows, strict=True))
            free = [parent for parent in self.parents.get(key, ()) if parent in self.fixed]
            found[name] = tuple(self.names[p, tuple(at[f] for f in self.fixed[p])] for p in free)
        return {name: row for name, row in found.items() if row}

    def row(self, terms: Sequence[Term]) -> Axes:
        """Write the axes of one tensor."""
        return tuple(self._axis(term, {}) for term in terms)

    def _axis(self, term: Term, at: Mapping[int, int]) -> Axis:
        node = term.root()
        if node.kind is Kind.LEAF or node.size <= 1:
            name = self._name(id(node), at)
            return Leaf(node.size, name, "" if name else node.why or "belongs to no trained tensor")
        if node.kind is Kind.SUM:
            return joined(Sum, [self._axis(kid, at) for kid in summands(node)])
        if node.kind is Kind.INTERLEAVE:
            return joined(Interleave, [self._axis(kid, at) for kid in node.kids])
        return self._grid_axis(factors(node), at)

    def _name(self, key: int, at: Mapping[int, int]) -> str | None:
        if key not in self.fixed or not all(parent in at for parent in self.fixed[key]):
            return None
        return self.names[key, tuple(at[parent] for parent in self.fixed[key])]

    def _grid_axis(self, kids: Sequence[Term], at: Mapping[int, int]) -> Axis:
        wanted = {parent for kid in kids for leaf in leaves(kid) for parent in self.fixed.get(id(leaf), ())} - at.keys()
        for number, kid in enumerate(kids):
            if id(kid) in wanted:
                rows = [self._grid_axis(kids[number + 1 :], {**at, id(kid): k}) for k in range(kid.size)]
                return joined(Product, [*(self._axis(before, at) for before in kids[:number]), joined(Sum, rows)])
        return joined(Product, [self._axis(kid, at) for kid in kids])


def _base_names(terms: Mapping[str, tuple[Term, ...]], trained: set[str]) -> dict[int, str]:
    """Name each free leaf after the first layer that holds it: as a rule the one that puts it out."""
    first: dict[int, str] = {}
    for name in (name for name in terms if name in trained):
        for leaf in (leaf for axis in terms[name] for leaf in leaves(axis) if not leaf.why):
            first.setdefault(id(leaf), name.rpartition(".")[0] or name)
    return first


def _numbered(base: Mapping[int, str], rows: Mapping[int, Iterator[Rows]]) -> Iterator[tuple[tuple[int, Rows], str]]:
    taken: dict[str, int] = {}
    for key, name in base.items():
        taken[name] = taken.get(name, 0) + 1
        unique = name if taken[name] == 1 else f"{name}#{taken[name]}"
        for row in rows[key]:
            yield (key, row), unique + "".join(f"[{number}]" for number in row)


def _written_out(known: Mapping[int, Term], parents: Parents, axes: Iterable[Term]) -> dict[int, tuple[int, ...]]:
    """Return for every group its frozen parents that can be written out: in every tensor they stand left of it."""
    rows = list(axes)
    fixed = {
        child: {p for p in row if p in known and known[p].why and all(_left_of(term, p, child) for term in rows)}
        for child, row in parents.items()
    }
    for child, row in parents.items():  # what a group is written out by, all that is nested under it must be too
        for parent in (p for p in row if p in fixed):
            fixed[parent] &= fixed[child]
    return {child: tuple(p for p in parents[child] if p in chosen) for child, chosen in fixed.items()}


def _left_of(term: Term, parent: int, child: int, seen: bool = False) -> bool:
    """Return whether every occurrence of `child` in `term` has `parent` as a factor to its left."""
    node = term.root()
    if node.kind is Kind.LEAF:
        return seen or id(node) != child
    for kid in node.kids:
        if not _left_of(kid, parent, child, seen):
            return False
        seen = seen or (node.kind is Kind.PRODUCT and id(kid.root()) == parent)
    return True
