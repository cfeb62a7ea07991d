"""Descent on gains: what it keeps, what it follows, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import case, params, spec_of
from nets import SPEC, data, net
from torch import Tensor

from onebasin.activations import Activations
from onebasin.errors import UsageError
from onebasin.functional import Predict
from onebasin.matching import ActivationMatching, Criterion, Descent, StopReason, WeightMatching, align, descent
from onebasin.matching.descent import _Run
from onebasin.matching.moves import Move
from onebasin.matching.proposals import Proposals
from onebasin.params import params_of
from onebasin.permutation import Permutation

A, B = params_of(net(0)), params_of(net(1))
INPUTS = [inputs for inputs, _ in data(61)]
HELD_STILL = WeightMatching(max_sweeps=0)


def gains(model: Callable[[], Any] = lambda: net(2), batches: list[Any] | None = None) -> ActivationMatching:
    return ActivationMatching(Activations(model(), batches or INPUTS), "correlation")


def draw(seed: int) -> Permutation:
    return Permutation.random(SPEC, torch.Generator().manual_seed(seed))


def test_it_lowers_the_criterion_and_never_returns_worse_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = Criterion(net(2), INPUTS)
    between, matched = criterion.split()[1].between(A, B), align(SPEC, A, B, gains())
    found = align(SPEC, A, B, Descent(criterion, gains(), gains(), steps=40, rate=1e-2))
    assert found.objective[0] == pytest.approx(-between.at(matched.permutation))
    assert found.objective[-1] == pytest.approx(-between.at(found.permutation))
    assert list(found.objective) == sorted(found.objective)
    assert found.objective[-1] > found.objective[0] + 1e-3
    assert "cycles crossed" in found.note
    assert found.stop is StopReason.FINISHED
    monkeypatch.setattr(descent, "ROUNDS", 0)
    alone = align(SPEC, A, B, Descent(criterion, gains(), gains(), steps=40, rate=1e-2, runs=1))
    assert "descent, step" in alone.note
    assert found.objective[0] == alone.objective[0] < alone.objective[-1] < found.objective[-1]
    wild = align(SPEC, A, B, Descent(criterion, gains(), gains(), steps=1, rate=1e3))
    assert wild.objective == pytest.approx(found.objective[:1])
    assert wild.permutation == matched.permutation


def test_a_run_that_finds_nothing_better_is_the_only_one() -> None:
    def runs(**settings: Any) -> int:
        begun = list[int]()
        align(
            SPEC,
            A,
            B,
            Descent(Criterion(net(2), INPUTS), gains(), gains(), runs=3, **settings),
            progress=lambda *seen: begun.append(1) if seen[:2] == ("descent", 1) else None,
        )
        return len(begun)

    assert runs(steps=40, rate=1e-2) == 3
    assert runs(steps=1, rate=1e3) == 1


def test_a_cycle_that_failed_alone_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = list[Any]()

    class Watched(Proposals):
        def attempt(self, moves: Sequence[Move]) -> None:
            kept = self.kept
            super().attempt(moves)
            if len(moves) == 1 and self.kept == kept:
                failed.append(moves[0][:4])

    monkeypatch.setattr(descent, "Proposals", Watched)
    found = align(SPEC, A, B, Descent(Criterion(net(2), INPUTS), gains(), gains(), steps=40, rate=1e-2))
    assert "cycles crossed" in found.note
    assert failed
    assert len(failed) == len(set(failed))


def test_a_round_of_crossing_ends_after_enough_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    def trials() -> int:
        note = align(SPEC, A, B, Descent(Criterion(net(2), INPUTS), gains(), gains(), steps=40, rate=1e-2)).note
        return int(note.split(" trials")[0].split()[-1])

    monkeypatch.setattr(descent, "ROUNDS", 1)
    everything = trials()
    monkeypatch.setattr(descent, "TRIALS", 1)
    assert 0 < trials() < everything


def test_planted_permutations_stay_found() -> None:
    p = draw(3)
    found = align(SPEC, A, p.apply(A), Descent(Criterion(net(2), INPUTS), gains(), gains(), steps=8))
    assert found.permutation == p.inverse()


def test_a_step_goes_against_the_gradient() -> None:
    """The first order change of J under a change of the order of one group is that of the gains, halved, reversed."""
    between = Criterion(net(2), INPUTS).between(A, B)
    run = _Run(between, gains().objective(SPEC, A, B).gains, draw(3))
    before, at = {name: gain.clone() for name, gain in run.gains.items()}, run.permutation
    (slopes,) = next(between.parts(1)).slopes(between.middle(at), 0, torch.Generator())
    assert run.step(next(between.parts(1)), 0.125)
    for group in SPEC.sizes:
        pushed = (run.gains[group] - before[group]) / -0.125
        assert pushed.square().mean().item() == pytest.approx(1.0)
        index = at.indices[group].roll(1)
        rolled = Permutation(SPEC, {**at.indices, group: index}).apply(B)
        here = at.apply(B)
        change = sum((slopes.own[n] * (rolled[n] - here[n])).sum().item() for n in SPEC.matched if n in slopes.own)
        rows = torch.arange(len(index))
        gained = (pushed[rows, index] - pushed[rows, at.indices[group]]).sum().item()
        assert gained * change > 0
        scale = change / gained
        other = torch.arange(len(index)).flip(0)
        flipped = Permutation(SPEC, {**at.indices, group: other}).apply(B)
        change = sum((slopes.own[n] * (flipped[n] - here[n])).sum().item() for n in SPEC.matched if n in slopes.own)
        gained = (pushed[rows, other] - pushed[rows, at.indices[group]]).sum().item()
        assert change == pytest.approx(scale * gained, rel=1e-4)


@pytest.mark.parametrize("name", ["grouped_query", "grouped_conv", "rnn"])
def test_nested_and_recurrent_groups(name: str) -> None:
    one = case(name)
    spec, a, b, (batch,) = spec_of(one), params(one), params(one, 1), one.inputs()

    def loss(predict: Predict, x: Any) -> Tensor:
        output = predict(x)
        return (output if isinstance(output, Tensor) else output[0]).square().mean()

    criterion = Criterion(one.model(), [batch], loss)
    matcher = Descent(criterion, gains(one.model, [(batch,)]), HELD_STILL, steps=4, rate=0.05)
    found = align(spec, a, b, matcher)
    assert list(found.objective) == sorted(found.objective)
    assert found.objective[-1] == pytest.approx(-criterion.between(a, b).at(found.permutation), rel=1e-6)


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    calls = 0

    def loss(predict: Predict, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return predict(batch).square().mean() * (float("nan") if calls == 3 else 1.0)

    found = align(SPEC, A, B, Descent(Criterion(net(2), INPUTS, loss), gains(), gains()))
    assert found.stop is StopReason.NOT_FINITE
    assert "not finite at descent step 3" in found.note


def test_an_interrupt_keeps_the_best_so_far() -> None:
    def stop(task: str, done: int, total: int) -> None:
        if task == "descent" and done == 30:
            assert total == 80
            raise KeyboardInterrupt

    criterion = Criterion(net(2), INPUTS)
    found = align(SPEC, A, B, Descent(criterion, gains(), gains()), progress=stop)
    assert found.stop is StopReason.INTERRUPTED
    assert found.certificate.assignments > align(SPEC, A, B, gains()).certificate.assignments
    assert -found.objective[-1] == pytest.approx(criterion.split()[1].between(A, B).at(found.permutation))


def test_an_interrupt_keeps_what_was_crossed() -> None:
    def stop(task: str, done: int, total: int) -> None:
        assert done <= total or not task.startswith("crossing")
        if task == "crossing, round 2":
            raise KeyboardInterrupt

    criterion = Criterion(net(2), INPUTS)
    found = align(SPEC, A, B, Descent(criterion, gains(), gains(), steps=40, rate=1e-2), progress=stop)
    assert found.stop is StopReason.INTERRUPTED
    assert "cycles crossed" in found.note
    assert -found.objective[-1] == pytest.approx(criterion.split()[1].between(A, B).at(found.permutation))


def test_a_criterion_that_is_not_finite_ends_the_crossing_with_what_was_kept() -> None:
    crossing = False

    def watch(task: str, done: int, total: int) -> None:
        nonlocal crossing
        crossing = crossing or task == "crossing, round 1"

    def loss(predict: Predict, batch: Tensor) -> Tensor:
        return predict(batch).square().mean() * (float("nan") if crossing else 1.0)

    matcher = Descent(Criterion(net(2), INPUTS, loss), gains(), gains(), steps=40, rate=1e-2)
    found = align(SPEC, A, B, matcher, progress=watch)
    assert crossing
    assert found.stop is StopReason.NOT_FINITE
    assert "not finite on batch" in found.note
    finite = Criterion(net(2), INPUTS, lambda predict, batch: predict(batch).square().mean())
    assert -found.objective[-1] == pytest.approx(finite.split()[1].between(A, B).at(found.permutation))


@pytest.mark.parametrize("name", ["steps", "runs"])
def test_what_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=0"):
        Descent(Criterion(net(2), INPUTS), gains(), gains(), **{name: 0})
