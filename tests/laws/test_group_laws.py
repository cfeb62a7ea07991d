"""Permutations of one spec form a group, and `apply` is its action: for flat and for nested specs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import assert_same
from specs import FLAT, NESTED, SPECS, nested_heads, random_params

from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
nested_spec = pytest.mark.parametrize("spec", NESTED.values(), ids=NESTED)


def draw(spec: PermutationSpec, count: int, seed: int = 0) -> list[Permutation]:
    generator = torch.Generator().manual_seed(seed)
    return [Permutation.random(spec, generator) for _ in range(count)]


@every_spec
@pytest.mark.parametrize("seed", range(3))
def test_inverse(spec: PermutationSpec, seed: int) -> None:
    (p,) = draw(spec, 1, seed)
    identity = Permutation.identity(spec)
    assert p.inverse() @ p == identity
    assert p @ p.inverse() == identity
    assert p.inverse().inverse() == p


@every_spec
def test_inverse_undoes_on_params(spec: PermutationSpec) -> None:
    (p,), x = draw(spec, 1), random_params(spec)
    assert_same(p.inverse().apply(p.apply(x)), x)
    assert_same(p.apply(p.inverse().apply(x)), x)


@every_spec
def test_identity(spec: PermutationSpec) -> None:
    (p,), x, identity = draw(spec, 1), random_params(spec), Permutation.identity(spec)
    assert identity @ p == p == p @ identity
    assert identity.inverse() == identity
    assert_same(identity.apply(x), x)


@every_spec
def test_associativity(spec: PermutationSpec) -> None:
    p, q, r = draw(spec, 3)
    assert (p @ q) @ r == p @ (q @ r)


@every_spec
def test_inverse_of_a_product(spec: PermutationSpec) -> None:
    p, q = draw(spec, 2)
    assert (p @ q).inverse() == q.inverse() @ p.inverse()
    assert (p @ q).inverse() != p.inverse() @ q.inverse()


@every_spec
@pytest.mark.parametrize("seed", range(3))
def test_apply_is_a_homomorphism(spec: PermutationSpec, seed: int) -> None:
    (p, q), x = draw(spec, 2, seed), random_params(spec)
    assert_same((p @ q).apply(x), p.apply(q.apply(x)))


@every_spec
def test_the_order_of_a_product_matters(spec: PermutationSpec) -> None:
    (p, q), x = draw(spec, 2), random_params(spec)
    assert p @ q != q @ p
    with pytest.raises(AssertionError):
        assert_same((q @ p).apply(x), p.apply(q.apply(x)))


@every_spec
def test_every_moved_tensor_is_moved(spec: PermutationSpec) -> None:
    identity, x = Permutation.identity(spec), random_params(spec)
    moved = Permutation(spec, {name: index.roll(1, -1) for name, index in identity.indices.items()}).apply(x)
    assert all(not torch.equal(moved[name], x[name]) for name in spec.matched)


@nested_spec
def test_a_nested_inverse_is_not_row_by_row(spec: PermutationSpec) -> None:
    (p,) = draw(spec, 1)
    by_row = Permutation(spec, {name: index.argsort(-1) for name, index in p.indices.items()})
    assert by_row != p.inverse()
    assert by_row @ p != Permutation.identity(spec)


@pytest.mark.parametrize("spec", FLAT.values(), ids=FLAT)
def test_a_flat_inverse_is_row_by_row(spec: PermutationSpec) -> None:
    (p,) = draw(spec, 1)
    assert all(torch.equal(index, p.indices[name].argsort(-1)) for name, index in p.inverse().indices.items())


def test_nested_apply_against_loops() -> None:
    """New unit i of new head a is old unit j = unit[a, i] of old head head[a], wherever units and heads stand."""
    spec = nested_heads()
    (p,), x = draw(spec, 1), random_params(spec)
    head, unit, stream = (p.indices[name].tolist() for name in ("head", "unit", "stream"))
    moved = p.apply(x)
    for a, i in itertools.product(range(3), range(5)):
        new, old = 5 * a + i, 5 * head[a] + unit[a][i]
        torch.testing.assert_close(moved["query"][new], x["query"][old], rtol=0, atol=0)
        torch.testing.assert_close(moved["cube"][a, i], x["cube"][head[a], unit[a][i]], rtol=0, atol=0)
        torch.testing.assert_close(moved["turned"][i, :, a], x["turned"][unit[a][i], :, head[a]], rtol=0, atol=0)
        torch.testing.assert_close(moved["out"][:, new], x["out"][stream, old], rtol=0, atol=0)
        torch.testing.assert_close(moved["fused"][new], x["fused"][old, stream], rtol=0, atol=0)
    torch.testing.assert_close(moved["gate"], x["gate"][head], rtol=0, atol=0)
    torch.testing.assert_close(moved["fused"][22:], x["fused"][22:, stream], rtol=0, atol=0)


def test_the_whole_nested_group() -> None:
    """2 heads of 2 units: 2! * 2!^2 = 8 elements, closed under composition, each with an effect of its own."""
    shapes = {"weight": (2, 2)}
    flat = PermutationSpec.from_axes({"weight": ("head", "unit")}, shapes)
    spec = PermutationSpec(flat.sizes, flat.tensors, {"unit": ("head",)})
    rows = [torch.tensor(order) for order in itertools.permutations(range(2))]
    elements = [
        Permutation(spec, {"head": head, "unit": torch.stack([first, second])})
        for head, first, second in itertools.product(rows, repeat=3)
    ]
    assert len(elements) == 8 == round(10 ** spec.log10_symmetries())
    assert all(any(p @ q == r for r in elements) for p in elements for q in elements)
    x = {"weight": torch.arange(4.0).reshape(2, 2)}
    assert len({tuple(p.apply(x)["weight"].flatten().tolist()) for p in elements}) == 8


def test_random_draws_are_uniform() -> None:
    """Each of the 8 elements above comes up in 1/8 of the draws (chi-squared far below its 99.9 % bound of 24.3)."""
    spec = PermutationSpec.from_axes({"w": ("head", "unit")}, {"w": (2, 2)})
    spec = PermutationSpec(spec.sizes, spec.tensors, {"unit": ("head",)})
    generator = torch.Generator().manual_seed(0)
    counts: dict[str, int] = {}
    for _ in range(800):
        key = Permutation.random(spec, generator).to_json()
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 8
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 24.3


@every_spec
def test_number_of_symmetries(spec: PermutationSpec) -> None:
    orders = [math.factorial(shape[-1]) ** math.prod(shape[:-1]) for shape in map(spec.index_shape, spec.sizes)]
    assert spec.log10_symmetries() == pytest.approx(math.log10(math.prod(orders)))
