"""The gain matrix of one group: how much the objective gets from putting old unit k where new unit i is.

`Level` computes it from terms of any kind. `FamilyGains` keeps it, and brings it up to date by what has changed.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from onebasin.matching.products import Budget, Product, Roles, Rounding, outermost_first, roundoff
from onebasin.matching.tensors import change_of_sum, new_zeros
from onebasin.matching.terms import Dim, Labelled, Term, new, old
from onebasin.params import compute_dtype
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

# With more than this share of the columns changed, all are taken anew: that gathers one tensor instead of three.
REBUILD = 0.75
# How far a kept matrix may be from a new one, in units of rounding: about what new ones in another order differ by.
DRIFT = 4.0
# An addition rounds an entry by eps / sqrt(12) of it in the mean square, so fewer than this do not wear a matrix: those
# that were made of it have moved it by less than 70 % of `DRIFT`, and what was lost within products is less. That holds
# for a matrix as large as the bound of its products; smaller ones lose less. On the way it was hardly this much larger.
FEW = 6 * DRIFT**2
LARGER = 2.0

# The order of one position.
NO_ORDER = torch.zeros(1, dtype=torch.int64)

# Group -> index rows with named dimensions. A group that is not in it has no order yet.
Rows = Mapping[str, Labelled]


def rows_of(permutation: Permutation) -> dict[str, Labelled]:
    """Name the dimensions of the index rows of every group: its parents and itself, in the new order."""
    parents = permutation.spec.parents
    return {
        name: Labelled(index, tuple(new(group) for group in (*parents.get(name, ()), name)))
        for name, index in permutation.indices.items()
    }


@dataclass(frozen=True)
class Level:
    """Where a gain matrix is asked for: for all pairs of a new and an old unit of the groups in `pairs` at once.

    Args:
        spec: how groups nest.
        pairs: groups that are nested in each other, outermost first; none at the top.
    """

    spec: PermutationSpec
    pairs: tuple[str, ...] = ()

    def parents(self, group: str) -> tuple[str, ...]:
        """Return the groups `group` is nested under."""
        return self.spec.parents.get(group, ())

    def under(self, group: str) -> Level:
        """Return the level of what is nested under `group`."""
        return Level(self.spec, (*self.pairs, group))

    def batch(self, group: str) -> tuple[Dim, ...]:
        """Name the dimensions along which `group` is solved separately: new units of its parents, and the pairs."""
        outside = [new(parent) for parent in self.parents(group) if parent not in self.pairs]
        return (*outside, *(dim for pair in self.pairs for dim in (new(pair), old(pair))))

    def settle(self, term: Term, rows: Rows, keep: Collection[str] = ()) -> Term:
        """Move every group of `term` but the pairs and those to `keep`; one without rows is averaged over.

        Parents go first: the rows of a nested group are told apart by the new units of its parents.
        """
        for group in sorted(term.unmoved, key=lambda name: len(self.parents(name))):
            if group not in self.pairs and group not in keep:
                term = term.moved(group, rows[group]) if group in rows else term.averaged(group)
        return term

    def free(self, terms: Iterable[Term], rows: Rows, group: str, nested: Collection[str] = ()) -> Iterator[Term]:
        """Yield terms in which `group`, and what is `nested` under it, is free and everything else is settled.

        A term that holds the group at two places is quadratic in it. It gives two linear ones, each with the group free
        at one place and settled at the other: together the gradient.
        """
        for term in terms:
            places = term.places(group)
            for place in places:
                alone = term
                if len(places) > 1:
                    alone = term.moved(group, rows[group], place) if group in rows else term.averaged(group, place)
                # The nested groups belong to the plain place; they are free only together with that.
                yield self.settle(alone, rows, {group, *(nested if place == 0 else ())}).freed(group, place)

    def gains(self, terms: Iterable[Term], group: str, *more: Tensor) -> Tensor:
        """Contract free terms to `Float[Tensor, "*batch n n"]` and add `more`: what old unit k is worth as new unit i.

        C[i,k] = sum over the places that carry the group of unfold(F(A))_i . unfold(pi_others(F(B)))_k. The axis that
        is solved for is never permuted.
        """
        dims = (*self.batch(group), new(group), old(group))
        result: Tensor | None = None
        for part in itertools.chain((term.contract(dims) for term in terms), more):
            result = part if result is None else result + part.to(result.device)
        return torch.zeros([self.spec.sizes[dim.group] for dim in dims]) if result is None else result


def order_of(spec: PermutationSpec, dims: Sequence[Dim], rows: Rows) -> Tensor:
    """Return the old position of every new position of a grid of units, both counted row by row."""
    if not dims:
        return NO_ORDER
    if len(dims) == 1 and rows[dims[0].group].values.dim() == 1:
        return rows[dims[0].group].values
    sizes = [spec.sizes[dim.group] for dim in dims]
    olds = tuple(dim._replace(new=False) for dim in dims)
    positions = Labelled(torch.arange(math.prod(sizes)).reshape(sizes), olds)
    grid = Term(positions, Labelled(torch.ones((), dtype=torch.int64), ()))
    return Level(spec).settle(grid, rows).a.aligned(dims).flatten()


class KeptGains:
    """What the positions of a family are worth on some dimensions, all other groups fixed: a matrix kept up to date.

        gains[i, k] = sum over terms of A_i . B_k[source],    source: the order of the columns that other groups give

    Where the order has changed, gains += A[:, changed] (B[:, source] - B[:, source before])^T. What is lost by rounding
    is measured (`is_worn`), and a worn matrix computed anew.

    Args:
        spec: how groups nest.
        dims: the grid of units, in the new order.
        constants: gains on these dimensions that nothing changes.
        products: all other terms.
        budget: of what is held for speed.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        dims: tuple[Dim, ...],
        constants: list[Term],
        products: list[Product],
        budget: Budget,
    ) -> None:
        self.spec, self.dims, self.constants, self.products = spec, dims, constants, products
        self.n = math.prod(spec.sizes[dim.group] for dim in dims)
        self.scale = math.fsum(term.bound for term in (*constants, *(product.term for product in products)))
        values = [*(term.a.values for term in constants), *(product.term.a.values for product in products)]
        self.device, self.dtype = values[0].device, reduce(torch.promote_types, map(compute_dtype, values))
        varies = any(product.roles.moved for product in products)
        self._is_kept = varies and budget.take(self.n**2 * self.dtype.itemsize)
        self.matrix: Tensor | None = None
        self.seen: list[Tensor] = []
        self.roundings, self.sums, self.added = [0] * len(products), 0, 0

    def update(self, rows: Rows) -> Tensor:
        """Return the matrix at `rows`: by the columns that changed if they are not too many, else anew."""
        orders = [order_of(self.spec, product.roles.moved, rows).to(self.device) for product in self.products]
        if self.matrix is not None:
            changed = [_changed(now, before) for now, before in zip(orders, self.seen, strict=True)]
            depths = (len(where) * product.width for where, product in zip(changed, self.products, strict=True))
            if sum(depths) <= REBUILD * sum(product.depth for product in self.products):
                return self._updated(orders, changed)
        return self._computed(orders)

    def _updated(self, orders: list[Tensor], changed: list[Tensor]) -> Tensor:
        assert self.matrix is not None
        for number, (product, where) in enumerate(zip(self.products, changed, strict=True)):
            if len(where):
                self._note(number, product.add_change_to(self.matrix, where, orders[number], self.seen[number]))
        self.seen = orders
        return self.matrix

    def _computed(self, orders: list[Tensor]) -> Tensor:
        matrix = new_zeros(self.n, self.dtype, self.device)
        dims = (*self.dims, *_olds(self.dims))
        for term in self.constants:
            matrix += term.contract(dims).reshape(self.n, self.n).to(matrix)
        self.roundings, self.sums = [0] * len(self.products), len(self.constants)
        for number, product in enumerate(self.products):
            self._note(number, product.add_to(matrix, orders[number]))
        self.matrix, self.seen, self.added = matrix, orders, 0
        return matrix

    def _note(self, number: int, rounding: Rounding) -> None:
        self.roundings[number] += rounding.products
        self.sums, self.added = self.sums + rounding.sums, self.added + rounding.sums

    def release(self) -> None:
        """Let the matrix go, if there is no room to keep it, or nothing changes it."""
        if not self._is_kept:
            self.matrix = None

    def term(self) -> Term:
        """Return the matrix as a term."""
        assert self.matrix is not None
        sizes = [self.spec.sizes[dim.group] for dim in self.dims]
        one = Labelled(self.matrix.new_ones(()), ())
        return Term(Labelled(self.matrix.view(*sizes, *sizes), (*self.dims, *_olds(self.dims))), one)

    def change(self, before: Rows, after: Rows) -> tuple[float, Iterator[float]]:
        """Return what `after` gains over `before` by the matrix, and bounds of what rounding may have made of that.

        Each bound is closer than the one before, and dearer.
        """
        assert self.matrix is not None
        was, now = self._orders(before, after)
        gained, entries = change_of_sum(self.matrix, was, now)
        return gained, self._bounds(was, now, entries)

    def _bounds(self, was: Tensor, now: Tensor, entries: float) -> Iterator[float]:
        yield self._rounding([2 * product.term.bound for product in self.products], entries)
        moved = _moved(was, now)
        yield self._rounding([product.size(*moved) for product in self.products], entries)

    def _rounding(self, sizes: list[float], entries: float) -> float:
        """Bound what rounding has done to a sum of entries that are now as large as `entries`, by sizes of products."""
        largest = sum(sizes)
        if self.constants:  # on the way, an entry was at most as large as it is now and all products together
            largest = 2 * largest + entries
        return roundoff(self.dtype) * ((self.sums + 1) * largest + sum(map(operator.mul, self.roundings, sizes)))

    def exact_change(self, before: Rows, after: Rows) -> float:
        """Return what `after` gains over `before`, from the tensors themselves and in float64."""
        units, was, now = _moved(*self._orders(before, after))
        pairs = zip(self.products, self.seen, strict=True)
        products = math.fsum(product.change(units, now, was, order) for product, order in pairs)
        return products + total(self.spec, self.constants, after) - total(self.spec, self.constants, before)

    def _orders(self, *orders: Rows) -> list[Tensor]:
        return [order_of(self.spec, self.dims, rows).to(self.device) for rows in orders]

    def may_be_worn(self) -> bool:
        """Return whether so much was added to the matrix since it was computed that rounding may have worn it."""
        if self.matrix is None or self.added <= FEW:
            return False
        size = min(LARGER * torch.linalg.vector_norm(self.matrix).item(), self.scale)
        return self.added * size**2 > FEW * self.scale**2

    def is_worn(self) -> bool:
        """Return whether updates have moved the matrix further from what it should be than rounding moves a new one.

        Seen on a vector x of random signs: |E x|^2 is |E|^2 (Frobenius) in the mean, and costs no matrix product. One
        is enough, as rounding errs in every row anew, and five times as fast as four.
        """
        if self.matrix is None or not self.added:
            return False
        signs = torch.randint(2, (self.n,), generator=torch.Generator().manual_seed(0)) * 2 - 1
        signs = signs.to(self.matrix)
        error = self.matrix @ signs
        for term in self.constants:
            error -= term.contract((*self.dims, *_olds(self.dims))).reshape(self.n, self.n).to(signs) @ signs
        for product, order in zip(self.products, self.seen, strict=True):
            error -= product.times(signs, order)
        return torch.linalg.vector_norm(error).item() > DRIFT * self.scale * torch.finfo(self.dtype).eps


