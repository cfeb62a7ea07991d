"""Models without a spec: refused with a reason and a way out; and unknown operators, which freeze what they touch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cases import UNSUPPORTED, Unsupported
from helpers import difference, run
from models.unsupported import CustomOp, ramp

import onebasin
from onebasin.errors import UsageError
from onebasin.params import params_of
from onebasin.permutation import Permutation
from onebasin.symmetry.discover import permutation_spec
from onebasin.symmetry.rules import RULES
from onebasin.symmetry.rules.pointwise import pointwise


@pytest.mark.parametrize("case", UNSUPPORTED, ids=lambda case: case.name)
def test_refused_with_a_reason(case: Unsupported) -> None:
    with pytest.raises(case.error) as caught:
        permutation_spec(case.make(), case.draw(torch.Generator().manual_seed(0)))
    text = str(caught.value)
    assert all(part in text for part in ("expected:", "do this:", *case.says))


def test_an_unknown_operator_freezes_what_it_touches_and_is_named() -> None:
    model = CustomOp().double().eval()
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spec = permutation_spec(model, (x,))
    assert list(spec.sizes.values()) == [5], "only the units behind the operator are free"
    for tensor in ("fc1.weight", "fc1.bias", "fc2.weight"):
        assert "onebasin_tests::twice" in spec.explain(tensor)
        assert "unsupported.py:" in spec.explain(tensor), "the line of the user's model is named"
    assert "onebasin_tests" not in spec.explain("fc3.weight")
    moved = Permutation.random(spec, torch.Generator().manual_seed(0)).apply(params_of(model))
    assert difference(run(model, moved, (x,)), run(model, params_of(model), (x,))) < 1e-10


@contextmanager
def registered(name: str) -> Iterator[None]:
    """Have a rule for `name`, that of pointwise operators, for as long as it lasts."""
    onebasin.rule(name)(pointwise)
    try:
        yield
    finally:
        del RULES[name]


def test_a_registered_rule_sets_the_units_free() -> None:
    x = torch.ones(4, 3)
    with registered("onebasin_tests::twice"):
        assert sorted(permutation_spec(CustomOp(), (x,)).sizes.values()) == [5, 7]
    assert sorted(permutation_spec(CustomOp(), (x,)).sizes.values()) == [5]


def test_a_wrong_rule_is_caught_by_the_proof() -> None:
    with registered("onebasin_tests::ramp"):
        spec = permutation_spec(CustomOp(ramp), (torch.ones(4, 3),))
    assert sorted(spec.sizes.values()) == [5]
    assert "failed the numerical proof" in spec.explain("fc1.weight")


def test_a_rule_is_registered_for_a_full_name() -> None:
    with pytest.raises(UsageError, match="twice"):
        onebasin.rule("twice")
