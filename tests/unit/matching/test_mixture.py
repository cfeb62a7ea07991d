"""Mixtures: of one permutation exactly what it does, of all the mean, in between by shares; and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from specs import SPECS, nested_heads, random_params

from onebasin.matching import Objective
from onebasin.matching.assignment import solve
from onebasin.matching.gains import Level, rows_of
from onebasin.matching.mixture import Mixture, slots
from onebasin.matching.terms import Term, constant_term, feature_terms
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

SMALL = PermutationSpec.from_axes(
    {"in": ("P0", None), "mid": ("P1", "P0"), "square": ("P0", "P0"), "out": (None, "P1")},
    {"in": (3, 4), "mid": (2, 3), "square": (3, 3), "out": (5, 2)},
)


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def terms_of(spec: PermutationSpec) -> Iterator[Term]:
    for name, tensor in random_params(spec).items():
        yield from feature_terms(tensor.double(), tensor.double(), spec.tensors[name])


def mixed(mixture: Mixture, term: Term) -> torch.Tensor:
    found = mixture.mixed(term.b, slots(mixture.spec, term.b)).aligned(term.a.dims)
    return found.expand_as(term.a.values)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_one_member_is_that_permutation(spec: PermutationSpec) -> None:
    drawn, other = draw(spec, 1), draw(spec, 2)
    differ = False
    for term in terms_of(spec):
        found = mixed(Mixture(spec, (drawn,)), term)
        torch.testing.assert_close(
            found, Level(spec).settle(term, rows_of(drawn)).b.aligned(term.a.dims), rtol=0, atol=0
        )
        differ |= not torch.equal(found, mixed(Mixture(spec, (other,)), term))
    assert differ


def test_none_is_the_mean_of_all_permutations() -> None:
    every = [
        Permutation(SMALL, {"P0": torch.tensor(p), "P1": torch.tensor(q)})
        for p, q in itertools.product(itertools.permutations(range(3)), itertools.permutations(range(2)))
    ]
    whole = Mixture(SMALL, tuple(every), (1 / len(every),) * len(every))
    some = Mixture(SMALL, tuple(every[:3]), (1 / 3,) * 3)
    for term in terms_of(SMALL):
        torch.testing.assert_close(mixed(whole, term), mixed(Mixture(SMALL, (None,)), term))
    assert not all(torch.allclose(mixed(some, term), mixed(whole, term)) for term in terms_of(SMALL))


@pytest.mark.parametrize("start", [None, 3])
def test_steps_move_shares(start: int | None) -> None:
    first = None if start is None else draw(SMALL, start)
    one, other = draw(SMALL, 1), draw(SMALL, 2)
    found = Mixture(SMALL, (first,)).towards(one, 0.5).towards(other, 0.2).towards(one, 0.5)
    assert found.members == (first, one, other)
    assert found.shares == pytest.approx((0.2, 0.7, 0.1))
    assert found.towards(other, 1.0).members == (other,)
    assert found.towards(other, 0.0).shares == pytest.approx(found.shares)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_its_worth_is_the_mean_of_those_of_its_members(spec: PermutationSpec) -> None:
    one, other = draw(spec, 1), draw(spec, 2)
    mixture = Mixture(spec, (one, other), (0.25, 0.75))
    for name in spec.sizes:
        gain = torch.randn(spec.index_shape(name) * 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        values = [Objective(spec, gains={name: gain}).value(p) for p in (one, other)]
        found = mixture.worth({constant_term(spec, name, gain).a.dims: gain})
        assert found == pytest.approx(0.25 * values[0] + 0.75 * values[1])
        if values[0] != values[1]:
            assert found != pytest.approx(sum(values) / 2)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_is_rounded_to_the_member_that_weighs_most(spec: PermutationSpec) -> None:
    one, other, identity = draw(spec, 1), draw(spec, 2), Permutation.identity(spec)
    assert Mixture(spec, (one,)).rounded(identity, solve) == one
    for shares, heavy in (((0.2, 0.3, 0.5), one), ((0.2, 0.5, 0.3), other)):
        assert Mixture(spec, (None, other, one), shares).rounded(identity, solve) == heavy


def test_slots_are_what_moves_together() -> None:
    groups = []
    for name in ("out", "turned", "fused"):
        for term in feature_terms(*[random_params(nested_heads())[name]] * 2, nested_heads().tensors[name]):
            groups.append([[dim.group for dim in slot] for slot in slots(nested_heads(), term.b)])
    heads, stream = ["head", "unit"], ["stream"]
    assert groups == [[stream, heads], [heads], [heads, stream], [stream, stream], [stream]]
