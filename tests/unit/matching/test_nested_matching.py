"""Weight matching on the shapes of real architectures with nested groups: planted orders are found, others improved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from specs import random_params

from onebasin.layout import Axis, Leaf, Product
from onebasin.matching import StopReason, WeightMatching, align
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

Axes = dict[str, tuple[str | Axis | None, ...]]


def grid(*parts: tuple[str | None, int]) -> Product:
    return Product(tuple(Leaf(size, name) for name, size in parts))


def nested(axes: Axes, sizes: dict[str, int], parents: dict[str, tuple[str, ...]]) -> PermutationSpec:
    shapes = {
        name: tuple(sizes[e] if isinstance(e, str) else 41 if e is None else e.size for e in row)
        for name, row in axes.items()
    }
    return replace(PermutationSpec.from_axes(axes, shapes), parents=parents)


def transformer(layers: int = 2) -> PermutationSpec:
    """Heads with own orders of query/key and value/output units, a feed-forward layer, and the stream."""
    axes: Axes = {"embed": (None, "stream"), "norm": ("stream",)}
    sizes, parents = {"stream": 53}, {}
    for layer in range(layers):
        head, qk, vo, ffn = (f"{name}{layer}" for name in ("head", "qk", "vo", "ffn"))
        sizes |= {head: 3, qk: 11, vo: 13, ffn: 59}
        parents |= {qk: (head,), vo: (head,)}
        inside, outside = grid((head, 3), (qk, 11)), grid((head, 3), (vo, 13))
        axes |= {
            f"q{layer}": (inside, "stream"), f"k{layer}": (inside, "stream"), f"kb{layer}": (inside,),
            f"v{layer}": (outside, "stream"), f"o{layer}": ("stream", outside),
            f"up{layer}": (ffn, "stream"), f"down{layer}": ("stream", ffn),
        }  # fmt: skip
    return nested(axes, sizes, parents)


def grouped_queries() -> PermutationSpec:
    """GQA with rotary positions: query heads and value units under key/value heads, both in the output weight."""
    axes: Axes = {
        "q": (grid(("kv", 3), ("query", 2), (None, 7)), "stream"), "k": (grid(("kv", 3), (None, 7)), "stream"),
        "v": (grid(("kv", 3), ("value", 11)), "stream"),
        "o": ("stream", grid(("kv", 3), ("query", 2), ("value", 11))), "embed": (None, "stream"),
    }  # fmt: skip
    parents = {"query": ("kv",), "value": ("kv",)}
    return nested(axes, {"kv": 3, "query": 2, "value": 11, "stream": 47}, parents)


def resnext() -> PermutationSpec:
    """Two grouped convolutions in a row: the units before and after stand in one block, under the same groups."""
    before, after = grid(("group", 5), ("before", 3)), grid(("group", 5), ("after", 7))
    axes: Axes = {
        "1": (before, "stream"), "2": (after, "before", Leaf(3), Leaf(3)), "3": ("stream", after),
        "4": (None, "stream"),
    }  # fmt: skip
    parents = {"before": ("group",), "after": ("group",)}
    return nested(axes, {"group": 5, "before": 3, "after": 7, "stream": 31}, parents)


def experts() -> PermutationSpec:
    """A mixture of experts, each with two hidden layers in an order of its own, and the router's rows."""
    axes: Axes = {
        "router": ("expert", "stream"), "up": ("expert", "one", "stream"), "middle": ("expert", "two", "one"),
        "down": ("expert", "stream", "two"), "embed": (None, "stream"),
    }  # fmt: skip
    parents = {"one": ("expert",), "two": ("expert",)}
    return nested(axes, {"expert": 5, "one": 17, "two": 13, "stream": 29}, parents)


def lstm() -> PermutationSpec:
    """Two recurrent layers: the units of each stand on two axes of every gate."""
    axes: Axes = {"head": (None, "h1")}
    for layer, below in ((0, None), (1, "h0")):
        gates = grid((None, 4), (f"h{layer}", 37))
        axes |= {f"ih{layer}": (gates, below), f"hh{layer}": (gates, f"h{layer}"), f"b{layer}": (gates,)}
    return nested(axes, {"h0": 37, "h1": 37}, {})


def recurrent_heads() -> PermutationSpec:
    """Heads that feed back within themselves, as in xLSTM."""
    units = grid(("head", 3), ("unit", 11))
    axes: Axes = {"in": (units, None), "back": (Leaf(4), "head", "unit", "unit"), "out": (None, units)}
    return nested(axes, {"head": 3, "unit": 11}, {"unit": ("head",)})


SPECS = {make.__name__: make() for make in (transformer, grouped_queries, resnext, experts, lstm, recurrent_heads)}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_nested_permutation_is_found(spec: PermutationSpec, seed: int) -> None:
    a = random_params(spec, seed)
    p = Permutation.random(spec, torch.Generator().manual_seed(seed))
    found = align(spec, a, p.apply(a), WeightMatching(seed=seed))
    assert found.permutation == p.inverse()
    assert found.stop is StopReason.CONVERGED
    assert len(found.objective) - 1 <= 4
    assert found.certificate.gap < 1e-13


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_independent_models_come_closer(spec: PermutationSpec) -> None:
    a, b = random_params(spec, 0), random_params(spec, 1)
    found = align(spec, a, b)
    chance = WeightMatching().objective(spec, a, b)
    generator = torch.Generator().manual_seed(2)
    best_of_chance = max(chance.value(Permutation.random(spec, generator)) for _ in range(50))
    assert found.objective[-1] > 2 * best_of_chance
    assert found.objective[-1] == chance.value(found.permutation)
    assert found.stop is StopReason.CONVERGED
    assert found.certificate.gap < 1e-13


@pytest.mark.parametrize("name", ["transformer", "grouped_queries", "resnext", "experts"])
def test_own_orders_under_each_parent_are_worth_more_than_one_for_all(name: str) -> None:
    """The same spec without nesting is a subgroup: one order of units for all heads."""
    spec = SPECS[name]
    shared = replace(spec, parents={})
    a, b = random_params(spec, 0), random_params(spec, 1)
    assert align(spec, a, b).objective[-1] > 1.05 * align(shared, a, b).objective[-1]
