"""Straight-through matching: planted orders, barriers on digits, the gradient, recipes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_nets import digits, loss_between, narrow, spec_of, trained
from torch import nn

from onebasin.errors import UsageError
from onebasin.interpolate import lerp
from onebasin.matching import FrankWolfe, StopReason, StraightThrough, WeightMatching, align
from onebasin.matching.following import classification_loss
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


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


def test_recipes_are_settings_that_can_be_changed() -> None:
    adam = StraightThrough.by_adam(narrow(), digits())
    assert (adam.optimizer, adam.rate, adam.epochs, adam.keep, adam.point) == ("adam", 1e-3, 10, "last", "midpoint")
    assert StraightThrough.by_adam(narrow(), digits(), point="random", epochs=2).epochs == 2
    steep = StraightThrough.by_steep_sgd(narrow(), digits(), rate=0.1)
    assert (steep.optimizer, steep.rate, steep.weight_decay, steep.epochs, steep.keep) == (
        "sgd",
        0.1,
        1e-4,
        100,
        "best",
    )
    deep = StraightThrough.by_steep_sgd(narrow(), digits(), deep=True)
    assert (deep.rate, deep.warmup, deep.schedule) == (1.0, 1.0, "cosine")


def test_recipes_lower_the_midpoint_too() -> None:
    spec, a, b = spec_of(), trained(2), trained(3)
    plain = loss_between(narrow(), a, align(spec, a, b).permutation.apply(b))
    for recipe in (
        StraightThrough.by_adam(narrow(), digits(), rate=1e-2, epochs=20),
        StraightThrough.by_steep_sgd(narrow(), digits(), epochs=20, rate=0.1),
    ):
        found = align(spec, a, b, recipe)
        assert loss_between(narrow(), a, found.permutation.apply(b)) < 0.95 * plain


def test_the_rate_warms_up_and_then_follows_half_a_cosine() -> None:
    rising = ste(epochs=5, warmup=2.0, schedule="cosine")
    assert [rising.rate_at(epoch) for epoch in (0.5, 1.0, 2.0)] == [0.25, 0.5, 1.0]
    assert [rising.rate_at(epoch) for epoch in (3.0, 3.5, 5.0)] == pytest.approx([0.75, 0.5, 0.0])
    assert ste(epochs=5, warmup=2.0).rate_at(4.0) == ste(epochs=5).rate_at(0.1) == 1.0
    for warmup in (-1.0, 5.0):
        with pytest.raises(UsageError, match="warm-up"):
            ste(epochs=5, warmup=warmup)


def test_the_schedule_reaches_the_optimiser() -> None:
    """Over one epoch of two batches, a rate that has warmed up to a half moves T half as far."""
    spec, a, b = spec_of(), trained(0), trained(1)
    moved: dict[float, Params] = {}
    for warmup in (0.0, 1.0):
        seen: list[Params] = []

        class Recorder(WeightMatching):
            def match(self, spec: PermutationSpec, params_a: Params, *rest: Any) -> Any:
                seen.append({name: tensor.clone() for name, tensor in params_a.items()})  # noqa: B023
                return super().match(spec, params_a, *rest)

        settings = {"epochs": 2, "rate": 0.1, "warmup": warmup, "projection": Recorder()}
        align(spec, a, b, StraightThrough(narrow(), digits()[:2], **settings))
        moved[warmup] = {name: seen[1][name] - seen[0][name] for name in seen[0]}
    for name, step in moved[0.0].items():
        torch.testing.assert_close(moved[1.0][name], step / 2)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(UsageError, match="lbfgs"):
        ste(optimizer="lbfgs")
