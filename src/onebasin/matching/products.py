"""Products: a term as a product of two matrices, the columns of one in an order that other groups decide."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from onebasin.matching.tensors import (
    change_of_columns,
    change_of_rows,
    difference_of_columns,
    difference_of_rows,
    squares,
    transposed,
)
from onebasin.matching.terms import Dim, Labelled, Term
from onebasin.params import compute_dtype
from onebasin.spec import PermutationSpec

# Elements of one matrix that are gathered and widened at a time (16 MB in float32): no copy of a large one is made.
PIECE = 1 << 22
# Columns that are multiplied at a time: what rounding may do to a sum of products is bounded by their number. Gains of
# up to so many elements stay in the cache between blocks; larger ones are read anew for each, which longer ones repay.
BLOCK, LONG_BLOCK, CACHED = 256, 1024, 1 << 19
# Columns of so few elements are copied into rows before they are taken often; from longer ones that gains nothing.
NARROW = 4


def roundoff(dtype: torch.dtype) -> float:
    """Return the largest relative error of one operation in a matrix product; more if torch may take short cuts."""
    is_short = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return torch.finfo(torch.bfloat16).eps if is_short else torch.finfo(dtype).eps / 2


class Budget:
    """How much memory may be held for speed: `take` says whether there is room, and takes it."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        """Take `size` bytes, if there are so many left."""
        enough = size <= self.left
        self.left -= size if enough else 0
        return enough


class Rounding(NamedTuple):
    """How far an entry (i, k) of gains may be off for having had a product added: so many times `roundoff`.

    Args:
        products: times |A_i| |B_k| of the product: as many as are summed in a block.
        sums: times the largest that the entry was on the way: blocks that were added to it.
    """

    products: int
    sums: int


def outermost_first(spec: PermutationSpec, dims: Iterable[Dim]) -> tuple[Dim, ...]:
    """Sort dimensions so that parents precede what is nested under them."""
    return tuple(sorted(dims, key=lambda dim: len(spec.parents.get(dim.group, ()))))


@dataclass(frozen=True)
class Roles:
    """What the dimensions of a term are to one group and all that is nested under it, in the new order.

    Args:
        units: the group and what is nested under it, a grid of n positions.
        moved: what other groups put in order, a grid of m positions.
        fixed: what nothing moves.
    """

    units: tuple[Dim, ...]
    moved: tuple[Dim, ...]
    fixed: tuple[Dim, ...]

    @classmethod
    def of(cls, term: Term, spec: PermutationSpec, family: Collection[str]) -> Roles | None:
        """Return the roles in `term`, or None if it is no product: not bilinear, or the family takes part in the order.

        The others must not depend on the family (as parents, they would make several problems of one), and a nested
        group must stand beside its parents.
        """
        news = {dim._replace(new=True) for dim in term.b.dims}
        if news != set(term.a.dims) or len(term.a.dims) != len(term.b.dims):
            return None
        groups = [dim for dim in term.a.dims if dim.group]
        units = outermost_first(spec, (dim for dim in groups if dim.group in family))
        moved = tuple(dim for dim in groups if dim.group not in family)
        plain = {dim.group for dim in groups if dim.place == 0}
        beside = all(set(spec.parents.get(dim.group, ())) <= plain for dim in groups)
        parents = {parent for dim in units for parent in spec.parents.get(dim.group, ())}
        if not beside or parents & {dim.group for dim in moved} or len({dim.group for dim in units}) < len(units):
            return None
        return cls(units, moved, tuple(dim for dim in term.a.dims if not dim.group))


@dataclass(frozen=True, eq=False)
class Side:
    """One tensor of a product as a matrix, laid out so that its columns can be taken fast.

    Args:
        values: `Float[Tensor, "n m fixed"]`, the last two one run in memory, or `Float[Tensor, "m fixed n"]`.
        units_first: which of the two.
        origin: what `values` are a copy of, if that has the units first.
    """

    values: Tensor
    units_first: bool
    origin: Tensor | None = None

    @classmethod
    def of(cls, x: Labelled, roles: Roles) -> Side:
        """Lay out `x` with the units first, or last; as a view if it can be."""
        n, m, fixed = (math.prod(x.sizes(dims)) for dims in (roles.units, roles.moved, roles.fixed))
        for units_first in (True, False):
            rest = (*roles.moved, *roles.fixed)
            values = x.aligned((*roles.units, *rest) if units_first else (*rest, *roles.units))
            if _is_matrix(values, len(roles.units if units_first else rest)):
                return cls(values.view((n, m, fixed) if units_first else (m, fixed, n)), units_first)
        return cls(values.reshape(m, fixed, n), False)

    @property
    def is_scattered(self) -> bool:
        """Return whether neither the values of a column nor those of a unit are one run in memory."""
        return not self.units_first and self.values.stride(2) != 1

    def units_last(self) -> Side:
        """Return a copy of which columns are taken row by row: three to six times faster."""
        if self.units_first:
            copy = transposed(self.values.flatten(1)[None])[0].unflatten(0, self.values.shape[1:])
            return Side(copy, False, self.values)
        return Side(transposed(self.values.transpose(1, 2)), False)

    def columns(self, where: Tensor | slice) -> Tensor:
        """Return `Float[Tensor, "n columns"]` of the positions `where` of m."""
        axis = 1 if self.units_first else 0
        if isinstance(where, slice):
            part = self.values[:, where] if self.units_first else self.values[where]
        else:
            part = self.values.index_select(axis, where)
        return part.flatten(1) if self.units_first else part.flatten(0, 1).T

    def differences(self, now: Tensor, before: Tensor) -> Tensor:
        """Return `columns(now) - columns(before)` in the dtype of products."""
        if self.units_first:
            return difference_of_columns(self.values, now, before).flatten(1)
        difference = difference_of_rows(self.values.flatten(1), now, before)
        return difference.view(-1, self.values.shape[2]).T

    def norms(self) -> Tensor:
        """Return `Float[Tensor, "n"]`, the Euclidean norm of each unit."""
        if self.units_first:
            return torch.linalg.vector_norm(self.values.flatten(1), dim=1, dtype=compute_dtype(self.values))
        return squares(self.values.flatten(0, 1)).sqrt()

    @property
    def by_units(self) -> Tensor | None:
        """The values with the units first, if they lie like that anywhere."""
        return self.values if self.units_first else self.origin

    @property
    def by_columns(self) -> Tensor:
        """The values with the units last, as a view."""
        return self.values.movedim(0, 2) if self.units_first else self.values


def _add_blocks(gains: Tensor, pieces: Iterable[tuple[Tensor, Tensor]]) -> Rounding:
    """Add the product of each pair of matrices, given by columns, to `gains`."""
    block = BLOCK if gains.numel() <= CACHED else LONG_BLOCK
    longest, count = 0, 0
    for left, right in pieces:
        columns, rows = left.to(gains.dtype), right.to(gains.dtype).T
        for x, y in zip(_split(columns, block, 1), _split(rows, block), strict=True):
            gains.addmm_(x, y)
            longest, count = max(longest, x.shape[1]), count + 1
    return Rounding(longest, count)


def _split(x: Tensor, size: int, axis: int = 0) -> Sequence[Tensor]:
    """Do what torch's split does, at once if there is nothing to be split: calls count at some hundred units."""
    return x.split(size, axis) if x.shape[axis] > size else (x,)


