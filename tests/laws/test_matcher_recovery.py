"""Every matcher finds its way back: from a planted permutation, from one with noise on top; and there all agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from digit_nets import digits, fitted
from torch import nn

from onebasin.activations import Activations
from onebasin.best import Best
from onebasin.layer_inputs import LayerInputs
from onebasin.matching import (
    ActivationMatching,
    BestOf,
    Covariance,
    Criterion,
    FrankWolfe,
    Hybrid,
    Matcher,
    Polish,
    Sinkhorn,
    SinkhornRebasin,
    StraightThrough,
    WeightMatching,
    align,
)
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

IMAGES = [images for images, _ in digits()]


def smooth() -> nn.Sequential:
    """A network none of whose units is ever off, so that its activations tell all of them apart."""
    return nn.Sequential(nn.Linear(64, 13), nn.GELU(), nn.Linear(13, 11), nn.GELU(), nn.Linear(11, 10))


@cache
def trained(seed: int) -> Params:
    return fitted(smooth, seed)


@cache
def spec_of() -> PermutationSpec:
    from onebasin.symmetry.discover import permutation_spec

    return permutation_spec(smooth(), (IMAGES[0][:3],))


def activations(statistic: str = "product") -> ActivationMatching:
    return ActivationMatching(Activations(smooth(), IMAGES), statistic)  # type: ignore[arg-type]


def criterion() -> Criterion:
    return Criterion(smooth(), IMAGES)


MATCHERS: dict[str, Callable[[], Matcher]] = {
    "weights": WeightMatching,
    "unit weights": lambda: WeightMatching(features="unit"),
    "covariance": lambda: WeightMatching(features=Covariance(LayerInputs(smooth(), IMAGES))),
    "frank-wolfe": lambda: WeightMatching(solver=FrankWolfe()),
    "sinkhorn": lambda: WeightMatching(solver=Sinkhorn(rate=0.5)),
    "activations": activations,
    "correlations": lambda: activations("correlation"),
    "hybrid": lambda: Hybrid(activations("correlation"), WeightMatching(features="unit")),
    "straight-through": lambda: StraightThrough(smooth(), digits(), epochs=2),
    "straight-through by adam": lambda: StraightThrough.by_adam(smooth(), digits(), epochs=2),
    "straight-through by steep sgd": lambda: StraightThrough.by_steep_sgd(smooth(), digits(), epochs=2, rate=0.01),
    "sinkhorn re-basin": lambda: SinkhornRebasin(smooth(), digits(), epochs=20),
    "best of two": lambda: BestOf(criterion(), {"weights": WeightMatching(), "activations": activations()}),
    "polish": lambda: Polish(criterion(), activations()),
    "best": lambda: Best(smooth(), IMAGES),
}


def draw(seed: int) -> Permutation:
    return Permutation.random(spec_of(), torch.Generator().manual_seed(seed))


@cache
def near(noise: float) -> Params:
    """The trained network with so much noise on every tensor, as a share of its deviation."""
    generator = torch.Generator().manual_seed(1)
    a = trained(0)
    return {n: t + noise * t.std() * torch.randn(t.shape, generator=generator) for n, t in a.items()}


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("name", MATCHERS)
def test_a_planted_permutation_is_found_and_so_all_agree(name: str, noise: float) -> None:
    drawn = draw(5)
    found = align(spec_of(), trained(0), drawn.apply(near(noise)), MATCHERS[name]())
    assert found.permutation == drawn.inverse()
    assert found.permutation != Permutation.identity(spec_of())


def test_on_independent_networks_they_do_not() -> None:
    """The negative twin."""
    found = [align(spec_of(), trained(0), trained(1), MATCHERS[name]()) for name in ("weights", "activations")]
    assert found[0].permutation != found[1].permutation
