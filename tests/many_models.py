"""Several models of one architecture: copies of one in other orders, strangers, and their distance to the mean."""

from __future__ import annotations

import pytest
import torch
from cases import case, params, spec_of
from helpers import assert_same
from torch import Tensor

from onebasin.interpolate import mean
from onebasin.merging import Merge
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

WIDE = PermutationSpec.from_axes(
    {
        "fc1.weight": ("P0", None), "fc1.bias": ("P0",), "fc2.weight": ("P1", "P0"), "fc2.bias": ("P1",),
        "fc3.weight": (None, "P1"),
    },
    {"fc1.weight": (31, 23), "fc1.bias": (31,), "fc2.weight": (29, 31), "fc2.bias": (29,), "fc3.weight": (13, 29)},
)  # fmt: skip


def wide(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in WIDE.shapes.items()}


def copies(name: str, count: int) -> tuple[PermutationSpec, list[Params], list[Permutation]]:
    spec, theta = (WIDE, wide(0)) if name == "wide" else (spec_of(case(name)), params(case(name)))
    generator = torch.Generator().manual_seed(1)
    drawn = [Permutation.random(spec, generator) for _ in range(count)]
    return spec, [permutation.apply(theta) for permutation in drawn], drawn


def strangers(name: str, count: int) -> tuple[PermutationSpec, list[Params]]:
    return spec_of(case(name)), [params(case(name), seed) for seed in range(count)]


def mean_squared_distance(spec: PermutationSpec, models: list[Params], weights: list[float]) -> float:
    """The objective, written down once more."""

    def flat(model: Params) -> Tensor:
        return torch.cat([model[name].flatten() for name in spec.trained])

    rows, shares = torch.stack([flat(model) for model in models]), torch.tensor(weights, dtype=torch.float64)
    shares = shares / shares.sum()
    middle = (shares[:, None] * rows).sum(0)
    return (shares * (rows - middle).square().sum(1)).sum().item()


def check_spread_and_mean(found: Merge, spec: PermutationSpec, models: list[Params], weights: list[float]) -> None:
    """The distance to the mean never rises, ends lower, and is that of the result, which is the weighted mean."""
    assert list(found.spread) == sorted(found.spread, reverse=True)
    assert found.spread[-1] < found.spread[0]
    moved = [permutation.apply(model) for permutation, model in zip(found.permutations, models, strict=True)]
    assert found.spread[0] == pytest.approx(mean_squared_distance(spec, models, weights), rel=1e-12)
    assert found.spread[-1] == pytest.approx(mean_squared_distance(spec, moved, weights), rel=1e-12)
    for key, tensor in mean(moved, weights).items():
        torch.testing.assert_close(found.params[key], tensor, rtol=1e-12, atol=1e-13)
    assert_same(found.permutations[0].apply(models[0]), models[0])
