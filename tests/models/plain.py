"""Networks without skips: MLP, VGG16, AlexNet, and SqueezeNet and GoogLeNet, whose branches meet in concatenations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers between `widths`, ReLU between them."""
    layers: list[nn.Module] = []
    for wide_in, wide_out in pairwise(widths):
        layers += [nn.Linear(wide_in, wide_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class VGG16(nn.Module):
    """13 convolutions in five stages, two hidden linear layers; with or without batch norm."""

    def __init__(self, stages: Sequence[int], hidden: Sequence[int], batch_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        wide_in = 3
        for width, repeats in zip(stages, (2, 2, 3, 3, 3), strict=True):
            for _ in range(repeats):
                layers.append(nn.Conv2d(wide_in, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                wide_in = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = mlp([wide_in * 4, *hidden, 3])

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class AlexNet(nn.Module):
    """Five convolutions, then a flattened map, dropout and two hidden linear layers."""

    def __init__(self, widths: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        a, b, c, d, e = widths
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
            nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d((2, 3))
        f, g = hidden
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(e * 6, f), nn.ReLU(), nn.Dropout(), nn.Linear(f, g), nn.ReLU(), nn.Linear(g, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 convolutions side by side."""

    def __init__(self, wide_in: int, squeeze: int, expand1: int, expand3: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(wide_in, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand1, 1)
        self.expand3 = nn.Conv2d(squeeze, expand3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1(x)), torch.relu(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: a stem and eight fire modules; the classifier is a 1x1 convolution and a mean over the map."""

    POOL_BEFORE = (0, 2, 4)

    def __init__(self, stem: int, fires: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, stride=2)
        wide_in = stem
        layers: list[nn.Module] = []
        for number, (squeeze, expand1, expand3) in enumerate(fires):
            if number in self.POOL_BEFORE:
                layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            layers.append(Fire(wide_in, squeeze, expand1, expand3))
            wide_in = expand1 + expand3
        self.fires = nn.Sequential(*layers)
        self.head = nn.Conv2d(wide_in, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.head(self.fires(torch.relu(self.stem(x))))).mean((2, 3))


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, wide_in: int, wide_out: int, kernel: int, stride: int = 1) -> None:
        conv = nn.Conv2d(wide_in, wide_out, kernel, stride, padding=kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(wide_out), nn.ReLU())


class Inception(nn.Module):
    """Four branches, concatenated: 1x1; 1x1 then 3x3; 1x1 then 3x3; pooling then 1x1."""

    def __init__(self, wide_in: int, b1: int, b2: tuple[int, int], b3: tuple[int, int], b4: int) -> None:
        super().__init__()
        self.b1 = ConvNorm(wide_in, b1, 1)
        self.b2 = nn.Sequential(ConvNorm(wide_in, b2[0], 1), ConvNorm(b2[0], b2[1], 3))
        self.b3 = nn.Sequential(ConvNorm(wide_in, b3[0], 1), ConvNorm(b3[0], b3[1], 3))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvNorm(wide_in, b4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in (self.b1, self.b2, self.b3, self.b4)], 1)


class AuxiliaryHead(nn.Module):
    """A classifier on an inner map, used in training only: in eval mode its parameters are dead."""

    def __init__(self, wide_in: int, width: int, hidden: int) -> None:
        super().__init__()
        self.conv = ConvNorm(wide_in, width, 1)
        self.classifier = mlp([width, hidden, 3])

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.conv(x).mean((2, 3)))


class GoogLeNet(nn.Module):
    """A stem of three convolutions, nine inception modules, two auxiliary heads."""

    POOL_BEFORE = (0, 2, 7)
    AUXILIARY_BEFORE = (3, 6)

    def __init__(self, stem: tuple[int, int, int], inceptions: Sequence[tuple[int, int, int, int, int, int]]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, stem[0], 5, stride=2), ConvNorm(stem[0], stem[1], 1), ConvNorm(stem[1], stem[2], 3)
        )
        wide_in = stem[2]
        self.inceptions = nn.ModuleList()
        self.auxiliary = nn.ModuleDict()
        for number, (b1, b2a, b2b, b3a, b3b, b4) in enumerate(inceptions):
            if number in self.AUXILIARY_BEFORE:
                self.auxiliary[str(number)] = AuxiliaryHead(wide_in, 5, 7)
            self.inceptions.append(Inception(wide_in, b1, (b2a, b2b), (b3a, b3b), b4))
            wide_in = b1 + b2b + b3b + b4
        self.head = nn.Linear(wide_in, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x, extra = self.stem(x), []
        for number, inception in enumerate(self.inceptions):
            if number in self.POOL_BEFORE:
                x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
            if self.training and number in self.AUXILIARY_BEFORE:
                extra.append(self.auxiliary[str(number)](x))
            x = inception(x)
        out = self.head(x.mean((2, 3)))
        return (out, *extra) if self.training else out
