"""One small network with batch norm and dropout, its spec written by hand, and data for it, all in float64."""

from __future__ import annotations

import torch
from helpers import randomise
from torch import Tensor, nn

from onebasin.params import params_of
from onebasin.spec import PermutationSpec


def net(seed: int) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(3, 11), nn.BatchNorm1d(11), nn.ReLU(), nn.Dropout(0.9), nn.Linear(11, 7), nn.Tanh(), nn.Linear(7, 5)
    ).double()
    randomise(model, seed)
    return model


SPEC = PermutationSpec.from_axes(
    {
        "0.weight": ("P0", None), "0.bias": ("P0",), "1.weight": ("P0",), "1.bias": ("P0",),
        "1.running_mean": ("P0",), "1.running_var": ("P0",),
        "4.weight": ("P1", "P0"), "4.bias": ("P1",), "6.weight": (None, "P1"),
    },
    {name: tuple(tensor.shape) for name, tensor in params_of(net(0)).items()},
)  # fmt: skip


def data(count: int = 31) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return list(zip(inputs.split([13, count - 13]), labels.split([13, count - 13]), strict=True))


class Viewed(nn.Module):
    """Joins channels and places by `view`, which only maps with channels first allow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


def convolutions(join: nn.Module) -> nn.Sequential:
    """Return two convolutions, batch norm, and a layer over all places."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), join, nn.Linear(5 * 16, 7)]
    model = nn.Sequential(*layers).double()
    randomise(model, 3)
    return model
