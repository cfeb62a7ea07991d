"""Specs written by hand, flat and nested, for tests of what needs no discovery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from onebasin.layout import Axis, Interleave, Leaf, Product, Sum
from onebasin.params import Params
from onebasin.spec import PermutationSpec


def handwritten(
    params: Mapping[str, torch.Tensor],
    axes: Mapping[str, Iterable[str | Axis | None]],
    parents: Mapping[str, tuple[str, ...]] | None = None,
) -> PermutationSpec:
    """Describe the tensors of `params` by `axes`; `parents` nests groups."""
    shapes = {name: tuple(tensor.shape) for name, tensor in params.items()}
    spec = PermutationSpec.from_axes(axes, shapes)
    return replace(spec, parents=parents) if parents else spec


def flat_mlp() -> PermutationSpec:
    """A 3-7-5-2 MLP."""
    shapes = {"fc1.weight": (7, 3), "fc1.bias": (7,), "fc2.weight": (5, 7), "fc2.bias": (5,), "fc3.weight": (2, 5)}
    axes = {
        "fc1.weight": ("P0", None), "fc1.bias": ("P0",), "fc2.weight": ("P1", "P0"), "fc2.bias": ("P1",),
        "fc3.weight": (None, "P1"),
    }  # fmt: skip
    return PermutationSpec.from_axes(axes, shapes)


def flat_sums_and_products() -> PermutationSpec:
    """Concatenations, grids, interleavings: (3 fixed + 5 a + 7 b), (5 a x 4 pixels), a square weight on both axes."""
    joined = Sum((Leaf(3), Leaf(5, "a"), Leaf(7, "b")))
    grid = Product((Leaf(5, "a"), Leaf(4)))
    of_sum = Product((Sum((Leaf(5, "a"), Leaf(7, "b"))), Leaf(2)))
    axes: dict[str, tuple[str | Axis | None, ...]] = {
        "join": (None, joined),
        "grid": (joined, grid),
        "square": ("b", "b"),
        "inner": (of_sum,),
        "shuffled": (Interleave((Leaf(5, "a"), Sum((Leaf(3), Leaf(2, "c"))))), None),
    }
    shapes = {"join": (2, 15), "grid": (15, 20), "square": (7, 7), "inner": (24,), "shuffled": (10, 2)}
    return PermutationSpec.from_axes(axes, shapes)


def nested_heads() -> PermutationSpec:
    """3 heads of 5 units, each head with an order of its own: as a grid, as two axes, and beside other units."""
    grid = Product((Leaf(3, "head"), Leaf(5, "unit")))
    axes: dict[str, tuple[str | Axis | None, ...]] = {
        "query": (grid, None),
        "out": ("stream", grid),
        "cube": ("head", "unit", None),
        "turned": ("unit", None, "head"),
        "gate": ("head",),
        "fused": (Sum((grid, Leaf(7, "stream"), Leaf(2))), "stream"),
    }
    shapes = {
        "query": (15, 2), "out": (7, 15), "cube": (3, 5, 2), "turned": (5, 2, 3), "gate": (3,), "fused": (24, 7),
    }  # fmt: skip
    return replace(PermutationSpec.from_axes(axes, shapes), parents={"unit": ("head",)})


def nested_deeply() -> PermutationSpec:
    """2 key/value heads, 3 query heads under each, 4 units under each of those, and 5 under each key/value head."""
    query = Product((Leaf(2, "kv"), Leaf(3, "head"), Leaf(4, "unit")))
    key = Product((Leaf(2, "kv"), Leaf(5, "key")))
    axes: dict[str, tuple[str | Axis | None, ...]] = {
        "query": (query, None),
        "mixed": (query, key),
        "temperature": ("kv", "head"),
        "key": (None, key),
    }
    shapes = {"query": (24, 2), "mixed": (24, 10), "temperature": (2, 3), "key": (2, 10)}
    parents = {"head": ("kv",), "unit": ("kv", "head"), "key": ("kv",)}
    return replace(PermutationSpec.from_axes(axes, shapes), parents=parents)


FLAT = {"mlp": flat_mlp(), "sums_and_products": flat_sums_and_products()}
NESTED = {"heads": nested_heads(), "deep": nested_deeply()}
SPECS = FLAT | NESTED


def random_params(spec: PermutationSpec, seed: int = 0) -> Params:
    """Draw params of the shapes of `spec`."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes.items()}
