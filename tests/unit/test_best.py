"""Best: what it chooses, what it keeps, and how it ends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from cases import case, params, spec_of
from nets import SPEC, data, net
from repairing import convnet
from repairing import net as repairable
from torch import Tensor
from torch.nn.functional import cross_entropy

from onebasin.batchnorm import recompute_batchnorm
from onebasin.best import Best
from onebasin.errors import UsageError
from onebasin.functional import Predict
from onebasin.matching import Criterion, StopReason, StraightThrough, align
from onebasin.merging import merge_many
from onebasin.params import params_of
from onebasin.permutation import Permutation
from onebasin.synthetic import synthetic_batches

A, B = params_of(net(0)), params_of(net(1))
INPUTS = [inputs for inputs, _ in data(61)]
HELD = Criterion(net(2), INPUTS).split()[1]


def draw(seed: int) -> Permutation:
    return Permutation.random(SPEC, torch.Generator().manual_seed(seed))


def test_it_is_as_good_as_weights_and_polish_better() -> None:
    inputs = [part for one, _ in data(480) for part in one.chunk(2)]
    best, between = Best(net(2), inputs, rounds=0), Criterion(net(2), inputs).between(A, B)
    alone = {n: between.at(align(SPEC, A, B, m).permutation) for n, m in best.candidates(SPEC, A, B).items()}
    assert len(alone) == 8
    assert len(set(alone.values())) > 3
    chosen = align(SPEC, A, B, best)
    taken = chosen.note.removeprefix("candidate ").split(" was best: ")[1]
    assert -chosen.objective[-1] == pytest.approx(alone[taken], rel=1e-10)
    assert alone[taken] <= alone["weights"]
    polished = align(SPEC, A, B, replace(best, rounds=5))
    held = Criterion(net(2), inputs).split()[1].between(A, B)
    assert -polished.objective[-1] == pytest.approx(held.at(polished.permutation), rel=1e-9)
    assert -polished.objective[-1] < held.at(chosen.permutation) - 1e-3
    assert polished.note.startswith(chosen.note)
    assert polished.stop is StopReason.FINISHED


def test_candidates_are_of_the_network_given() -> None:
    """With the statistics of another order of units the candidates would be wrong."""
    theta, p = A, draw(1)
    for name, matcher in Best(net(2), INPUTS).candidates(SPEC, theta, p.apply(theta)).items():
        found = align(SPEC, theta, p.apply(theta), matcher).permutation
        assert found == p.inverse() or name == "weights", name


@pytest.mark.parametrize("name", ["grouped_query", "depthwise", "multihead_attention"])
def test_planted_permutations_come_back_on_every_kind_of_model(name: str) -> None:
    spec, theta, (inputs,) = spec_of(case(name)), params(case(name)), case(name).inputs()
    p = Permutation.random(spec, torch.Generator().manual_seed(1))
    found = align(spec, theta, p.apply(theta), Best(case(name).model(), [(inputs,)], rounds=1))
    back = found.permutation.apply(p.apply(theta))
    torch.testing.assert_close([back[n] for n in spec.matched if back[n].dim() > 1],
                               [theta[n] for n in spec.matched if theta[n].dim() > 1])  # fmt: skip


def test_a_loss_of_ones_own_decides() -> None:
    def loss(predict: Predict, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(predict(batch[0]), batch[1])

    best = Best(net(2), data(61), loss, rounds=2)
    found = align(SPEC, A, B, best)
    between = Criterion(net(2), data(61), loss).split()[1].between(A, B)
    assert -found.objective[-1] == pytest.approx(between.at(found.permutation), rel=1e-9)
    assert -found.objective[-1] < between.at(align(SPEC, A, B, Best(net(2), data(61), rounds=2)).permutation)


def test_with_repair_it_lowers_what_is_left_after_that() -> None:
    model, spec, (a, b), inputs = repairable(convnet, 2, 7, 5, count=512)
    batches = inputs.split(32)
    best = Best(model, batches, rounds=3, repair=True)
    found, plain = (align(spec, a, b, one) for one in (best, replace(best, repair=False)))
    assert found.permutation.spec == spec
    seen = best.criterion.subject(spec, a, b)
    held = seen.criterion.split()[1].between(seen.a, seen.b)
    assert -found.objective[-1] == pytest.approx(held.at(seen.order(found.permutation)), rel=1e-9)
    assert -found.objective[-1] < held.at(seen.order(plain.permutation)) - 1e-3
    left = Criterion(model, batches).split()[1].between(a, b)
    assert left.at(found.permutation) > left.at(plain.permutation)
    merged = merge_many(spec, [a, b], best, max_rounds=1)
    assert held.at(seen.order(merged.between(0, 1))) < held.at(seen.order(Permutation.identity(spec)))


def test_half_precision_is_matched_as_its_copy_in_the_types_of_the_model() -> None:
    model, labelled = net(2).float(), [(x.float(), y) for x, y in data(61)]
    halves = [{n: t.bfloat16() if t.is_floating_point() else t for n, t in params.items()} for params in (A, B)]
    wide = [{n: t.float() if t.is_floating_point() else t for n, t in half.items()} for half in halves]
    for matcher in (Best(model, labelled, rounds=2), StraightThrough(model, labelled, epochs=2)):
        found, expected = align(SPEC, *halves, matcher), align(SPEC, *wide, matcher)
        assert found.permutation == expected.permutation
        assert found.objective == expected.objective


def test_without_data() -> None:
    drawn = synthetic_batches(net(0), (INPUTS[0],), samples=64, batch=32)
    best = Best(net(2), drawn, batchnorm=True, rounds=0)
    cross = best.candidates(SPEC, A, B)["activations, product"].measure(SPEC, A, B, print)  # type: ignore[attr-defined]
    fresh = [recompute_batchnorm(net(2), params, drawn) for params in (A, B)]
    expected = Best(net(2), drawn).candidates(SPEC, *fresh)["activations, product"].measure(SPEC, A, B, print)  # type: ignore[attr-defined]
    torch.testing.assert_close(cross["P1"].covariance, expected["P1"].covariance)
    stale = Best(net(2), drawn).candidates(SPEC, A, B)["activations, product"].measure(SPEC, A, B, print)  # type: ignore[attr-defined]
    assert not torch.allclose(cross["P1"].covariance, stale["P1"].covariance, rtol=1e-2)
    found = align(SPEC, A, B, best)
    assert found.objective[-1] >= found.objective[0]


def test_many_models() -> None:
    models = [params_of(net(seed)) for seed in range(3)]
    merged = merge_many(SPEC, models, Best(net(5), INPUTS, rounds=1), max_rounds=1)
    assert merged.between(0, 1) @ merged.between(1, 2) @ merged.between(2, 0) == Permutation.identity(SPEC)
    assert merged.provenance["matcher"] == "Best"
    pair = Criterion(net(5), INPUTS).between(models[0], models[1])
    two = merge_many(SPEC, models[:2], Best(net(5), INPUTS, rounds=1), max_rounds=1)
    assert pair.at(two.between(0, 1)) < pair.at(Permutation.identity(SPEC)) - 1e-3


def test_it_is_told_in_json() -> None:
    found = align(SPEC, A, B, Best(net(2), INPUTS, rounds=1, seed=3))
    told = json.loads(json.dumps(found.to_json()))
    assert told["matcher"] == "Best"
    assert told["settings"] == {"rounds": 1, "batchnorm": False, "outputs": None, "seed": 3, "repair": False}
    assert found.certificate.assignments > 8


@pytest.mark.parametrize("at", ["statistics", "matching", "candidates", "descent", "polish"])
def test_an_interrupt_keeps_the_best_so_far(at: str) -> None:
    def stop(task: str, done: int, total: int) -> None:
        if task == at:
            raise KeyboardInterrupt

    if at == "statistics":  # there is nothing yet
        with pytest.raises(KeyboardInterrupt):
            align(SPEC, A, B, Best(net(2), INPUTS), progress=stop)
        return
    found = align(SPEC, A, B, Best(net(2), INPUTS), progress=stop)
    assert found.stop is StopReason.INTERRUPTED
    between = HELD.between(A, B) if at in ("descent", "polish") else Criterion(net(2), INPUTS).between(A, B)
    assert -found.objective[-1] == pytest.approx(between.at(found.permutation), rel=1e-9)


def test_what_is_refused() -> None:
    for batches, said in (
        (iter(INPUTS), "empty after one pass"),
        ([], "no batches"),
        ([torch.ones(5, 4).double()], r"\(5, 4\)"),
        ([INPUTS[0] * float("nan")], "not finite"),
    ):
        with pytest.raises(Exception, match=said) as caught:
            align(SPEC, A, B, Best(net(2), batches))
        assert caught.type.__module__ == UsageError.__module__
