"""What the benchmarks compare with, and how they count, on small networks."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from benchmarks import activation, growth, peers
from benchmarks.published import weight_matching
from benchmarks.timing import Phases, median_phases
from benchmarks.weight_matching import PHASES, PUBLISHED
from specs import random_params

import onebasin as ob
from onebasin.layout import Leaf, Product


def small() -> tuple[ob.PermutationSpec, ob.Params, ob.Params]:
    axes = {"1": ("P0", None), "2": ("P1", "P0"), "2.bias": ("P1",), "3": (None, "P1", None, None)}
    spec = ob.PermutationSpec.from_axes(axes, {"1": (29, 7), "2": (31, 29), "2.bias": (31,), "3": (5, 31, 3, 3)})
    a, b = ({name: x.double() for name, x in random_params(spec, seed).items()} for seed in (0, 1))
    return spec, a, b


def test_the_published_schedule_ends_where_weight_matching_ends() -> None:
    spec, a, b = small()
    orders, value, sweeps = weight_matching(spec, a, b, Phases(), seed=3)
    found = ob.align(spec, a, b, ob.WeightMatching(seed=3))
    assert found.objective[-1] == pytest.approx(value, rel=1e-12)
    assert all(torch.equal(orders[name], index) for name, index in found.permutation.indices.items())
    assert sweeps > 2


def test_the_published_schedule_refuses_what_it_does_not_know() -> None:
    grid = Product((Leaf(5, "P0"), Leaf(4)))
    spec = ob.PermutationSpec.from_axes({"1": ("P0", None), "2": (None, grid)}, {"1": (5, 3), "2": (2, 20)})
    with pytest.raises(ValueError, match="axis 1 of 2"):
        weight_matching(spec, random_params(spec, 0), random_params(spec, 1), Phases())


def test_every_phase_is_seen_and_nothing_is_counted_twice() -> None:
    spec, a, b = small()

    def match(phases: Phases) -> None:
        with phases.watching(PHASES):
            ob.align(spec, a, b, ob.WeightMatching(seed=3))

    begun = time.process_time()
    spent = median_phases(match, runs=1)
    assert spent.keys() == {*PHASES, "other"}
    assert all(spent[name] > 0 for name in PUBLISHED)
    assert sum(spent.values()) <= time.process_time() - begun


def test_a_phase_within_another_is_taken_out_of_it() -> None:
    phases = Phases()
    with phases.phase("outer"):
        with phases.phase("inner"):
            sum(range(300_000))
    assert phases.spent["inner"] > 10 * phases.spent["outer"]


def test_a_package_that_is_not_installed_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rebasin", None)
    (line,) = peers.run()
    assert "skipped" in str(line)
    assert "rebasin" in str(line)


def test_power_law_weights_have_falling_singular_values() -> None:
    values = torch.linalg.svdvals(growth.power_law(growth.chain(200, 2), 0)["1"])
    assert 4 < (values[0] / values[99]).item() < 40


def test_activation_matching_is_timed_in_its_parts_and_leaves_the_switch_of_torch_alone() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    found = list(activation.rows("small", lambda: activation.mlp(12, (7, 5)), (20, 3, 4), 2))
    parts = ["moments of all units", "the same, torch set to bfloat16 products", "tracing", "assignments"]
    assert [row.what.rpartition(": ")[2] for row in found] == parts
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert all(row.amount > 0 and row.ratio > 0 for row in found)