def _run(where: Tensor) -> Tensor | slice:
    """Return positions that follow each other as a slice, which is a view."""
    first = int(where[0])
    is_run = len(where) == 1 or torch.equal(where, torch.arange(first, first + len(where), device=where.device))
    return slice(first, first + len(where)) if is_run else where


def _is_matrix(values: Tensor, axes: int) -> bool:
    """Return whether the first `axes` axes are evenly spaced in memory, and all others are one run."""
    if values.is_contiguous():
        return True
    rows, columns = (
        [(size, step) for size, step in zip(values.shape[part], values.stride()[part], strict=True) if size > 1]
        for part in (slice(axes), slice(axes, None))
    )
    are_even = all(step == size * below for part in (rows, columns) for (_, step), (size, below) in pairwise(part))
    return are_even and (not columns or columns[-1][1] == 1)


class Product:
    """A term in which a family of groups stands once: the matrix A B[source]^T, where `source` is up to other groups.

    Args:
        term: the term.
        roles: what its dimensions are.
        budget: of copies; without, a tensor that is not laid out as a matrix is copied anew every time.
    """

    def __init__(self, term: Term, roles: Roles, budget: Budget) -> None:
        self.term, self.roles, self._budget = term, roles, budget
        self.positions = math.prod(term.a.sizes(roles.moved))
        self.width = math.prod(term.a.sizes(roles.fixed))
        self.depth = self.positions * self.width
        self._sides: dict[bool, Side] = {}
        self._settled: set[bool] = set()
        self._norms: tuple[Tensor, ...] = ()

    def sides(self, often: bool = False) -> tuple[Side, Side]:
        """Return A and B, laid out for columns to be taken `often` if there is room."""
        return self._side(True, often), self._side(False, often)

    def _side(self, is_a: bool, often: bool) -> Side:
        if is_a in self._settled or (is_a in self._sides and not often):
            return self._sides[is_a]
        olds = {dim._replace(new=False): dim for dim in (*self.roles.units, *self.roles.moved)}
        x = self.term.a if is_a else self.term.b.renamed(olds)
        side = self._sides.get(is_a) or Side.of(x, self.roles)
        is_copy = side.values.untyped_storage().data_ptr() != x.values.untyped_storage().data_ptr()
        is_slow = side.is_scattered or (often and side.units_first and self.width <= NARROW)
        is_kept = bool(self.roles.moved) and (is_copy or is_slow) and self._budget.take(side.values.nbytes)
        side = side.units_last() if is_kept and is_slow else side
        if is_kept or not is_copy:
            self._sides[is_a] = side
            self._settled |= {is_a} if is_kept or often else set()
        return side

    @property
    def _step(self) -> int:
        return max(1, PIECE * self.positions // self.term.a.values.numel())

    def add_to(self, gains: Tensor, source: Tensor) -> Rounding:
        """Add the product at `source` to `gains`."""
        a, b = self.sides()
        pieces = (slice(start, start + self._step) for start in range(0, self.positions, self._step))
        return _add_blocks(gains, ((a.columns(where), b.columns(_run(source[where]))) for where in pieces))

    def add_change_to(self, gains: Tensor, where: Tensor, now: Tensor, before: Tensor) -> Rounding:
        """Add what the product at `now` is more than at `before`, which differ at the positions `where`."""
        (a, b), parts = self.sides(often=True), _split(where, self._step)
        orders = ((some, now.index_select(0, some), before.index_select(0, some)) for some in parts)
        rounding = _add_blocks(gains, ((a.columns(some), b.differences(new, old)) for some, new, old in orders))
        # Differences are rounded themselves, and up to twice as large as what they are of.
        return Rounding(2 * (rounding.products + 1), rounding.sums)

    def size(self, units: Tensor, olds: Tensor, others: Tensor) -> float:
        """Return the sum over `units` i, with old units k and l beside them, of |A_i| (|B_k| + |B_l|).

        By Cauchy and Schwarz it is no more than twice `term.bound`.
        """
        if not len(units):
            return 0.0
        self._norms = self._norms or tuple(side.norms() for side in self.sides())
        a, b = self._norms
        both = b.index_select(0, olds) + b.index_select(0, others)
        return torch.dot(a.index_select(0, units), both).item()

    def times(self, vector: Tensor, source: Tensor) -> Tensor:
        """Return the product at `source` times `Float[Tensor, "n"]`, without the product."""
        total = torch.zeros_like(vector)
        a, b = self.sides()
        step, starts = self._step, range(0, self.positions, self._step)
        through = [b.columns(slice(start, start + step)).T.to(vector) @ vector for start in starts]
        inner = torch.cat(through).unflatten(0, (self.positions, -1))[source]
        for start in starts:
            piece = slice(start, start + step)
            total += a.columns(piece).to(vector) @ inner[piece].flatten(0, 1)
        return total

    def change(self, units: Tensor, to: Tensor, was: Tensor, source: Tensor) -> float:
        """Return how much more the old units `to` are worth than `was` as the new `units`, in float64."""
        a, b = self.sides()
        if a.by_units is not None and b.by_units is not None:
            return change_of_rows(a.by_units, b.by_units, units, to, was, source)
        return change_of_columns(a.by_columns, b.by_columns, units, to, was, source)
