"""Permutation: an element of the symmetry group. The only place that knows it is made of index arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasin.errors import SpecError, listing
from onebasin.layout import Axes, Axis, Interleave, Leaf, Product, Sum
from onebasin.params import Params, check_shapes, map_tensors
from onebasin.spec import PermutationSpec

FORMAT = "onebasin-permutation"


@dataclass(frozen=True, eq=False)
class Permutation:
    """One reordering of the units of every group of `spec`.

    `indices[group][i] = j`: new unit i is old unit j. A nested group has one row per combination of (new) units of its
    parents: `indices[group][a, i] = j` says that unit i under the new parent unit a is unit j under the old unit that
    went to a.

    Args:
        spec: what the groups are.
        indices: group name -> `Int[Tensor, "*parents n"]`, each row a permutation of 0..n-1.

    Raises:
        SpecError: missing or unknown groups, wrong shapes, or rows that are not permutations.
    """

    spec: PermutationSpec
    indices: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        problems = [f"{name}: no indices" for name in self.spec.sizes if name not in self.indices]
        problems += [f"{name}: no such group" for name in self.indices if name not in self.spec.sizes]
        for name in self.spec.sizes.keys() & self.indices.keys():
            shape, index = self.spec.index_shape(name), self.indices[name]
            if tuple(index.shape) != shape:
                problems.append(f"{name}: shape {tuple(index.shape)} instead of {shape}")
            elif not torch.equal(index.sort(-1).values, _identity(shape).to(index)):
                problems.append(f"{name}: repeated or missing units")
        if problems:
            raise SpecError(
                f"no permutation of this spec: {listing(problems)}",
                "one row of 0..n-1 in some order per group (and per unit of its parents)",
                "build it with identity, random, or align",
            )

    @classmethod
    def identity(cls, spec: PermutationSpec) -> Permutation:
        """Return the permutation that moves nothing."""
        return cls(spec, {name: _identity(spec.index_shape(name)) for name in spec.sizes})

    @classmethod
    def random(cls, spec: PermutationSpec, generator: torch.Generator) -> Permutation:
        """Draw uniformly from the whole group."""
        shapes = {name: spec.index_shape(name) for name in spec.sizes}
        return cls(spec, {name: torch.rand(shape, generator=generator).argsort(-1) for name, shape in shapes.items()})

    def inverse(self) -> Permutation:
        """Return q with `q @ p == p @ q == identity`."""
        result: dict[str, Tensor] = {}
        for name in _parents_first(self.spec):
            rows = self.indices[name].argsort(-1)
            result[name] = rows[_rows(self.spec, name, result)]
        return Permutation(self.spec, {name: result[name] for name in self.spec.sizes})

    def __matmul__(self, other: Permutation) -> Permutation:
        """Compose: `(p @ q).apply(x) == p.apply(q.apply(x))`."""
        if self.spec != other.spec:
            raise SpecError("permutations of two different specs", "permutations of one spec", "align under one spec")
        return Permutation(
            self.spec,
            {
                name: other.indices[name][_rows(self.spec, name, self.indices)].gather(-1, index)
                for name, index in self.indices.items()
            },
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented
        same_spec = self.spec is other.spec or self.spec == other.spec
        return same_spec and all(torch.equal(index, other.indices[name]) for name, index in self.indices.items())

    __hash__ = None  # type: ignore[assignment]  # equal by value, and tensors do not hash by value

    def apply(self, params: Mapping[str, Tensor]) -> Params:
        """Reorder every tensor of `params`; the function of the network stays the same.

        Returns new tensors of the same dtype and device; tied tensors stay tied; `params` is not written to.

        Raises:
            ParamsError: missing, unexpected or misshapen tensors, all listed.
        """
        check_shapes(params, self.spec.shapes)
        return map_tensors(params, lambda name, tensor: self.move(tensor, self.spec.tensors[name]))

    def move(self, tensor: Tensor, axes: Axes) -> Tensor:
        """Reorder one tensor whose axes are laid out as `axes`, which need not be a tensor of the spec."""
        env: dict[str, Tensor] = {}
        positions = [_along(torch.arange(axis.size), dim, len(axes)) for dim, axis in enumerate(axes)]
        for axis, position in zip(axes, positions, strict=True):
            _locate(axis, position, env)
        wanted = [self._old(axis, position, env) for axis, position in zip(axes, positions, strict=True)]
        if all(index.numel() == axis.size for index, axis in zip(wanted, axes, strict=True)):
            moved = tensor
            for dim, index in enumerate(wanted):
                if not torch.equal(index, positions[dim]):
                    moved = moved.index_select(dim, index.reshape(-1).to(tensor.device))
            return tensor.clone() if moved is tensor else moved
        return tensor[tuple(index.to(tensor.device) for index in wanted)]

    def _old(self, axis: Axis, position: Tensor, env: Mapping[str, Tensor]) -> Tensor:
        """Return the old position that comes to each new `position`; `env` holds the new units of all groups."""
        if isinstance(axis, Leaf):
            if axis.group is None:
                return position
            parents = self.spec.parents.get(axis.group, ())
            return self.indices[axis.group][(*(env[parent] for parent in parents), position)]
        total = torch.zeros_like(position)
        for part, number, mask, inner in _parts(axis, position):
            old = self._old(part, inner, env)
            if isinstance(axis, Product):
                total = total * number + old
            else:
                turns = len(axis.parts) if isinstance(axis, Interleave) else 1
                total = torch.where(mask, old * turns + number, total)
        return total

    def fixed_share(self) -> dict[str, float]:
        """Return for each group the share of units that stay where they are, in [0, 1]."""
        return {
            name: (index == torch.arange(index.shape[-1])).double().mean().item()
            for name, index in self.indices.items()
        }

    def to_json(self) -> str:
        """Write the index arrays as strict JSON."""
        return json.dumps({"format": FORMAT, "indices": {name: index.tolist() for name, index in self.indices.items()}})

    @classmethod
    def from_json(cls, text: str, spec: PermutationSpec) -> Permutation:
        """Read what `to_json` wrote, for the same `spec`.

        Raises:
            SpecError: not this format, or not a permutation of `spec`.
        """
        try:
            data = json.loads(text)
            indices = {name: torch.tensor(rows, dtype=torch.int64) for name, rows in data["indices"].items()}
            known = data["format"] == FORMAT
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"text that is no permutation ({error})", FORMAT, "write it with to_json") from None
        if not known:
            raise SpecError(f"format {data['format']!r}", FORMAT, "write it with Permutation.to_json")
        return cls(spec, indices)


def _identity(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(shape[-1]).expand(shape).contiguous()


def _along(values: Tensor, dim: int, dims: int) -> Tensor:
    return values.reshape([-1 if d == dim else 1 for d in range(dims)])


def _parents_first(spec: PermutationSpec) -> list[str]:
    return sorted(spec.sizes, key=lambda name: len(spec.parents.get(name, ())))


def _rows(spec: PermutationSpec, name: str, indices: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return, for every new combination of parent units of `name`, the old one that `indices` puts there."""
    parents = spec.parents.get(name, ())
    grid = [_along(torch.arange(spec.sizes[parent]), dim, len(parents)) for dim, parent in enumerate(parents)]
    units = dict(zip(parents, grid, strict=True))
    return tuple(indices[p][(*(units[q] for q in spec.parents.get(p, ())), units[p])] for p in parents) or (...,)  # type: ignore[return-value]


