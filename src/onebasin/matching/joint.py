"""A group and all that is nested under it, solved together."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onebasin.matching.assignment import Assignment
from onebasin.matching.core import to_host
from onebasin.matching.faq import faq
from onebasin.matching.gains import Level, Rows
from onebasin.matching.pairs import solve_pairs
from onebasin.matching.terms import Dim, Labelled, Term, new, old
from onebasin.spec import PermutationSpec

# Gains of so many elements are held at once (256 MB in float32); beyond that, pairs of units are taken in pieces.
PIECE = 1 << 26
# Groups that share a block are solved in turn at most so often; most end after two to four rounds by themselves.
ROUNDS = 20

# What rows are worth along some dimensions, and the rows of the groups that were solved.
Found = tuple[Labelled, Rows]


@dataclass(frozen=True)
class JointStep:
    """The best rows of one group and of all that is nested under it, everything else fixed.

    For each pair of units of the group (i new, k old) the best nested rows are found, then the best assignment on what
    the pairs are worth: max over sigma of the sum over i of C[i, sigma(i)] + V[i, sigma(i)], where C is the gain matrix
    of the group alone and V[i,k] the maximum over the nested rows. All pairs are one batch; the depth is arbitrary.

    This is exact if every block holds the groups of the family as one chain (heads, their units), each on one axis.
    Otherwise the step is quadratic, and the caller must check that the objective truly rises:

    - Units before and after a grouped convolution stand in one block. Nested groups that share a block are solved in
      turn for every pair, in both orders, the first while the others are averaged over all their orders; for the
      present pairs also from the present rows.
    - A recurrent weight holds its units on two axes. The step is linearised at the present order, and also tried by
      `faq`; the better of the two is taken.

    Args:
        level: the pairs of units above, for all of which this is asked.
        solve: assigns a batch of gain matrices.
        faq_steps: at most so many steps of `faq` for a group on two axes; 0 for none.
        last: nested group -> what was found for all pairs in the last step; given, `solve` takes it as a start.

    Differs: ainsworth2023's code assumes that no tensor carries a permutation twice, and has no nested ones.
    """

    level: Level
    solve: Callable[..., Assignment]
    faq_steps: int = 30
    last: MutableMapping[str, Assignment] | None = None

    def __call__(self, terms: Sequence[Term], rows: Rows, group: str) -> Found:
        """Solve `group` and what is under it.

        Args:
            terms: all terms that hold the group.
            rows: the present rows of all groups; the group and those under it may have none.
            group: which group.

        Returns:
            What the best is worth, and the rows of the group and all under it, along the batch dimensions of the level.
        """
        nested = {name for name in self.level.spec.sizes if group in self.level.parents(name)}
        ready = list(self.level.free(terms, rows, group, nested))
        own = [term for term in ready if not nested & term.unmoved.keys()]
        inner = [term for term in ready if nested & term.unmoved.keys()]
        if not inner:
            return self._alone(terms, ready, rows, group)
        batch = self.level.batch(group)
        if self._are_alone(inner, nested, group):
            return self._by_bounds(own, inner, nested, group)
        value, under = self._all_pairs(inner, nested, group)
        if group in rows and not _are_chains(self.level.spec, inner, nested):
            present = [term.moved(group, rows[group]) for term in inner]
            kept = self._descend(present, nested, (*batch, new(group)), rows)
            value, under = _with_present(value, under, kept, rows[group], old(group))
        gains = self.level.gains(own, group, value.aligned((*batch, new(group), old(group))))
        best, chosen = self._assigned(gains, group)
        return best, {**chosen, **{k: row.take(old(group), chosen[group], new(group)) for k, row in under.items()}}

    def _assigned(self, gains: Tensor, group: str) -> Found:
        found, batch = self.solve(gains), self.level.batch(group)
        return Labelled(found.value, batch), {group: Labelled(found.index, (*batch, new(group)))}

    def _alone(self, terms: Sequence[Term], free: Sequence[Term], rows: Rows, group: str) -> Found:
        """Solve a group under which nothing is nested here."""
        found = self._assigned(self.level.gains(free, group), group)
        if self.faq_steps and len(free) > len(terms):
            row = faq(self.level, terms, rows, group, self.solve, self.faq_steps)
            batch = self.level.batch(group)
            tried = [self._valued(terms, {**rows, **one}, batch, [group]) for one in (found[1], {group: row})]
            return _best_of(*tried)
        return found

    def _are_alone(self, terms: Sequence[Term], nested: Collection[str], group: str) -> bool:
        """Return whether the pairs of units of `group` hold plain assignments that fit in memory all together."""
        below, pairs = self.level.under(group), (*self.level.batch(group), new(group), old(group))
        elements = {}
        for term in terms:
            ((name, places), *more) = Counter({one: term.unmoved[one] for one in nested & term.unmoved.keys()}).items()
            if more or places > 1 or set(below.batch(name)) != set(pairs):
                return False
            sizes = dict(zip(term.a.dims + term.b.dims, (*term.a.values.shape, *term.b.values.shape), strict=True))
            elements[name] = math.prod(sizes.get(dim, 1) for dim in (*pairs, new(name), old(name)))
        return sum(elements.values()) <= PIECE

    def _by_bounds(self, own: Sequence[Term], inner: Sequence[Term], nested: Collection[str], group: str) -> Found:
        """Solve `group` and what is nested under it, but no pair of units that bounds rule out (`solve_pairs`)."""
        below, batch = self.level.under(group), self.level.batch(group)
        names = [name for name in nested if any(name in term.unmoved for term in inner)]
        pairs = (*batch, new(group), old(group))
        gains = {}
        for name in names:
            found = below.gains(below.free(_holding(inner, name), {}, name), name)
            dims = (*below.batch(name), new(name), old(name))
            gains[name] = Labelled(found, dims).aligned((*pairs, new(name), old(name)))
        # Pairs further out are others in every call: what was found is of use only where there are none.
        last = None if self.level.pairs else self.last
        best, rows = solve_pairs(self.level.gains(own, group), gains, self.solve, last)
        chosen = {name: Labelled(row, (*batch, new(group), new(name))) for name, row in rows.items()}
        return Labelled(best.value, batch), {group: Labelled(best.index, (*batch, new(group))), **chosen}

    def _all_pairs(self, terms: Sequence[Term], nested: Collection[str], group: str) -> Found:
        """Solve what is nested under `group` for all pairs of its units, in pieces that fit in memory."""
        n = self.level.spec.sizes[group]
        below = replace(self, level=self.level.under(group))
        wanted = (*self.level.batch(group), new(group), old(group))
        elements = max(below._gain_elements(term, nested) for term in terms)
        step_new = max(1, min(n, n * PIECE // elements))
        step_old = max(1, min(n, step_new * n * PIECE // elements))
        strips = []
        for first in range(0, n, step_new):
            strip = [term.narrowed(new(group), first, step_new) for term in terms]
            pieces = [[term.narrowed(old(group), start, step_old) for term in strip] for start in range(0, n, step_old)]
            strips.append(_joined([below._descend(piece, nested, wanted, {}) for piece in pieces], old(group)))
        return _joined(strips, new(group))

    def _gain_elements(self, term: Term, nested: Collection[str]) -> int:
        """Count the gains of all pairs of units that `term` gives."""
        free = [*self.level.pairs, *(name for name in term.unmoved if name in nested)]
        return max(1, math.prod(self.level.spec.sizes[name] ** 2 for name in free))

    def _descend(self, terms: Sequence[Term], groups: Collection[str], wanted: tuple[Dim, ...], rows: Rows) -> Found:
        """Find the best rows of `groups` in every problem along `wanted`, starting from `rows` if they have any."""
        held = {name for term in terms for name in term.unmoved if name in groups}
        tops = [name for name in self.level.spec.sizes if name in held and not held & set(self.level.parents(name))]
        if _are_chains(self.level.spec, terms, groups):
            parts = [self(_holding(terms, top), rows, top) for top in tops]
            value = sum((part.summed(wanted) for part, _ in parts), torch.zeros(()))
            return Labelled(value, wanted), {name: row for _, found in parts for name, row in found.items()}
        terms = [self._compact(term, groups) for term in terms]
        if held <= rows.keys():
            return self._in_turn(terms, tops, self._valued(terms, rows, wanted, held))
        orders = dict.fromkeys([tuple(tops), tuple(reversed(tops))])
        firsts = [self._valued(terms, self._turn(terms, order, {}), wanted, held) for order in orders]
        return _best_of(*(self._in_turn(terms, tops, first) for first in firsts))

    def _in_turn(self, terms: Sequence[Term], tops: Sequence[str], best: Found) -> Found:
        """Solve `tops` in turn, from the rows of `best` on, until nothing improves in any of the problems."""
        for _ in range(ROUNDS):
            found = self._valued(terms, self._turn(terms, tops, best[1]), best[0].dims, best[1])
            if not (found[0].values > best[0].values).any():
                break
            best = _best_of(best, found)
        return best

    def _turn(self, terms: Sequence[Term], tops: Sequence[str], rows: Rows) -> Rows:
        for top in tops:
            rows = {**rows, **self(_holding(terms, top), rows, top)[1]}
        return rows

    def _valued(self, terms: Sequence[Term], rows: Rows, wanted: tuple[Dim, ...], groups: Collection[str]) -> Found:
        """Return what `terms` are worth at `rows`, along `wanted`, and the rows of `groups`."""
        # One number of each problem: what the problems are about is contracted on its device.
        values = (to_host(self.level.settle(term, rows).contract(wanted)) for term in terms)
        return Labelled(sum(values, torch.zeros(())), wanted), {name: rows[name] for name in groups}

    def _compact(self, term: Term, groups: Collection[str]) -> Term:
        """Contract what no step needs, if the gains of all pairs are smaller than the tensor moved for all pairs."""
        level = self.level
        free = {name for name in term.unmoved if name in groups}
        needed = free | set(level.pairs) | {parent for name in free for parent in level.parents(name)}
        dims = tuple(dim for dim in dict.fromkeys(term.a.dims + term.b.dims) if dim.group in needed)
        pairs = math.prod(level.spec.sizes[name] for name in level.pairs)
        if math.prod(level.spec.sizes[dim.group] for dim in dims) > pairs * term.b.values.numel():
            return term
        values = term.contract(dims)
        return Term(Labelled(values, dims), Labelled(values.new_ones(()), ()))


def is_chain(spec: PermutationSpec, places: Counter[str], groups: Collection[str]) -> bool:
    """Return whether those of `groups` that stand in one block are nested in each other and stand there once."""
    names = sorted((name for name in places if name in groups), key=lambda name: len(spec.parents.get(name, ())))
    nested = all(outer in spec.parents.get(inner, ()) for outer, inner in itertools.pairwise(names))
    return nested and all(places[name] == 1 for name in names)


def _are_chains(spec: PermutationSpec, terms: Sequence[Term], groups: Collection[str]) -> bool:
    return all(is_chain(spec, term.unmoved, groups) for term in terms)


def _holding(terms: Sequence[Term], group: str) -> list[Term]:
    return [term for term in terms if group in term.unmoved]


def _joined(parts: list[Found], dim: Dim) -> Found:
    """Put pieces together along `dim`."""
    rows = {name: _cat([found[name] for _, found in parts], dim) for name in parts[0][1]}
    return _cat([value for value, _ in parts], dim), rows


def _cat(parts: list[Labelled], dim: Dim) -> Labelled:
    dims = parts[0].dims
    return Labelled(torch.cat([part.aligned(dims) for part in parts], dims.index(dim)), dims)


def _with_present(value: Labelled, rows: Rows, kept: Found, present: Labelled, source: Dim) -> Found:
    """Take `kept`, found for the `present` pairs alone, where it is worth more than what was found for all pairs."""
    units = torch.arange(value.values.shape[value.dims.index(source)])
    is_present = Labelled(present.values[..., None] == units, (*present.dims, source))
    more = is_present.aligned(value.dims) & (kept[0].aligned(value.dims) > value.values)
    return _merged(Labelled(more, value.dims), kept, (value, rows))


def _best_of(first: Found, *others: Found) -> Found:
    """Take of every problem what is worth most."""
    for other in others:
        first = _merged(Labelled(other[0].values > first[0].values, first[0].dims), other, first)
    return first


def _merged(where: Labelled, first: Found, second: Found) -> Found:
    """Take `first` where it says so, else `second`."""
    rows = {name: _where(where, first[1][name], row) for name, row in second[1].items()}
    return _where(where, first[0], second[0]), rows


def _where(condition: Labelled, first: Labelled, second: Labelled) -> Labelled:
    dims = tuple(dict.fromkeys(second.dims + condition.dims))
    return Labelled(torch.where(condition.aligned(dims), first.aligned(dims), second.aligned(dims)), dims)
