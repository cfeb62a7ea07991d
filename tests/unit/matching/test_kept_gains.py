"""A gain matrix that is kept: brought up to date by what changed, and found worn when it drifts."""

from __future__ import annotations

import pytest
import torch
from specs import random_params

from onebasin.matching import Objective, WeightMatching, products
from onebasin.matching.gains import DRIFT, FEW, FamilyGains, rows_of
from onebasin.matching.products import Budget
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

WIDTHS = {"P0": 29, "P1": 31, "P2": 37}


def deep_mlp() -> PermutationSpec:
    axes = {"1": ("P0", None), "2": ("P1", "P0"), "2.bias": ("P1",), "3": ("P2", "P1"), "4": (None, "P2")}
    shapes = {"1": (29, 11), "2": (31, 29), "2.bias": (31,), "3": (37, 31), "4": (5, 37)}
    return PermutationSpec.from_axes(axes, shapes)


def objective_of(dtype: torch.dtype, positive: bool = False) -> Objective:
    """Features of an MLP, and a constant gain, in `dtype`; of `positive` ones, products are large."""
    spec = deep_mlp()
    a, b = ({name: x.to(dtype) for name, x in random_params(spec, seed).items()} for seed in (0, 1))
    if positive:
        a, b = ({name: x.abs() for name, x in side.items()} for side in (a, b))
    constant = torch.randn(31, 31, generator=torch.Generator().manual_seed(2)).to(dtype)
    return WeightMatching().objective(spec, a, b) + Objective(spec, gains={"P1": constant})


def swapped(p: Permutation, number: int) -> Permutation:
    """Exchange two units of the groups before and after P1."""
    indices = dict(p.indices)
    for name in ("P0", "P2"):
        order = torch.arange(WIDTHS[name])
        order[[number, number + 3]] = order[[number + 3, number]]
        indices[name] = indices[name][order]
    return Permutation(p.spec, indices)


def kept_after(objective: Objective, swaps: int, room: int = 1 << 20) -> tuple[FamilyGains, Permutation]:
    """Keep the gains of P1 while its neighbours change by two units each at a time."""
    family = FamilyGains(objective.spec, "P1", objective.holding("P1"), Budget(room))
    p = Permutation.random(objective.spec, torch.Generator().manual_seed(3))
    for number in range(swaps + 1):
        p = swapped(p, number % 25) if number else p
        family.update(rows_of(p))
    return family, p


def test_few_changes_are_added_and_give_the_gains() -> None:
    objective = objective_of(torch.float64)
    family, p = kept_after(objective, swaps=20)
    (kept,) = family.kept
    assert kept.added == 2 * 20
    torch.testing.assert_close(kept.update(rows_of(p)), objective.gain(p, "P1"), rtol=1e-12, atol=1e-12)


def test_many_changes_are_taken_anew() -> None:
    objective = objective_of(torch.float64)
    family, _ = kept_after(objective, swaps=3)
    (kept,) = family.kept
    far = Permutation.random(objective.spec, torch.Generator().manual_seed(9))
    torch.testing.assert_close(kept.update(rows_of(far)), objective.gain(far, "P1"), rtol=1e-12, atol=1e-12)
    assert kept.added == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rounding_alone_does_not_wear_a_matrix(dtype: torch.dtype) -> None:
    family, _ = kept_after(objective_of(dtype, positive=True), swaps=60)
    assert family.kept[0].may_be_worn()
    assert not family.renew()
    assert family.kept[0].matrix is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_matrix_that_has_drifted_is_worn_and_computed_anew(dtype: torch.dtype) -> None:
    objective = objective_of(dtype, positive=True)
    family, p = kept_after(objective, swaps=60)
    (kept,) = family.kept
    assert kept.matrix is not None
    kept.matrix[7, 5] += 50 * kept.scale * torch.finfo(kept.dtype).eps
    assert kept.is_worn()
    assert family.renew()
    assert kept.matrix is None
    torch.testing.assert_close(kept.update(rows_of(p)), objective.gain(p, "P1"))
    assert not family.renew()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_drift_is_measured_over_all_entries(dtype: torch.dtype, seed: int) -> None:
    family, _ = kept_after(objective_of(dtype), swaps=60)
    (kept,) = family.kept
    assert kept.matrix is not None
    error = torch.randn(kept.matrix.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    error *= DRIFT * kept.scale * torch.finfo(dtype).eps / error.norm()
    kept.matrix += error / 2
    assert not kept.is_worn()
    kept.matrix += error * 3 / 2
    assert kept.is_worn()


def test_what_was_added_counts_by_the_size_of_the_matrix_and_from_when_it_was_computed() -> None:
    positive, _ = kept_after(objective_of(torch.float32, positive=True), swaps=60)
    mixed, p = kept_after(objective_of(torch.float32), swaps=60)
    assert mixed.kept[0].added == positive.kept[0].added > FEW
    assert positive.kept[0].may_be_worn()
    assert not mixed.kept[0].may_be_worn()
    for kept in positive.kept:
        kept.matrix = None
    positive.update(rows_of(p))
    assert positive.kept[0].added == 0
    assert not positive.kept[0].may_be_worn()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_so_few_additions_wear_no_matrix_even_of_one_sign(dtype: torch.dtype) -> None:
    family, p = kept_after(objective_of(dtype, positive=True), swaps=0)
    (kept,) = family.kept
    while kept.added <= FEW:
        p = swapped(p, kept.added // 2 % 25 + 1)
        family.update(rows_of(p))
    assert kept.added > 2 * 40
    assert not kept.is_worn()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", [1, 7, 1024])
def test_rounding_is_bounded_and_not_by_much(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "BLOCK", block)
    objective = objective_of(dtype)
    family, p = kept_after(objective, swaps=5)
    (kept,) = family.kept
    for seed in range(20):
        other = Permutation.random(p.spec, torch.Generator().manual_seed(seed))
        after = {**rows_of(p), "P1": rows_of(other)["P1"]}
        gained, bounds = kept.change(rows_of(p), after)
        exact = kept.exact_change(rows_of(p), after)
        assert exact == pytest.approx(objective.value(Permutation(p.spec, {**p.indices, "P1": other.indices["P1"]}))
                                      - objective.value(p), rel=1e-9, abs=1e-9)  # fmt: skip
        loose, bound = bounds
        assert abs(gained - exact) <= bound <= loose
        assert bound < 1e3 * torch.finfo(kept.dtype).eps * kept.scale


def test_a_product_that_may_take_short_cuts_is_known_to_be_less_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products.roundoff(torch.float32) == 2**-24
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert products.roundoff(torch.float32) == 2**-7
    assert products.roundoff(torch.float64) == 2**-53


def test_without_room_nothing_is_kept() -> None:
    objective = objective_of(torch.float64)
    for room, keeps in ((0, False), (1 << 20, True)):
        family, _ = kept_after(objective, swaps=1, room=room)
        family.release()
        assert (family.kept[0].matrix is not None) == keeps
