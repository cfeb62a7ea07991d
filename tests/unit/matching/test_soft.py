"""Soft orders: at permutations exactly what a permutation does, in between the mean over orders; and back."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import SUPPORTED, Case, params, spec_of
from helpers import assert_same
from specs import SPECS, flat_mlp, nested_deeply, nested_heads, random_params

from onebasin.matching import WeightMatching
from onebasin.matching.assignment import solve
from onebasin.matching.soft import apply_softly, hardened, joint_pairs, nearest, pair_dims, value_at
from onebasin.matching.terms import Labelled
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

TOYS = [case for case in SUPPORTED if not case.deep]


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def in_full(spec: PermutationSpec, permutation: Permutation) -> dict[str, Labelled]:
    """Return zeros and ones for every pair of units of the parents too."""
    result = {}
    for name, order in hardened(permutation, torch.float64).items():
        dims = pair_dims(spec, name)
        result[name] = Labelled(order.aligned(dims).expand([spec.sizes[dim.group] for dim in dims]), dims)
    return result


@pytest.mark.parametrize("case", TOYS, ids=lambda case: case.name)
def test_at_a_permutation_params_are_those_of_the_permutation(case: Case) -> None:
    spec, theta = spec_of(case), params(case)
    drawn = draw(spec, 1)
    found = apply_softly(theta, hardened(drawn, torch.float64), spec)
    assert_same(found, drawn.apply(theta) | {n: t for n, t in theta.items() if not t.is_floating_point()})
    other = apply_softly(theta, hardened(draw(spec, 2), torch.float64), spec)
    assert not all(torch.equal(other[name], found[name]) for name in spec.matched)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_at_a_permutation_the_value_is_that_of_the_objective(spec: PermutationSpec) -> None:
    a, b = ({n: t.double() for n, t in random_params(spec, seed).items()} for seed in range(2))
    wanted, drawn = WeightMatching().objective(spec, a, b), draw(spec, 3)
    for orders in (hardened(drawn, torch.float64), in_full(spec, drawn)):
        assert value_at(wanted, orders).item() == pytest.approx(wanted.value(drawn), rel=1e-12)
    assert value_at(wanted, hardened(draw(spec, 4), torch.float64)).item() != pytest.approx(wanted.value(drawn))


def test_a_mixture_of_two_orders_gives_the_mean_over_independent_draws() -> None:
    """Of every tensor, each of its two groups drawn by itself."""
    spec = flat_mlp()
    b, one, other = random_params(spec, 0), draw(spec, 1), draw(spec, 2)
    ends = [hardened(order) for order in (one, other)]
    mixed = {n: Labelled(0.25 * ends[0][n].values + 0.75 * ends[1][n].values, ends[0][n].dims) for n in spec.sizes}
    expected: Params = {name: torch.zeros_like(tensor) for name, tensor in b.items()}
    for (p, weight_p), (q, weight_q) in itertools.product([(one, 0.25), (other, 0.75)], repeat=2):
        both = Permutation(spec, {"P0": p.indices["P0"], "P1": q.indices["P1"]}).apply(b)
        expected = {name: total + weight_p * weight_q * both[name] for name, total in expected.items()}
    for name, tensor in apply_softly(b, mixed, spec).items():
        torch.testing.assert_close(tensor, expected[name])


def test_nested_orders_are_averaged_over_the_pairs_of_their_parents() -> None:
    """Half one order of heads and half another, each pair of heads with an order of its own units."""
    spec = nested_heads()
    b, one, other = random_params(spec, 0), draw(spec, 1), draw(spec, 8)
    ends = [in_full(spec, order) for order in (one, other)]
    head = Labelled((ends[0]["head"].values + ends[1]["head"].values) / 2, ends[0]["head"].dims)
    unit = ends[0]["unit"].values.clone()
    for new, old in enumerate(other.indices["head"].tolist()):
        assert old != one.indices["head"][new], "the two orders must differ for every head"
        unit[new, old] = ends[1]["unit"].values[new, old]
    orders = {"head": head, "unit": Labelled(unit, ends[0]["unit"].dims), "stream": ends[0]["stream"]}
    found = apply_softly(b, orders, spec)
    moved = [Permutation(spec, {**p.indices, "stream": one.indices["stream"]}).apply(b) for p in (one, other)]
    for name in ("query", "cube", "turned", "gate", "out"):
        torch.testing.assert_close(found[name], ((moved[0][name] + moved[1][name]) / 2).double(), check_dtype=False)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_gradient_reaches_every_order(spec: PermutationSpec) -> None:
    orders = in_full(spec, draw(spec, 1))
    free = {name: Labelled(order.values.clone().requires_grad_(), order.dims) for name, order in orders.items()}
    tensors = apply_softly(random_params(spec), free, spec)
    sum(tensor.square().sum() for tensor in tensors.values()).backward()  # type: ignore[union-attr]
    assert all(order.values.grad is not None and order.values.grad.abs().sum() > 0 for order in free.values())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_permutation_that_is_a_little_soft_is_rounded_to_itself(spec: PermutationSpec) -> None:
    drawn = draw(spec, 1)
    soft = {n: Labelled(0.7 * o.values + 0.3 / o.values.shape[-1], o.dims) for n, o in in_full(spec, drawn).items()}
    assert nearest(joint_pairs(spec, soft), Permutation.identity(spec), solve) == drawn


def test_groups_without_a_soft_order_stay_as_they_are() -> None:
    spec, start = nested_deeply(), draw(nested_deeply(), 2)
    orders = {name: order for name, order in in_full(spec, draw(spec, 1)).items() if name in ("kv", "head", "unit")}
    found = nearest(joint_pairs(spec, orders), start, solve)
    assert torch.equal(found.indices["key"], start.indices["key"])
    assert not torch.equal(found.indices["unit"], start.indices["unit"])


def test_half_precision_comes_out_in_float32() -> None:
    spec = nested_heads()
    b = {name: tensor.bfloat16() for name, tensor in random_params(spec).items()}
    found, drawn = apply_softly(b, hardened(draw(spec, 1)), spec), draw(spec, 1).apply(b)
    assert_same(found, {name: tensor.float() for name, tensor in drawn.items()})
