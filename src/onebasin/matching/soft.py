"""Soft orders: doubly stochastic matrices in the place of permutations, on tensors, on objectives, and back.

The soft order of a flat group is `Float[Tensor, "n n"]`, new positions by old ones, rows and columns of sum 1. That of
a nested group is one such matrix for every pair of a new and an old unit of its parents. A permutation is a soft order
of zeros and ones, and then all that is computed here is what `Permutation` gives.

A group that stands on several axes has the same matrix on each, and nested matrices are averaged over pairs by those of
the parents: a tensor becomes the mean of all its orders, every axis drawn by itself. That is multilinear in the
matrices, equal to the hard function at permutations, and in general another one between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from onebasin import layout
from onebasin.layout import Axes
from onebasin.matching.alignment import Alignment, Certificate, Matcher, StopReason
from onebasin.matching.assignment import Assignment
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.matching.gains import Level, Rows, rows_of
from onebasin.matching.joint import JointStep
from onebasin.matching.objective import Objective
from onebasin.matching.terms import Dim, Labelled, Term, feature_terms, new, old
from onebasin.params import Params, compute_dtype, map_tensors
from onebasin.permutation import Permutation
from onebasin.progress import Progress
from onebasin.spec import PermutationSpec

# Group -> its soft order, of dimensions new and old of every parent, then its own. What it does not depend on may be
# left out.
Orders = Mapping[str, Labelled]
# What one group and all that is nested under it carry: dimensions, new ones before old ones -> a value per pair of
# positions. A flat group has one entry, of dimensions (new, old): a matrix.
Pairs = dict[tuple[Dim, ...], Tensor]
Solve = Callable[[Tensor], Assignment]


def pair_dims(spec: PermutationSpec, group: str) -> tuple[Dim, ...]:
    """Name the dimensions of a soft order: new and old units of every parent, then of the group itself."""
    return tuple(dim for name in (*spec.parents.get(group, ()), group) for dim in (new(name), old(name)))


def hardened(permutation: Permutation, dtype: torch.dtype = torch.float32) -> dict[str, Labelled]:
    """Return a permutation as soft orders of zeros and ones; those of nested groups leave out old units of parents."""
    rows = rows_of(permutation).items()
    return {
        name: Labelled(one_hot(row.values, row.values.shape[-1]).to(dtype), (*row.dims, old(name)))
        for name, row in rows
    }


def moved(side: Labelled, orders: Orders, spec: PermutationSpec) -> Labelled:
    """Put every old dimension of `side` into its soft order; a new dimension that is there already is matched."""
    # Nested groups go first: their order is told apart by old units of their parents too.
    olds = sorted((dim for dim in side.dims if not dim.new), key=lambda dim: -len(spec.parents.get(dim.group, ())))
    for dim in olds:
        target = dim._replace(new=True)
        order = orders[dim.group].renamed({new(dim.group): target, old(dim.group): dim})
        order = Labelled(order.values.to(side.values), order.dims)
        together = dict.fromkeys(target if own == dim else own for own in (*side.dims, *order.dims))
        wanted = tuple(own for own in together if own != dim)
        side = Labelled(Term(order, side).contract(wanted), wanted)
    return side


def value_at(objective: Objective, orders: Orders) -> Tensor:
    """Return `objective` at soft orders, to be differentiated: the multilinear function that equals it at permutations.

    Products are accumulated in the dtype of the tensors; `Objective.value` at permutations is the exact one.
    """
    spec = objective.spec
    parts = (Term(moved(t.a, orders, spec), moved(t.b, orders, spec)).contract(()) for t in objective.terms())
    total = torch.zeros(())
    for part in parts:
        total = part + total.to(part)
    return total


def apply_softly(params: Mapping[str, Tensor], orders: Orders, spec: PermutationSpec) -> Params:
    """Reorder tensors as `Permutation.apply` does, softly: every position becomes a mean of old ones.

    Half precision comes out in float32. What holds no group, or no numbers on a scale (counters, masks), stays as it
    is: it is the same tensor.
    """

    def one(name: str, tensor: Tensor) -> Tensor:
        fixed = all(leaf.group is None for axis in spec.tensors[name] for leaf in layout.leaves(axis))
        return tensor if fixed or not tensor.is_floating_point() else _mixed(tensor, spec.tensors[name], orders, spec)

    return map_tensors(params, one)


def _mixed(tensor: Tensor, axes: Axes, orders: Orders, spec: PermutationSpec) -> Tensor:
    wide = tensor.to(compute_dtype(tensor))
    parts: list[Tensor] = []
    for term in feature_terms(wide, wide, axes):
        found = moved(term.b, orders, spec)
        parts.append(found.aligned(term.a.dims).expand_as(term.a.values))
    if len(parts) == 1:
        return parts[0].reshape(tensor.shape)
    positions = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
    order = torch.cat([view.reshape(-1) for view, _ in layout.blocks(positions, axes)])
    return torch.cat([part.reshape(-1) for part in parts])[order.argsort()].view(tensor.shape)


def assigned(spec: PermutationSpec, gains: Mapping[str, Pairs], solve: Solve) -> dict[str, Labelled]:
    """Return the best rows for constant gains of top-level groups and all that is nested under them."""
    joint = JointStep(Level(spec), solve)
    terms = {top: [_constant(dims, gain) for dims, gain in pairs.items()] for top, pairs in gains.items()}
    found = (joint(constants, {}, top) for top, constants in terms.items())
    return {name: row for _, rows in found for name, row in rows.items()}


def _constant(dims: tuple[Dim, ...], gain: Tensor) -> Term:
    return Term(Labelled(gain, dims), Labelled(gain.new_ones(()), ()))


def nearest(soft: Mapping[str, Pairs], otherwise: Permutation, solve: Solve) -> Permutation:
    """Return the permutation nearest to soft orders; groups that have none stay as they are in `otherwise`."""
    spec = otherwise.spec
    rows = assigned(spec, soft, solve)
    names = {name: [new(group) for group in (*spec.parents.get(name, ()), name)] for name in rows}
    found = {name: rows[name].aligned(names[name]) for name in rows}
    return replace(otherwise, indices={**otherwise.indices, **found})


def indicator(dims: tuple[Dim, ...], rows: Rows, like: Tensor) -> Tensor:
    """Return 1 for every pair of a new position and the old one that `rows` put there, else 0."""
    result = like.new_ones(())
    for dim in dims[: len(dims) // 2]:
        index = rows[dim.group]
        hot = one_hot(index.values.to(like.device), like.shape[dims.index(dim)]).to(like.dtype)
        at = tuple(dim if own == new(dim.group) else own for own in index.dims)
        result = result * Labelled(hot, (*at, dim._replace(new=False))).aligned(dims)
    return result


def joint_pairs(spec: PermutationSpec, orders: Orders) -> dict[str, Pairs]:
    """Return for every top-level group what `nearest` takes: the soft orders of it and of all that is under it.

    The entry of a nested group is multiplied by those of its parents: the share of all orders of the whole family in
    which a unit comes from there.
    """
    result: dict[str, Pairs] = {}
    for name in orders:
        family = (*spec.parents.get(name, ()), name)
        dims = (*(new(group) for group in family), *(old(group) for group in family))
        product = torch.ones(())
        for group in family:
            order = orders[group].aligned(dims)
            product = order * product.to(order.device)
        result.setdefault(family[0], {})[dims] = product
    return result


def relax_then_descend(
    relax: Callable[[], None],
    rounded: Callable[[], Permutation],
    descent: CoordinateDescent,
    objective: Objective,
    start: Permutation,
    matcher: Matcher,
    progress: Progress,
) -> Alignment:
    """Let `relax` move soft orders, round them, and let coordinate descent go on from there.

    The result is never worse than `start`, with whose value the history begins: where it would be, coordinate descent
    goes on from `start`. After an interrupt from the keyboard the best permutation so far is returned.
    """
    value = objective.value(start)
    try:
        relax()
        found = descent.maximise(objective, rounded(), matcher, progress)
        if found.objective[-1] < value and found.stop is not StopReason.INTERRUPTED:
            found = descent.maximise(objective, start, matcher, progress)
    except KeyboardInterrupt:
        reached = rounded()
        history = (objective.value(reached),)
        found = Alignment(reached, history, StopReason.INTERRUPTED, Certificate(), matcher, 0.0)
    if found.objective[-1] < value:
        found = replace(found, permutation=start)
    return replace(found, objective=tuple(itertools.accumulate((value, *found.objective), max)))