class FamilyGains:
    """What a group and all that is nested under it are worth, all other groups fixed, kept up to date.

    Terms that hold the family as one chain, each group on one axis, go into matrices; the rest (a recurrent weight on
    two axes) is left as it is.
    """

    def __init__(self, spec: PermutationSpec, group: str, terms: Iterable[Term], budget: Budget) -> None:
        self.spec, self.group = spec, group
        family = {group, *(name for name in spec.sizes if group in spec.parents.get(name, ()))}
        constants: dict[tuple[Dim, ...], list[Term]] = {}
        products: dict[tuple[Dim, ...], list[Product]] = {}
        self.rest: list[Term] = []
        for term in terms:
            roles = Roles.of(term, spec, family)
            if roles is not None:
                products.setdefault(roles.units, []).append(Product(term, roles, budget))
            elif not term.b.dims and term.unmoved.keys() <= family:
                units = outermost_first(spec, (dim for dim in term.a.dims if dim.new))
                constants.setdefault(units, []).append(term)
            else:
                self.rest.append(term)
        grids = dict.fromkeys([*products, *constants])
        self.kept = [KeptGains(spec, dims, constants.get(dims, []), products.get(dims, []), budget) for dims in grids]

    def update(self, rows: Rows) -> Tensor | None:
        """Bring the matrices up to date; return the matrix of the group if that is all there is to be solved."""
        matrices = [kept.update(rows) for kept in self.kept]
        return matrices[0] if not self.rest and [kept.dims for kept in self.kept] == [(new(self.group),)] else None

    def terms(self) -> list[Term]:
        """Return everything as terms, for a `JointStep`."""
        return [*(kept.term() for kept in self.kept), *(term.widened() for term in self.rest)]

    def change(self, before: Rows, after: Rows, least: float) -> float:
        """Return what `after` gains over `before`; exact, unless certainly more, or certainly less, than `least`."""
        rest = total(self.spec, self.rest, after) - total(self.spec, self.rest, before)
        parts = [kept.change(before, after) for kept in self.kept]
        gained = rest + math.fsum(part for part, _ in parts)
        for bounds in zip(*(bounds for _, bounds in parts), strict=True):
            if abs(gained - least) > math.fsum(bounds):
                return gained
        return rest + math.fsum(kept.exact_change(before, after) for kept in self.kept)

    def release(self) -> None:
        """Let go what is not kept."""
        for kept in self.kept:
            kept.release()

    def renew(self) -> bool:
        """Let go of what has been worn by many updates; return whether there was any."""
        worn = [kept for kept in self.kept if kept.may_be_worn() and kept.is_worn()]
        for kept in worn:
            kept.matrix = None
        return bool(worn)


def _changed(now: Tensor, before: Tensor) -> Tensor:
    """Return the positions at which two orders differ."""
    return now[:0] if now is before else (now != before).nonzero().flatten()


def _moved(was: Tensor, now: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the new units that are given other old ones, the old units before, and those after."""
    units = _changed(now, was)
    return units, was.index_select(0, units), now.index_select(0, units)


def _olds(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(dim._replace(new=False) for dim in dims)


def total(spec: PermutationSpec, terms: Iterable[Term], rows: Rows) -> float:
    """Return what terms are worth with every group in the order that `rows` give, summed in float64."""
    level = Level(spec)
    return math.fsum(_total(level, term, rows) for term in terms)


def _total(level: Level, term: Term, rows: Rows) -> float:
    found = term.total_in(rows)
    return level.settle(term, rows).total() if found is None else found
