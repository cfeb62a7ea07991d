"""Weight matching against the plain schedule: everything computed anew in float64, every group solved every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import SUPPORTED, Case, params, spec_of
from specs import SPECS, random_params

from onebasin.layout import Interleave, Leaf, Product, Sum
from onebasin.matching import CoordinateDescent, Objective, WeightMatching, assignment, coordinate_descent
from onebasin.matching.gains import Level, rows_of
from onebasin.matching.joint import JointStep
from onebasin.matching.terms import new
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


def plain(objective: Objective, start: Permutation, seed: int, sweeps: int = 100) -> tuple[Permutation, list[float]]:
    """Do coordinate descent without keeping anything from one step to the next."""
    spec, permutation = objective.spec, start
    history, least = [objective.value(start)], 1e-12 * objective.scale()
    held = {name for term in objective.blocks for name in term.unmoved}
    tops = [name for name in spec.sizes if name in held and not spec.parents.get(name)]
    for order in CoordinateDescent(seed, sweeps)._orders(tops):
        before = permutation
        for group in order:
            _, rows = JointStep(Level(spec), assignment.solve)(
                list(objective.terms(group)), rows_of(permutation), group
            )
            index = {n: row.aligned([new(g) for g in (*spec.parents.get(n, ()), n)]) for n, row in rows.items()}
            tried = replace(permutation, indices={**permutation.indices, **index})
            if objective.value(tried) > objective.value(permutation) + least:
                permutation = tried
        history.append(objective.value(permutation))
        if permutation == before:
            break
    return permutation, history


def wide(params: Params) -> Params:
    return {name: x.double() if x.is_floating_point() else x for name, x in params.items()}


def narrow(params: Params, dtype: torch.dtype) -> Params:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in params.items()}


def check(spec: PermutationSpec, a: Params, b: Params, start: Permutation, seed: int) -> None:
    objective = WeightMatching().objective(spec, a, b)
    matcher = WeightMatching(seed=seed)
    expected, history = plain(WeightMatching().objective(spec, wide(a), wide(b)), start, seed)
    found = matcher.match(spec, a, b, start)
    assert found.objective[-1] == objective.value(found.permutation) == pytest.approx(history[-1], rel=1e-6, abs=1e-6)
    assert list(found.objective) == sorted(found.objective)
    assert 0 <= found.certificate.gap < 1e-9
    if a[spec.matched[0]].dtype == torch.float64:
        assert found.permutation == expected
        assert found.objective == pytest.approx(history[: len(found.objective)], rel=1e-12, abs=1e-12)


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


# The plain schedule takes minutes on the deepest.
DEEP = ("resnet20_pad", "resnet50", "vgg16_bn")
CASES = [case for case in SUPPORTED if case.name in DEEP or not case.deep]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_ends_where_the_plain_schedule_ends(case: Case) -> None:
    spec = spec_of(case)
    a, b = params(case, 1), params(case, 2)
    check(spec, wide(a), wide(b), draw(spec, 3), seed=4)


LAYOUTS = {
    "a stream with many terms": PermutationSpec.from_axes(
        {**{f"in{k}": (f"P{k}", "stream") for k in range(3)}, **{f"out{k}": ("stream", f"P{k}") for k in range(3)},
         "embed": (None, "stream"), "norm": ("stream",)},
        {**{f"in{k}": (11, 29) for k in range(3)}, **{f"out{k}": (29, 11) for k in range(3)},
         "embed": (23, 29), "norm": (29,)},
    ),
    "convolutions": PermutationSpec.from_axes(
        {"1": ("P0", None, None, None), "2": ("P1", "P0", None, None), "3": ("P0", "P1", None, None),
         "fc": (None, Product((Leaf(13, "P0"), Leaf(4))))},
        {"1": (13, 3, 3, 3), "2": (17, 13, 3, 3), "3": (13, 17, 1, 1), "fc": (5, 52)},
    ),
    "parts in turn": PermutationSpec.from_axes(
        {"1": ("P0", None), "2": ("P1", None), "3": ("P2", Interleave((Leaf(13, "P0"), Leaf(13, "P1")))),
         "4": (Sum((Leaf(11, "P2"), Leaf(3), Leaf(13, "P0"))), "P1"), "5": (None, "P2")},
        {"1": (13, 7), "2": (13, 7), "3": (11, 26), "4": (27, 13), "5": (3, 11)},
    ),
    "fed back": PermutationSpec.from_axes(
        {"in": ("P0", "P1"), "back": ("P0", "P0"), "up": ("P1", None), "out": (None, "P0"), "pair": ("P1", "P0", "P0")},
        {"in": (13, 11), "back": (13, 13), "up": (11, 5), "out": (5, 13), "pair": (11, 13, 13)},
    ),
    **SPECS,
}  # fmt: skip


@pytest.mark.parametrize("spec", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_layout_ends_where_the_plain_schedule_ends(spec: PermutationSpec, dtype: torch.dtype) -> None:
    for seed in range(3):
        a, b = narrow(random_params(spec, seed), dtype), narrow(random_params(spec, seed + 10), dtype)
        check(spec, a, b, draw(spec, seed), seed)


@pytest.mark.parametrize("spec", LAYOUTS.values(), ids=LAYOUTS)
def test_without_memory_to_spare_it_is_the_same(spec: PermutationSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = wide(random_params(spec, 0)), wide(random_params(spec, 10))
    amply = WeightMatching().match(spec, a, b, draw(spec, 0))
    monkeypatch.setattr(coordinate_descent, "LEAST_BUDGET", 0)
    monkeypatch.setattr(coordinate_descent, "BUDGET", 0.0)
    barely = WeightMatching().match(spec, a, b, draw(spec, 0))
    assert barely.permutation == amply.permutation
    assert barely.objective == pytest.approx(amply.objective, rel=1e-12)
