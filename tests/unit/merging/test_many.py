"""MergeMany: the distance to the mean never rises, copies come together, and cycles of permutations close."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import case, params, spec_of
from helpers import assert_same, clone
from many_models import check_spread_and_mean, copies, mean_squared_distance, strangers
from nets import SPEC, data, net
from torch import Tensor

import onebasin
from onebasin.activations import Activations
from onebasin.errors import ParamsError, UsageError
from onebasin.functional import Predict
from onebasin.interpolate import mean
from onebasin.matching import (
    ActivationMatching,
    Alignment,
    Certificate,
    Criterion,
    StopReason,
    StraightThrough,
    WeightMatching,
    align,
)
from onebasin.merging import Merge, merge, merge_many, merge_universe
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


@pytest.mark.parametrize(("name", "count"), [("wide", 2), ("wide", 5), ("grouped_query", 2), ("unet", 2)])
def test_copies_in_other_orders_come_together(name: str, count: int) -> None:
    spec, models, drawn = copies(name, count)
    found = merge_many(spec, models, seed=1)
    assert found.stop is StopReason.CONVERGED
    assert found.permutations[0] == Permutation.identity(spec)
    for permutation, own in zip(found.permutations, drawn, strict=True):
        assert permutation == drawn[0] @ own.inverse()
    for key, tensor in models[0].items():
        torch.testing.assert_close(found.params[key], tensor)
    assert not all(torch.allclose(mean(models)[key], models[0][key], rtol=0.1) for key in spec.matched)
    assert found.spread[-1] < 1e-20 < found.spread[0]


@pytest.mark.parametrize("run", [merge_many, merge_universe])
@pytest.mark.parametrize("weights", [None, [2.0, 3.0, 5.0, 0.0]])
@pytest.mark.parametrize("name", ["mlp3", "fused_qkv", "lstm"])
def test_the_distance_to_the_mean_never_rises(
    name: str, weights: list[float] | None, run: Callable[..., Merge]
) -> None:
    spec, models = strangers(name, 4)
    given = [clone(model) for model in models]
    found = run(spec, models, weights=weights)
    check_spread_and_mean(found, spec, models, weights or [1.0] * 4)
    for model, before in zip(models, given, strict=True):
        assert_same(model, before)


def test_it_ends_where_no_model_can_come_closer_to_the_mean_of_the_others() -> None:
    spec, models = strangers("mlp3", 5)
    found = merge_many(spec, models)
    assert found.stop is StopReason.CONVERGED
    moved = [permutation.apply(model) for permutation, model in zip(found.permutations, models, strict=True)]
    for number, model in enumerate(moved):
        others = mean([other for k, other in enumerate(moved) if k != number])
        assert align(spec, others, model).permutation == Permutation.identity(spec)
    assert found.spread[-1] < mean_squared_distance(spec, models, [1.0] * 5)


def test_all_alike_come_closer_than_aligned_to_one() -> None:
    spec, models = strangers("mlp3", 5)
    reference = merge(spec, models)
    moved = [permutation.apply(model) for permutation, model in zip(reference.permutations, models, strict=True)]
    assert merge_many(spec, models).spread[-1] < mean_squared_distance(spec, moved, [1.0] * 5)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_cycles_close_exactly(count: int) -> None:
    spec, models = strangers("grouped_query", count)
    found, one = merge_many(spec, models), Permutation.identity(spec)
    for cycle in itertools.permutations(range(count), 3):
        around = one
        for reference, moved in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
            around = around @ found.between(reference, moved)
        assert around == one


def test_pairwise_alignments_do_not_close() -> None:
    """The negative twin."""
    spec, (a, b, c) = strangers("mlp3", 3)
    pairs = [align(spec, x, y).permutation for x, y in ((a, b), (b, c), (c, a))]
    assert pairs[0] @ pairs[1] @ pairs[2] != Permutation.identity(spec)


def test_two_models_as_close_as_by_weight_matching() -> None:
    spec, models = strangers("mlp1", 2)
    found, pair = merge_many(spec, models), align(spec, *models)
    assert found.permutations[1] == pair.permutation  # one hidden layer: the optimum


def test_the_same_seed_gives_the_same_and_another_may_not() -> None:
    spec, models = strangers("mlp3", 4)
    runs = [merge_many(spec, models, seed=seed) for seed in (0, 0, 1)]
    assert_same(runs[0].params, runs[1].params)
    assert runs[0].permutations == runs[1].permutations
    assert runs[0].permutations != runs[2].permutations


def test_the_round_limit_is_told() -> None:
    spec, models = strangers("mlp3", 4)
    found = merge_many(spec, models, max_rounds=1)
    assert found.stop is StopReason.MAX_SWEEPS
    assert len(found.spread) == 2


def test_an_interrupt_keeps_the_best_so_far() -> None:
    spec, models = strangers("mlp3", 4)
    steps = itertools.count(1)

    def interrupt(task: str, done: int, total: int) -> None:
        if task == "merge" and next(steps) == 3:
            raise KeyboardInterrupt

    found = merge_many(spec, models, progress=interrupt)
    assert found.stop is StopReason.INTERRUPTED
    assert len(found.alignments) == 3
    assert found.spread[-1] < found.spread[0]


def test_a_matcher_that_does_not_know_the_weights_cannot_raise_the_distance() -> None:
    spec, models = strangers("mlp3", 3)
    measure = Activations(case("mlp3").model(), [(*case("mlp3").inputs(seed),) for seed in range(3)])
    found = merge_many(spec, models, ActivationMatching(measure))
    assert list(found.spread) == sorted(found.spread, reverse=True)


@dataclass(frozen=True)
class Told:
    """Always finds the same order, and goes by a criterion or by nothing."""

    order: Permutation
    criterion: Criterion | None

    def match(self, spec: PermutationSpec, a: Params, b: Params, start: Permutation, *_: object) -> Alignment:
        return Alignment(self.order, (0.0,), StopReason.FINISHED, Certificate(), self, 0.0)


def test_a_matcher_with_a_criterion_is_judged_by_that_alone() -> None:
    """Two equal networks: in any other order weights are further apart, and outputs half way smaller."""
    c, spec = case("mlp3"), spec_of(case("mlp3"))
    theta, order = params(c), Permutation.random(spec, torch.Generator().manual_seed(1))

    def small(predict: Predict, batch: Tensor) -> Tensor:
        return predict(batch).square().mean()

    def large(predict: Predict, batch: Tensor) -> Tensor:
        return -small(predict, batch)

    batches = [c.inputs(seed)[0] for seed in range(3)]
    lower, higher = (Criterion(c.model(), batches, loss) for loss in (small, large))
    between = lower.between(theta, theta)
    assert between.at(order) < between.at(Permutation.identity(spec))
    taken = merge_many(spec, [theta, theta], Told(order, lower), max_rounds=1)
    assert taken.spread[-1] > taken.spread[0] == 0
    for criterion in (higher, None):
        left = merge_many(spec, [theta, theta], Told(order, criterion))
        assert left.permutations[1] == Permutation.identity(spec)
        assert left.stop is StopReason.CONVERGED


def test_what_follows_a_loss_is_judged_by_it() -> None:
    matcher = StraightThrough(net(2), data(61), epochs=30)
    a, b = params_of(net(0)), params_of(net(1))
    loss = matcher.criterion.between(a, b)
    found = merge_many(SPEC, [a, b], matcher, max_rounds=2)
    assert loss.at(found.between(0, 1)) < loss.at(Permutation.identity(SPEC)) - 1e-3


@pytest.mark.parametrize("merged", [merge_many, merge_universe])
def test_half_precision_comes_back_in_its_own_dtype(merged: Callable[..., Merge]) -> None:
    spec, models, _ = copies("wide", 3)
    halves = [{key: tensor.to(torch.bfloat16) for key, tensor in model.items()} for model in models]
    found = merged(spec, halves)
    for key, tensor in halves[0].items():
        torch.testing.assert_close(found.params[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("merged", [merge_many, merge_universe])
def test_tied_tensors_stay_tied(merged: Callable[..., Merge]) -> None:
    spec, models = strangers("tied_embedding", 3)
    found = merged(spec, models)
    assert spec.ties
    for names in spec.ties:
        assert len({found.params[name].data_ptr() for name in names}) == 1


def test_provenance_is_plain_and_complete() -> None:
    spec, models = strangers("mlp1", 3)
    found = merge_many(spec, models, WeightMatching(seed=7), weights=[1, 2, 3], seed=5)
    made = json.loads(json.dumps(found.provenance, allow_nan=False))
    assert made == found.provenance
    assert (made["models"], made["seed"], made["settings"]["seed"], made["weights"]) == (3, 5, 7, [1, 2, 3])
    assert "every model aligned to the mean" in str(found)
    assert f"in {len(found.spread) - 1} rounds" in str(found)
    assert "\nmodel 1: " in str(found)


def test_what_does_not_fit_is_refused() -> None:
    spec, models = strangers("mlp1", 2)
    with pytest.raises(UsageError, match="1 models to merge"):
        merge_many(spec, models[:1])
    with pytest.raises(UsageError, match="max_rounds=0"):
        merge_many(spec, models, max_rounds=0)
    for weights in ([1.0], [1.0, 0.0], [2.0, -1.0], [1.0, math.nan]):
        with pytest.raises(UsageError, match="2 models and the weights"):
            merge_many(spec, models, weights=weights)
    with pytest.raises(ParamsError, match="model 2"):
        merge_many(spec, [models[0], {**models[1], "0.bias": models[1]["0.bias"] / 0}])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("best", "pass ob.Best(model, batches)"),
        ("weigth", "pass ob.WeightMatching()"),
        ("bset", "pass ob.Best(model, batches)"),
        ("nothing like it", "pass one of these objects"),
        ("", "pass one of these objects"),
        (WeightMatching, "the class WeightMatching"),
        (7, "7 as matcher"),
    ],
)
def test_what_is_no_matcher_is_refused_before_any_work(given: object, words: str) -> None:
    spec, models, _ = copies("wide", 2)
    for run in (merge, merge_many, merge_universe):
        with pytest.raises(UsageError, match=re.escape(words)):
            run(spec, models, given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        align(spec, *models, given)  # type: ignore[arg-type]
    for name in re.findall(r"ob\.(\w+)", caught.value.expected):
        assert hasattr(onebasin, name)
    align(spec, *models, None)
