"""Terms: what an objective is made of, as tensors whose dimensions have names.

An objective is a sum of terms, one for every block of every tensor. A term is the sum over x of a[x] * b[old(x)], where
x are positions in the new order and `old` is what the permutation says. Dimensions have names, because a term may
carry several groups on several axes: `new` dimensions run over the new order, `old` ones over the old order. Moving a
group replaces its old dimension of b by the new one; contracting what is left over gives gains.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from onebasin import layout
from onebasin.layout import Axes
from onebasin.matching.tensors import dot, dot_and_norms, dot_in_order, is_as_before
from onebasin.params import compute_dtype
from onebasin.spec import PermutationSpec


class Dim(NamedTuple):
    """A named dimension: the units of `group` in the new or the old order; `place` tells apart several in one block.

    A dimension that nothing moves has the group "" and its number as place.
    """

    group: str
    new: bool = True
    place: int = 0


def new(group: str) -> Dim:
    """Name the units of `group` in the new order."""
    return Dim(group, True)


def old(group: str) -> Dim:
    """Name the units of `group` in the old order."""
    return Dim(group, False)


@dataclass(frozen=True, eq=False)
class Labelled:
    """A tensor whose dimensions have names."""

    values: Tensor
    dims: tuple[Dim, ...]

    def aligned(self, dims: Iterable[Dim]) -> Tensor:
        """Return the values with one dimension per entry of `dims`, of size 1 where this tensor has none."""
        wanted = list(dims)
        present = [dim for dim in wanted if dim in self.dims]
        values = self.values.permute([self.dims.index(dim) for dim in present])
        for position, dim in enumerate(wanted):
            if dim not in self.dims:
                values = values.unsqueeze(position)
        return values

    def sizes(self, dims: Iterable[Dim]) -> list[int]:
        """Return the number of positions along each of `dims`."""
        return [self.values.shape[self.dims.index(dim)] for dim in dims]

    def renamed(self, names: Mapping[Dim, Dim]) -> Labelled:
        """Return the same values under other names."""
        return Labelled(self.values, tuple(names.get(dim, dim) for dim in self.dims))

    def narrowed(self, dim: Dim, start: int, length: int) -> Labelled:
        """Keep `length` positions of `dim`, if this tensor has it."""
        if dim not in self.dims:
            return self
        axis = self.dims.index(dim)
        return Labelled(self.values.narrow(axis, start, min(length, self.values.shape[axis] - start)), self.dims)

    def summed(self, dims: tuple[Dim, ...]) -> Tensor:
        """Sum over all dimensions but `dims`, which are returned in this order."""
        rest = [axis for axis, dim in enumerate(self.dims) if dim not in dims]
        kept = Labelled(self.values.sum(rest) if rest else self.values, tuple(dim for dim in self.dims if dim in dims))
        return kept.aligned(dims)

    def mean(self, dim: Dim) -> Labelled:
        """Average over `dim`, if this tensor has it."""
        if dim not in self.dims:
            return self
        return Labelled(self.values.mean(self.dims.index(dim)), tuple(other for other in self.dims if other != dim))

    def take(self, source: Dim, index: Labelled, target: Dim) -> Labelled:
        """Replace the dimension `source` by `target`: the element at t is the one at `index[..., t]` along `source`.

        Further dimensions of `index` that this tensor has are matched, others are added. When this tensor already has
        `target`, the diagonal is taken; when it has no `source`, nothing changes.
        """
        if source not in self.dims:
            return self
        index = Labelled(index.values.to(self.values.device), index.dims)
        if index.dims == (target,) and target not in self.dims:
            values = self.values
            if not is_as_before(index.values):
                values = values.index_select(self.dims.index(source), index.values)
            return Labelled(values, self.dims).renamed({source: target})
        added = tuple(dim for dim in index.dims if dim not in self.dims and dim != target)
        dims, axis = added + self.dims, len(added) + self.dims.index(source)
        if target in self.dims:
            taken = torch.take_along_dim(self.aligned(dims), index.aligned(dims), axis).squeeze(axis)
            return Labelled(taken, dims[:axis] + dims[axis + 1 :])
        dims = (*dims[:axis], target, *dims[axis + 1 :])
        values = self.values[(None,) * len(added)]
        return Labelled(torch.take_along_dim(values, index.aligned(dims), axis), dims)


@dataclass(frozen=True, eq=False)
class Term:
    """One bilinear piece of an objective: the sum of `a * b` once every old dimension has been moved."""

    a: Labelled
    b: Labelled

    @cached_property
    def unmoved(self) -> Counter[str]:
        """Count the places at which each group still stands in the old order."""
        return Counter(dim.group for dim in self.a.dims + self.b.dims if not dim.new)

    def widened(self) -> Term:
        """Return the term in the dtype that products are accumulated in: float32 for half precision."""
        a, b = self.a.values, self.b.values
        dtype = torch.promote_types(compute_dtype(a), compute_dtype(b))
        if a.dtype == b.dtype == dtype:
            return self
        return Term(Labelled(a.to(dtype), self.a.dims), Labelled(b.to(dtype), self.b.dims))

    def moved(self, group: str, index: Labelled, but: int | None = None) -> Term:
        """Put `group` into the order that `index` gives, at all its places but one, if given."""
        term = self
        for dim in self._old_dims(group):
            if dim.place != but:
                target = Dim(group, True, dim.place)
                row = index.renamed({new(group): target})
                term = Term(term.a.take(dim, row, target), term.b.take(dim, row, target))
        return term

    def averaged(self, group: str, but: int | None = None) -> Term:
        """Put every old unit of `group` into every place in equal shares: what a uniformly random order gives."""
        term = self
        for dim in self._old_dims(group):
            if dim.place != but:
                term = Term(term.a.mean(dim), term.b.mean(dim))
        return term

    def narrowed(self, dim: Dim, start: int, length: int) -> Term:
        """Keep `length` positions of `dim`."""
        return Term(self.a.narrowed(dim, start, length), self.b.narrowed(dim, start, length))

    def places(self, group: str) -> list[int]:
        """Return the places at which `group` still stands in the old order."""
        return [dim.place for dim in self._old_dims(group)]

    def _old_dims(self, group: str) -> list[Dim]:
        return [dim for dim in self.a.dims + self.b.dims if dim.group == group and not dim.new]

    def contract(self, dims: tuple[Dim, ...]) -> Tensor:
        """Sum out every dimension that is not in `dims`."""
        numbers = {dim: number for number, dim in enumerate(dict.fromkeys(self.a.dims + self.b.dims))}
        wanted = [numbers[dim] for dim in dims]
        rows = [[numbers[dim] for dim in side.dims] for side in (self.a, self.b)]
        return torch.einsum(self.a.values, rows[0], self.b.values, rows[1], wanted)

    def freed(self, group: str, place: int) -> Term:
        """Give the plain name of `group` to its dimensions at `place`."""
        swap = {place: 0, 0: place}
        names = {Dim(group, side, p): Dim(group, side, q) for p, q in swap.items() for side in (True, False)}
        return Term(self.a.renamed(names), self.b.renamed(names))

    def total(self) -> float:
        """Sum everything up in float64; every group must have been moved."""
        dims = tuple(dict.fromkeys(self.a.dims + self.b.dims))
        a, b = torch.broadcast_tensors(self.a.aligned(dims), self.b.aligned(dims))
        return dot(a, b)

    def total_in(self, rows: Mapping[str, Labelled]) -> float | None:
        """Sum everything up in the order of `rows` without a copy; None where that takes more than a row per axis."""
        groups = {dim.group for dim in self._olds if dim.group}
        are_rows = all(group in rows and rows[group].dims == (new(group),) for group in groups)
        if self.b.dims != self._olds or not are_rows:
            return None
        orders = {axis: rows[dim.group].values for axis, dim in enumerate(self._olds) if dim.group}
        moved = {axis: order for axis, order in orders.items() if not is_as_before(order)}
        return dot_in_order(self.a.values, self.b.values, moved) if moved else self._measures[0]

    @cached_property
    def _olds(self) -> tuple[Dim, ...]:
        return tuple(dim._replace(new=False) if dim.group else dim for dim in self.a.dims)

    @cached_property
    def _measures(self) -> tuple[float, float, float]:
        """The dot product of a and b as they stand, both with the same axes, |a| and |b|: one pass for all three."""
        return dot_and_norms(self.a.values, self.b.values)

    @cached_property
    def bound(self) -> float:
        """The largest absolute value that any order of the units can give: |a| |b|, Frobenius norms.

        Of a constant gain only one place per unit counts: the sum over the new positions of the largest gain.
        """
        if not self.b.dims:
            return self.a.values.abs().flatten(self.a.values.dim() // 2).amax(-1).sum().item()
        return math.prod(self._measures[1:])


def feature_terms(a: Tensor, b: Tensor, axes: Axes) -> Iterator[Term]:
    """Yield the terms of a pair of features that are laid out as `axes`: one for every block.

    They are views of the features; only a `b` on another device is copied, to that of `a`.
    """
    for (x, leaves), (y, _) in zip(layout.blocks(a, axes), layout.blocks(b.to(a.device), axes), strict=True):
        # The last place of a group has the plain name, since that one is the parent of nested groups (`Permutation`).
        left = Counter(leaf.group or "" for leaf in leaves)
        dims: list[Dim] = []
        for leaf in leaves:
            left[leaf.group or ""] -= 1
            dims.append(Dim(leaf.group or "", True, left[leaf.group or ""]))
        olds = tuple(dim if dim.group == "" else dim._replace(new=False) for dim in dims)
        yield Term(Labelled(x, tuple(dims)), Labelled(y, olds))


def constant_term(spec: PermutationSpec, group: str, gain: Tensor) -> Term:
    """Return the term of a constant gain `Float[Tensor, "*parents n *parents n"]`: new units first, then old units."""
    names = (*spec.parents.get(group, ()), group)
    dims = tuple(new(name) for name in names) + tuple(old(name) for name in names)
    return Term(Labelled(gain, dims), Labelled(gain.new_ones(()), ()))
