"""Straight-through matching: planted orders, barriers on digits, what ends a run, what is refused."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onebasin.errors import UsageError
from onebasin.functional import Predict
from onebasin.interpolate import lerp
from onebasin.matching import FrankWolfe, StopReason, StraightThrough, WeightMatching, align
from onebasin.matching.straight_through import classification_loss
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

Batches = list[tuple[Tensor, Tensor]]


def narrow(batch_norm: bool = False) -> nn.Sequential:
    """A net so narrow that weight matching leaves a barrier."""
    norm = [nn.BatchNorm1d(13)] if batch_norm else []
    return nn.Sequential(nn.Linear(64, 13), *norm, nn.ReLU(), nn.Linear(13, 11), nn.ReLU(), nn.Linear(11, 10))


@cache
def digits() -> Batches:
    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    return list(zip(images.split(300), labels.split(300), strict=True))


@cache
def trained(seed: int, batch_norm: bool = False) -> Params:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = narrow(batch_norm)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for images, labels in 25 * digits():
            optimiser.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimiser.step()
    return {name: tensor.clone() for name, tensor in params_of(model.eval()).items()}


@cache
def spec_of(batch_norm: bool = False) -> PermutationSpec:
    from onebasin.symmetry.discover import permutation_spec

    return permutation_spec(narrow(batch_norm), (digits()[0][0][:3],))


def loss_between(model: nn.Module, a: Params, b: Params, *, train: bool = False) -> float:
    """Return the loss at the midpoint."""
    model.load_state_dict(lerp(a, b, 0.5))
    with torch.no_grad():
        return sum(classification_loss(model.train(train), batch).item() for batch in digits()) / len(digits())


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def ste(**settings: Any) -> StraightThrough:
    return StraightThrough(narrow(), digits(), **{"epochs": 20, **settings})


@pytest.mark.parametrize("seed", range(2))
def test_the_midpoint_is_better_than_after_weight_matching(seed: int) -> None:
    spec, a, b = spec_of(), trained(2 * seed), trained(2 * seed + 1)
    plain, found = align(spec, a, b), align(spec, a, b, ste(rate=0.03))
    losses = [loss_between(narrow(), a, one.permutation.apply(b)) for one in (plain, found)]
    assert losses[1] < 0.9 * losses[0]
    assert list(found.objective) == sorted(found.objective)
    assert len(found.objective) == 1 + 20
    assert found.stop is StopReason.FINISHED
    assert found.certificate.assignments >= 20 * len(digits())


def test_it_begins_with_weight_matching() -> None:
    """T starts at A: at a rate of zero nothing else is ever projected."""
    spec, a, b = spec_of(), trained(0), trained(1)
    found = align(spec, a, b, ste(rate=0.0, epochs=2))
    plain = align(spec, a, b).permutation
    assert found.permutation == plain == found.other
    lowest = min(classification_loss(_between(a, plain.apply(b)), batch).item() for batch in digits())
    assert found.objective[-1] == pytest.approx(-lowest, rel=1e-5)
    assert align(spec, a, b, ste(rate=0.03)).permutation != plain


def _between(a: Params, b: Params) -> nn.Module:
    model = narrow()
    model.load_state_dict(lerp(a, b, 0.5))
    return model


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_planted_permutation_is_found(optimizer: str) -> None:
    spec, a, p = spec_of(), trained(0), draw(spec_of(), 3)
    found = align(spec, a, p.apply(a), ste(epochs=2, optimizer=optimizer, rate=1e-3))
    assert found.permutation == found.other == p.inverse()


def test_the_gradient_is_that_of_the_midpoint() -> None:
    """One step of plain descent: T = A - rate/2 dL/dM, seen by the projection at the second batch."""
    spec, a, b = spec_of(), trained(0), trained(1)
    seen: list[Params] = []

    class Recorder(WeightMatching):
        def match(self, spec: PermutationSpec, params_a: Params, *rest: Any) -> Any:
            seen.append({name: tensor.clone() for name, tensor in params_a.items()})
            return super().match(spec, params_a, *rest)

    align(spec, a, b, StraightThrough(narrow(), digits()[:2], epochs=1, rate=0.1, projection=Recorder()))
    middle = _between(a, align(spec, a, b).permutation.apply(b))
    classification_loss(middle, digits()[0]).backward()
    for name, parameter in middle.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(seen[0][name], a[name], rtol=0, atol=0)
        torch.testing.assert_close(seen[1][name], a[name] - 0.1 / 2 * parameter.grad)


def test_nothing_given_is_written_to() -> None:
    spec, a, b, model = spec_of(True), trained(0, True), trained(1, True), narrow(True).train()
    before = [{name: tensor.clone() for name, tensor in params.items()} for params in (a, b, model.state_dict())]
    align(spec, a, b, StraightThrough(model, digits(), epochs=1))
    for params, old in zip((a, b, model.state_dict()), before, strict=True):
        assert all(torch.equal(params[name], old[name]) for name in old)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batch_norm_uses_the_statistics_of_the_batch() -> None:
    spec, a, b = spec_of(True), trained(0, True), trained(1, True)
    found = align(spec, a, b, StraightThrough(narrow(True), digits()[:1], epochs=1))
    middle = narrow(True)
    middle.load_state_dict(lerp(a, found.permutation.apply(b), 0.5))
    assert -found.objective[-1] == pytest.approx(classification_loss(middle.train(), digits()[0]).item(), rel=1e-5)
    assert -found.objective[-1] != pytest.approx(classification_loss(middle.eval(), digits()[0]).item(), rel=1e-2)


def test_best_and_last_are_both_returned() -> None:
    spec, a, b = spec_of(), trained(0), trained(1)
    best, last = (align(spec, a, b, ste(rate=0.3, keep=keep)) for keep in ("best", "last"))
    assert (best.permutation, best.other) == (last.other, last.permutation)
    assert best.permutation != last.permutation


def test_settings_are_told_without_data() -> None:
    told = align(spec_of(), trained(0), trained(1), ste(epochs=1)).to_json()
    assert {"epochs", "optimizer", "rate", "projection"} <= told["settings"].keys()
    assert not {"model", "batches", "loss"} & told["settings"].keys()
    assert told["settings"]["projection"]["name"] == "WeightMatching"


def test_random_points_follow_the_seed_and_any_matcher_projects() -> None:
    spec, a, b = spec_of(), trained(0), trained(1)
    runs = [
        ste(point="random", seed=seed, epochs=2, projection=WeightMatching(solver=FrankWolfe())) for seed in (1, 1, 2)
    ]
    values = [align(spec, a, b, run).objective for run in runs]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_ends_the_run_and_tells_the_batch(broken: str) -> None:
    calls = itertools.count(1)

    def loss(predict: Predict, batch: Any) -> Tensor:
        value = classification_loss(predict, batch)
        if next(calls) < 9:
            return value
        return value * float("nan") if broken == "loss" else value + (value - value.detach()).abs().sqrt()

    spec, a, b = spec_of(), trained(0), trained(1)
    found = align(spec, a, b, ste(loss=loss))
    assert found.stop is StopReason.NOT_FINITE
    assert found.note == "batch 3 of epoch 2"
    assert "batch 3 of epoch 2" in str(found)
    assert found.to_json()["why"] == f"{StopReason.NOT_FINITE.value} (batch 3 of epoch 2)"
    assert all(value == value for value in found.objective)


def test_an_interrupt_keeps_the_best_so_far() -> None:
    def stop(task: str, done: int, total: int) -> None:
        assert (task, total) == ("straight-through", 20 * len(digits()))
        if done == 9:
            raise KeyboardInterrupt

    spec, a, b = spec_of(), trained(0), trained(1)
    found = align(spec, a, b, ste(), progress=stop)
    assert found.stop is StopReason.INTERRUPTED
    assert found.objective[-1] > found.objective[0]


def test_what_is_refused() -> None:
    spec, a, b = spec_of(), trained(0), trained(1)
    for settings, said in (
        ({"loss": lambda predict, batch: 0.5}, "float"),
        ({"loss": lambda predict, batch: predict(batch[0])}, r"\(300, 10\)"),
        ({"loss": lambda predict, batch: classification_loss(predict, batch) / 0}, "very first batch"),
        ({"optimizer": "lbfgs"}, "lbfgs"),
        ({"epochs": 0}, "0 epochs"),
    ):
        with pytest.raises(UsageError, match=said):
            align(spec, a, b, ste(**settings))
    for batches, said in (([], "no batches"), (iter(digits()), "empty after one pass")):
        with pytest.raises(UsageError, match=said):
            align(spec, a, b, StraightThrough(narrow(), batches, epochs=1))
