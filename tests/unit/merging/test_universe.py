"""The universe: cycles close, copies come together, the relaxed objective never falls, and it ends closer."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from many_models import copies, strangers
from specs import SPECS, random_params

from onebasin.errors import UsageError
from onebasin.interpolate import mean
from onebasin.matching import StopReason, WeightMatching, align
from onebasin.matching.assignment import solve
from onebasin.matching.mixture import Mixture, slots
from onebasin.matching.soft import nearest
from onebasin.merging import merge_many, merge_universe
from onebasin.merging.universe import Universe
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


def universe_of(spec: PermutationSpec, count: int) -> Universe:
    models = [{n: t.double() for n, t in random_params(spec, seed).items()} for seed in range(count)]
    shares = [number + 1 for number in range(count)]
    return Universe(spec, models, [share / sum(shares) for share in shares])


def chain(seed: int, count: int) -> tuple[PermutationSpec, list[Params]]:
    """Independent MLPs whose units have weights of norm one in the mean."""
    sizes = (41, 31, 29, 37, 7)
    names = [None, "P0", "P1", "P2", None]
    spec = PermutationSpec.from_axes(
        {f"{layer}": (names[layer + 1], names[layer]) for layer in range(4)},
        {f"{layer}": (sizes[layer + 1], sizes[layer]) for layer in range(4)},
    )
    models = [random_params(spec, 100 * seed + number) for number in range(count)]
    return spec, [{n: t / t.shape[-1] ** 0.5 for n, t in model.items()} for model in models]


@pytest.mark.parametrize(
    ("name", "count"), [("wide", 2), ("wide", 5), ("grouped_query", 3), ("unet", 2), ("lstm", 3), ("fused_qkv", 3)]
)
def test_copies_in_other_orders_come_together(name: str, count: int) -> None:
    spec, models, drawn = copies(name, count)
    found = merge_universe(spec, models)
    assert found.stop is StopReason.CONVERGED
    for permutation, own in zip(found.permutations, drawn, strict=True):
        assert permutation == drawn[0] @ own.inverse()
    for key, tensor in models[0].items():
        torch.testing.assert_close(found.params[key], tensor)
    assert not all(torch.allclose(mean(models)[key], models[0][key], rtol=0.1) for key in spec.matched)
    assert found.spread[-1] < 1e-12 * found.spread[0]


@pytest.mark.parametrize(("name", "count"), [("grouped_query", 3), ("mlp3", 4), ("mlp3", 5)])
def test_cycles_close_exactly(name: str, count: int) -> None:
    spec, models = strangers(name, count)
    found, one = merge_universe(spec, models), Permutation.identity(spec)
    for length in range(2, count + 1):
        for cycle in itertools.permutations(range(count), length):
            around = one
            for reference, moved in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
                around = around @ found.between(reference, moved)
            assert around == one
    assert found.between(0, 1) != one, "there is something to compose"


def test_pairs_matched_by_frank_wolfe_do_not_close() -> None:
    """The negative twin."""
    spec, (a, b, c) = strangers("grouped_query", 3)
    matcher = WeightMatching(solver="frank-wolfe")
    pairs = [align(spec, x, y, matcher).permutation for x, y in ((a, b), (b, c), (c, a))]
    assert pairs[0] @ pairs[1] @ pairs[2] != Permutation.identity(spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_gradient_is_that_of_finite_differences(spec: PermutationSpec) -> None:
    """At soft orders of all models; also of a group on two axes, and of nested ones."""
    universe, drawn = universe_of(spec, 3), Permutation.random(spec, torch.Generator().manual_seed(7))
    universe.relax(2, 0.0, lambda *_: None)
    universe.soft[0] = own = Mixture(spec, (None, drawn), (0.4, 0.6))
    gradient, value = universe._taken_out(0)
    towards = nearest(gradient, Permutation.identity(spec), solve)
    slope = sum(Mixture(spec, (towards,)).worth(pairs) - own.worth(pairs) for pairs in gradient.values())
    ends = [universe._value(0, own.towards(towards, length)) for length in (1e-5, 2e-5)]
    assert (4 * ends[0] - ends[1] - 3 * value) / 2e-5 == pytest.approx(slope, rel=1e-5)
    away = sum(Mixture(spec, (drawn,)).worth(pairs) - own.worth(pairs) for pairs in gradient.values())
    assert slope > max(away, 0)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_relaxed_objective_never_falls_and_is_what_it_says(spec: PermutationSpec) -> None:
    universe = universe_of(spec, 4)
    universe.relax(6, 0.0, lambda *_: None)
    assert universe.values == sorted(universe.values)
    assert universe.values[-1] > universe.values[0]
    total = {name: torch.zeros_like(tensor) for name, tensor in universe._sum.items()}
    own = 0.0
    fresh = Universe(spec, universe.models, universe.shares)
    fresh._sum, fresh.soft = total, universe.soft
    for number, share in enumerate(universe.shares):
        fresh._put(number)
        for term in fresh._terms(number):
            own += (
                share**2
                * universe.soft[number].mixed(term.b, slots(spec, term.b)).aligned(term.a.dims).square().sum().item()
            )
    for name, tensor in total.items():
        torch.testing.assert_close(universe._sum[name], tensor)
    assert universe.values[-1] == pytest.approx((sum(t.square().sum().item() for t in total.values()) - own) / 2)


@pytest.mark.parametrize("count", [3, 4])
def test_it_comes_closer_than_merge_many_on_independent_networks(count: int) -> None:
    reached = {"many": 0.0, "universe": 0.0}
    for seed in range(2):
        spec, models = chain(seed, count)
        many, universe = merge_many(spec, models), merge_universe(spec, models)
        reached["many"] += 1 - many.spread[-1] / many.spread[0]
        reached["universe"] += 1 - universe.spread[-1] / universe.spread[0]
    assert reached["universe"] > 1.03 * reached["many"]


def test_the_rounds_at_the_end_take_the_matcher() -> None:
    spec, models = strangers("mlp3", 3)
    found = merge_universe(spec, models, WeightMatching(max_sweeps=1), max_rounds=1)
    assert {type(one.matcher) for one in found.alignments} == {WeightMatching}
    assert found.provenance["settings"]["max_sweeps"] == 1
    assert all(len(one.objective) == 2 for one in found.alignments)


def test_a_model_without_weight_is_aligned_too() -> None:
    spec, models, drawn = copies("wide", 3)
    found = merge_universe(spec, models, weights=[1.0, 0.0, 2.0])
    assert found.permutations[1] == drawn[0] @ drawn[1].inverse()


@pytest.mark.parametrize(("task", "at"), [("relaxing", 1), ("relaxing", 9), ("merge", 2)])
def test_an_interrupt_keeps_the_best_so_far(task: str, at: int) -> None:
    spec, models = strangers("mlp3", 4)

    def interrupt(now: str, done: int, total: int) -> None:
        if (now, done) == (task, at):
            raise KeyboardInterrupt

    found = merge_universe(spec, models, progress=interrupt)
    assert found.stop is StopReason.INTERRUPTED
    assert found.spread[-1] <= found.spread[0]
    if at > 1:
        assert found.spread[-1] < found.spread[0]
    assert str(found)


def test_provenance_and_what_is_refused() -> None:
    spec, models = strangers("mlp1", 3)
    found = merge_universe(spec, models, weights=[1, 2, 3], seed=5, steps=7)
    made: dict[str, Any] = json.loads(json.dumps(found.provenance, allow_nan=False))
    assert made == found.provenance
    assert (made["models"], made["seed"], made["steps"], made["weights"]) == (3, 5, 7, [1, 2, 3])
    assert "one universe" in str(found)
    with pytest.raises(UsageError, match="steps=0"):
        merge_universe(spec, models, steps=0)
    with pytest.raises(UsageError, match="1 models to merge"):
        merge_universe(spec, models[:1])
    with pytest.raises(UsageError, match="max_rounds=0"):
        merge_universe(spec, models, max_rounds=0)
