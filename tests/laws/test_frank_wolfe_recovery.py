"""`align(a, P a)` by Frank-Wolfe finds its way back in one run; coordinate descent may need several visiting orders."""

from __future__ import annotations

import pytest
import torch
from cases import SUPPORTED, Case, params, spec_of

from onebasin.matching import WeightMatching, align
from onebasin.permutation import Permutation

TOYS = [case for case in SUPPORTED if not case.deep]


@pytest.mark.parametrize("case", TOYS, ids=lambda case: case.name)
def test_random_models_are_recovered_in_one_run(case: Case) -> None:
    """Compared through the weights: units that are equal in all that is matched may stand in for each other."""
    spec, a = spec_of(case), params(case)
    drawn = Permutation.random(spec, torch.Generator().manual_seed(0))
    found = align(spec, a, drawn.apply(a), WeightMatching(solver="frank-wolfe"))
    again = found.permutation.apply(drawn.apply(a))
    for name in spec.matched:
        torch.testing.assert_close(again[name], a[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", TOYS, ids=lambda case: case.name)
def test_other_models_are_not(case: Case) -> None:
    """The negative twin."""
    spec, a, b = spec_of(case), params(case), params(case, 1)
    moved = align(spec, a, b, WeightMatching(solver="frank-wolfe")).permutation.apply(b)
    assert not all(torch.equal(moved[name], a[name]) for name in spec.matched)
