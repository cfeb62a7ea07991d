"""Settings out of range, and things in the place of others, are refused in words before any work is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import SPEC, data, net

import onebasin as ob
from onebasin.errors import OneBasinError, ParamsError, UsageError
from onebasin.functional import logits_of
from onebasin.matching import BestOf, Criterion, Descent, Hybrid, Polish

A, B = ob.params_of(net(0)), ob.params_of(net(1))
INPUTS = [inputs for inputs, _ in data(61)]
MODEL = net(2)
ACTIVATIONS = ob.ActivationMatching(ob.Activations(MODEL, INPUTS), "correlation")
CRITERION = Criterion(MODEL, INPUTS)

WRONG: dict[str, Callable[[], Any]] = {
    "max_sweeps=-1": lambda: ob.WeightMatching(max_sweeps=-1),
    "faq_steps=-1": lambda: ob.CoordinateDescent(faq_steps=-1),
    "steps=-1": lambda: ob.FrankWolfe(steps=-1),
    "steps=2.5": lambda: ob.Sinkhorn(steps=2.5),  # type: ignore[arg-type]
    "mu=-1": lambda: Hybrid(ACTIVATIONS, mu=-1),
    "mu=nan": lambda: Hybrid(ACTIVATIONS, mu=math.nan),
    "no candidates": lambda: BestOf(CRITERION, ()),
    "runs=0": lambda: Descent(CRITERION, ACTIVATIONS, ob.WeightMatching(), runs=0),
    "rounds=0": lambda: Polish(CRITERION, rounds=0),
    "rounds=-1": lambda: ob.Best(MODEL, INPUTS, rounds=-1),
    "epochs=1.5": lambda: ob.StraightThrough(MODEL, data(), epochs=1.5),  # type: ignore[arg-type]
    "rate=-1": lambda: ob.StraightThrough(MODEL, data(), rate=-1),
    "rate=nan": lambda: ob.StraightThrough(MODEL, data(), rate=math.nan),
    "momentum=-1": lambda: ob.StraightThrough(MODEL, data(), momentum=-1),
    "FrankWolfe'> ": lambda: ob.WeightMatching(solver=ob.FrankWolfe),  # type: ignore[arg-type]
    "Covariance": lambda: ob.align(SPEC, A, B, ob.WeightMatching(features=INPUTS)),  # type: ignore[arg-type]
    "Activations(model, batches)": lambda: ob.ActivationMatching(INPUTS),  # type: ignore[arg-type]
    "inputs.split(128)": lambda: ob.Best(MODEL, torch.cat(INPUTS)),
    "a list of params": lambda: ob.merge(SPEC, A),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_refused(said: str) -> None:
    with pytest.raises(UsageError) as caught:
        WRONG[said]()
    assert said.removesuffix("> ") in str(caught.value)


def test_the_least_that_will_do() -> None:
    assert ob.WeightMatching(max_sweeps=0, faq_steps=0).solver == "coordinate-descent"
    assert ob.FrankWolfe(steps=0).steps == ob.Sinkhorn(steps=0).steps == 0
    assert Hybrid(ACTIVATIONS, mu=0).mu == ob.StraightThrough(MODEL, data(), momentum=0).momentum == 0


@pytest.mark.parametrize("call", [lambda: ob.align(SPEC, MODEL, MODEL), lambda: ob.merge(SPEC, [MODEL, MODEL])])
def test_modules_in_the_place_of_params(call: Callable[[], object]) -> None:
    with pytest.raises(ParamsError, match=r"a Sequential(.|\n)*ob\.params_of\(model\)"):
        call()


def test_logits_are_found_in_what_a_model_returns() -> None:
    x, logits = torch.zeros(2, 3), torch.rand(2, 5)
    for output in (logits, {"logits": logits, "loss": None}, SimpleNamespace(logits=logits)):
        assert torch.equal(logits_of(lambda _, output=output: output, x), logits)
    with pytest.raises(UsageError, match=r"returns a list(.|\n)*a loss of your own"):
        logits_of(lambda _: [logits], x)
    with pytest.raises(UsageError, match="a dict with out, hidden"):
        logits_of(lambda _: {"out": logits, "hidden": logits}, x)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda predict, batch: predict(batch).sum(1), r"a loss of shape \(\d+,\)"),
        (lambda predict, batch: predict(batch).sum().item(), "a loss of float"),
        (lambda predict, batch: predict(batch).sum().detach(), "cannot be differentiated"),
    ],
    ids=["many", "float", "detached"],
)
def test_a_loss_that_will_not_do_is_told_before_the_candidates(loss: Any, said: str) -> None:
    tasks: list[str] = []
    with pytest.raises(OneBasinError, match=said):
        ob.align(SPEC, A, B, ob.Best(MODEL, INPUTS, loss), progress=lambda task, *_: tasks.append(task))
    assert "candidates" not in tasks
