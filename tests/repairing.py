"""Small networks whose units can be repaired, and two of each with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers import clone, randomise
from torch import Tensor, nn

from onebasin.params import Params, params_of
from onebasin.spec import PermutationSpec
from onebasin.symmetry.discover import permutation_spec


def mlp() -> nn.Module:
    layers = nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 5), nn.GELU(), nn.Linear(5, 2)
    return nn.Sequential(*layers)


def convnet() -> nn.Module:
    layers = nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(15, 11), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(11, 2))


def normed() -> nn.Module:
    """Batch norm after convolutions with and without a bias."""
    first = nn.Conv2d(2, 7, 3), nn.BatchNorm2d(7), nn.ReLU()
    second = nn.Conv2d(7, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU()
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(15, 11), nn.ReLU(), nn.Linear(11, 2))


Net = tuple[nn.Module, PermutationSpec, list[Params], Tensor]


def net(make: Callable[[], nn.Module], *shape: int, count: int = 53, dtype: torch.dtype = torch.float64) -> Net:
    """Return a model, its spec, two networks and inputs in float64."""
    model, ends = make().double().eval(), []
    for seed in range(2):
        randomise(model, seed)
        ends.append(clone(params_of(model)))
    generator = torch.Generator().manual_seed(3)
    if dtype.is_floating_point:
        inputs = torch.randn(count, *shape, generator=generator, dtype=dtype)
    else:
        inputs = torch.randint(0, 13, (count, *shape), generator=generator)
    return model, permutation_spec(model, (inputs,)), ends, inputs


def group_normed() -> nn.Module:
    """Group norm in 3 groups of channels, which nest, after a convolution without a bias; and layer norm."""
    first = nn.Conv2d(2, 15, 3, bias=False), nn.GroupNorm(3, 15), nn.ReLU()
    second = nn.Conv2d(15, 6, 3, groups=3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*first, *second, nn.Linear(18, 11, bias=False), nn.LayerNorm(11), nn.GELU(), nn.Linear(11, 2))