def _parts(axis: Sum | Product | Interleave, position: Tensor) -> list[tuple[Axis, int, Tensor, Tensor]]:
    """Return (part, number, mask, inner position) of every part; number = size of a factor, or first position."""
    rows, rest = [], position
    start, stride = 0, axis.size
    for part in axis.parts:
        if isinstance(axis, Product):
            stride //= max(part.size, 1)
            rows.append((part, part.size, torch.ones_like(position, dtype=torch.bool), (rest // stride) % part.size))
        elif isinstance(axis, Interleave):
            turns, turn = len(axis.parts), len(rows)
            rows.append((part, turn, position % turns == turn, (position // turns).clamp(max=max(part.size - 1, 0))))
        else:
            mask = (position >= start) & (position < start + part.size)
            rows.append((part, start, mask, (position - start).clamp(0, max(part.size - 1, 0))))
            start += part.size
    return rows


def _locate(axis: Axis, position: Tensor, env: dict[str, Tensor], mask: Tensor | None = None) -> None:
    """Enter into `env` the unit of every group of `axis` at each `position` (0 where the group is absent)."""
    if isinstance(axis, Leaf):
        if axis.group is not None:
            before = env.get(axis.group, torch.zeros_like(position))
            env[axis.group] = position if mask is None else torch.where(mask, position, before)
        return
    for part, _, inside, inner in _parts(axis, position):
        within = mask if isinstance(axis, Product) else inside if mask is None else mask & inside
        _locate(part, inner, env, within)
