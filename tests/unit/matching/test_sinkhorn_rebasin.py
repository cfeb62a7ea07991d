"""Sinkhorn re-basin: planted orders, barriers on digits, nested groups, settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import case, params
from cases import spec_of as spec_of_case
from digit_nets import digits, loss_between, narrow, spec_of, trained
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.functional import Predict, with_params
from onebasin.interpolate import lerp
from onebasin.matching import SinkhornRebasin, StopReason, align
from onebasin.permutation import Permutation


def sinkhorn(**settings: Any) -> SinkhornRebasin:
    return SinkhornRebasin(narrow(), digits(), **settings)


@pytest.mark.parametrize("seed", range(2))
def test_the_midpoint_is_better_than_after_weight_matching(seed: int) -> None:
    spec, a, b = spec_of(), trained(2 * seed), trained(2 * seed + 1)
    plain, found = align(spec, a, b), align(spec, a, b, sinkhorn())
    losses = [loss_between(narrow(), a, one.permutation.apply(b)) for one in (plain, found)]
    assert losses[1] < 0.9 * losses[0]
    assert len(found.objective) == 1 + 10
    assert found.stop is StopReason.FINISHED
    assert found.certificate.gap < 1e-12
    assert found.certificate.assignments >= 10 * len(digits())


def test_random_points_lower_it_too() -> None:
    spec, a, b = spec_of(), trained(0), trained(1)
    plain, found = align(spec, a, b), align(spec, a, b, sinkhorn(point="random", rate=0.3))
    losses = [loss_between(narrow(), a, one.permutation.apply(b)) for one in (plain, found)]
    assert losses[1] < 0.9 * losses[0]


def test_it_begins_at_the_start() -> None:
    """Without noise and without moving, what is rounded is the start itself."""
    spec, a, b = spec_of(), trained(0), trained(1)
    start = Permutation.random(spec, torch.Generator().manual_seed(1))
    found = align(spec, a, b, sinkhorn(rate=0.0, noise=0.0, epochs=1), start=start)
    assert found.permutation == found.other == start
    assert align(spec, a, b, sinkhorn(epochs=1), start=start).other != start


@pytest.mark.parametrize("seed", range(2))
def test_a_planted_permutation_is_found(seed: int) -> None:
    """Compared through what the network does: units that are off for every image may stand in for each other."""
    spec, a = spec_of(), trained(0)
    moved = Permutation.random(spec, torch.Generator().manual_seed(seed)).apply(a)
    found = align(spec, a, moved, sinkhorn())
    own = loss_between(narrow(), a, a)
    assert loss_between(narrow(), a, found.permutation.apply(moved)) == pytest.approx(own, rel=1e-5)
    assert loss_between(narrow(), a, moved) > 10 * own


def test_a_loss_that_the_user_brings_leads_nested_groups_towards_a_planted_permutation() -> None:
    """The distance of the outputs half way from those of A is zero at the inverse."""
    chosen = case("grouped_query")
    spec, a, model = spec_of_case(chosen), params(chosen), chosen.model()
    drawn = Permutation.random(spec, torch.Generator().manual_seed(2))
    batches = [torch.cat([chosen.inputs(seed)[0] for seed in range(k, k + 16)]) for k in (0, 16, 32, 48)]

    def loss(predict: Predict, batch: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = model(batch)
        return (predict(batch) - wanted).square().mean()

    found = align(spec, a, drawn.apply(a), SinkhornRebasin(model, batches, loss, epochs=8, rate=0.2))
    assert found.objective[0] / 4 < found.objective[-1] < 0
    middle = lerp(a, (found.permutation @ drawn).apply(a), 0.5)
    near = with_params(model, middle)
    far = with_params(model, lerp(a, drawn.apply(a), 0.5))
    assert sum(loss(near, batch) for batch in batches) < sum(loss(far, batch) for batch in batches) / 3
    share = found.permutation.indices["v"] == drawn.inverse().indices["v"]
    assert share.double().mean() > 0.4, "more than the fifth that chance gives"


def test_settings_are_told_without_data_and_checked() -> None:
    told = align(spec_of(), trained(0), trained(1), sinkhorn(epochs=1)).to_json()
    assert {"epochs", "rate", "temperature", "point"} <= told["settings"].keys()
    assert not {"model", "batches", "loss"} & told["settings"].keys()
    for wrong in ({"temperature": 0.0}, {"normalisations": 0}, {"rate": 1.0, "temperature": 0.01}):
        with pytest.raises(UsageError):
            sinkhorn(**wrong)
