"""What all methods that follow a loss have in common: what is kept, what ends a run, what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from digit_nets import digits, narrow, spec_of, trained
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.functional import Predict
from onebasin.interpolate import lerp
from onebasin.matching import Matcher, SinkhornRebasin, StopReason, StraightThrough, align
from onebasin.matching.following import classification_loss

METHODS = {"straight-through": StraightThrough, "sinkhorn": SinkhornRebasin}
# How often each takes the loss on a batch: in a soft order it is taken at the permutation too.
LOSSES = {"straight-through": 1, "sinkhorn": 2}

pytestmark = pytest.mark.parametrize("name", METHODS)


def make(name: str, **settings: Any) -> Matcher:
    return METHODS[name](narrow(), digits(), **{"epochs": 20, **settings})


def test_nothing_given_is_written_to(name: str) -> None:
    spec, a, b, model = spec_of(True), trained(0, True), trained(1, True), narrow(True).train()
    before = [{key: tensor.clone() for key, tensor in params.items()} for params in (a, b, model.state_dict())]
    align(spec, a, b, METHODS[name](model, digits(), epochs=1))
    for params, old in zip((a, b, model.state_dict()), before, strict=True):
        assert all(torch.equal(params[key], old[key]) for key in old)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batch_norm_uses_the_statistics_of_the_batch(name: str) -> None:
    spec, a, b = spec_of(True), trained(0, True), trained(1, True)
    found = align(spec, a, b, METHODS[name](narrow(True), digits()[:1], epochs=1))
    middle = narrow(True)
    middle.load_state_dict(lerp(a, found.permutation.apply(b), 0.5))
    assert -found.objective[-1] == pytest.approx(classification_loss(middle.train(), digits()[0]).item(), rel=1e-5)
    assert -found.objective[-1] != pytest.approx(classification_loss(middle.eval(), digits()[0]).item(), rel=1e-2)


def test_best_and_last_are_both_returned(name: str) -> None:
    spec, a, b = spec_of(), trained(0), trained(1)
    best, last = (align(spec, a, b, make(name, rate=0.3, keep=keep, epochs=6)) for keep in ("best", "last"))
    assert (best.permutation, best.other) == (last.other, last.permutation)
    assert best.objective == last.objective
    assert list(best.objective) == sorted(best.objective)
    rough = [align(spec, a, b, make(name, rate=rate, epochs=3)) for rate in (0.3, 1.0)]
    assert any(found.permutation != found.other for found in rough)


def test_random_points_follow_the_seed(name: str) -> None:
    spec, a, b = spec_of(), trained(0), trained(1)
    values = [align(spec, a, b, make(name, point="random", seed=seed, epochs=2)).objective for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_ends_the_run_and_tells_the_batch(name: str, broken: str) -> None:
    calls = itertools.count(1)

    def loss(predict: Predict, batch: Any) -> Tensor:
        value = classification_loss(predict, batch)
        if next(calls) <= 8 * LOSSES[name]:
            return value
        return value * float("nan") if broken == "loss" else value + (value - value.detach()).abs().sqrt()

    spec, a, b = spec_of(), trained(0), trained(1)
    found = align(spec, a, b, make(name, loss=loss))
    assert found.stop is StopReason.NOT_FINITE
    assert found.note == "batch 3 of epoch 2"
    assert "batch 3 of epoch 2" in str(found)
    assert found.to_json()["why"] == f"{StopReason.NOT_FINITE.value} (batch 3 of epoch 2)"
    assert all(value == value for value in found.objective)


def test_an_interrupt_keeps_the_best_so_far(name: str) -> None:
    def stop(task: str, done: int, total: int) -> None:
        assert (task, total) == (name, 20 * len(digits()))
        if done == 9:
            raise KeyboardInterrupt

    spec, a, b = spec_of(), trained(0), trained(1)
    found = align(spec, a, b, make(name), progress=stop)
    assert found.stop is StopReason.INTERRUPTED
    assert found.objective[-1] > found.objective[0]


def test_what_is_refused(name: str) -> None:
    spec, a, b = spec_of(), trained(0), trained(1)
    for settings, said in (
        ({"loss": lambda predict, batch: 0.5}, "float"),
        ({"loss": lambda predict, batch: predict(batch[0])}, r"\(300, 10\)"),
        ({"loss": lambda predict, batch: classification_loss(predict, batch) / 0}, "very first batch"),
        ({"point": "end"}, "end"),
        ({"keep": "first"}, "first"),
        ({"schedule": "steps"}, "steps"),
        ({"epochs": 0}, "epochs=0"),
    ):
        with pytest.raises(UsageError, match=said):
            align(spec, a, b, make(name, **settings))
    for batches, said in (([], "no batches"), (iter(digits()), "empty after one pass")):
        with pytest.raises(UsageError, match=said):
            align(spec, a, b, METHODS[name](narrow(), batches, epochs=1))
