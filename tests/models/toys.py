"""Small networks, one feature each: convolutions and norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_chain(dims: int) -> nn.Sequential:
    """Two convolutions and a mean over the map, in `dims` dimensions."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    return nn.Sequential(
        conv(2, 7, 3, padding=1),
        norm(7),
        nn.GELU(),
        conv(7, 5, 3, stride=2),
        nn.ReLU(),
        pool(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def transposed_conv() -> nn.Sequential:
    """Down by a convolution, up by a transposed one, then resized."""
    return nn.Sequential(
        nn.Conv2d(2, 7, 3, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(7, 5, 2, stride=2),
        nn.SiLU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ConvTranspose2d(5, 11, 3, dilation=2),
        nn.Tanh(),
        nn.Conv2d(11, 2, 1),
    )


def grouped_transposed_conv() -> nn.Sequential:
    """A transposed convolution in 3 groups: 15 = 3 * 5 channels in, 21 = 3 * 7 out."""
    return nn.Sequential(
        nn.Conv1d(2, 15, 3), nn.ReLU(), nn.ConvTranspose1d(15, 21, 2, groups=3), nn.ReLU(), nn.Conv1d(21, 2, 1)
    )


def depthwise(multiplier: int) -> nn.Sequential:
    """A depthwise convolution with `multiplier` output channels per input channel, then a pointwise one."""
    return nn.Sequential(
        nn.Conv2d(2, 7, 3),
        nn.ReLU(),
        nn.Conv2d(7, 7 * multiplier, 3, padding=1, groups=7),
        nn.BatchNorm2d(7 * multiplier),
        nn.ReLU(),
        nn.Conv2d(7 * multiplier, 5, 1),
        nn.ReLU(),
        nn.Conv2d(5, 2, 1),
    )


def pool_flatten() -> nn.Sequential:
    """A flattened map: the linear layer's columns are (channel, row, column)."""
    return nn.Sequential(
        nn.Conv2d(2, 7, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(7 * 2 * 3, 11),
        nn.ReLU(),
        nn.Linear(11, 3),
    )


def pixel_shuffle() -> nn.Sequential:
    """Channels into pixels and back: 20 = 5 * 2 * 2."""
    return nn.Sequential(
        nn.Conv2d(2, 20, 3),
        nn.ReLU(),
        nn.PixelShuffle(2),
        nn.Conv2d(5, 7, 3),
        nn.ReLU(),
        nn.PixelUnshuffle(2),
        nn.Conv2d(28, 2, 1),
    )


def group_norm() -> nn.Sequential:
    """15 = 3 * 5 channels, normalised in 3 groups."""
    return nn.Sequential(nn.Conv2d(2, 15, 3), nn.GroupNorm(3, 15), nn.ReLU(), nn.Conv2d(15, 2, 1))


def grouped_conv() -> nn.Sequential:
    """A convolution in 3 groups: 15 = 3 * 5 channels in, 21 = 3 * 7 out."""
    return nn.Sequential(
        nn.Conv2d(2, 15, 3),
        nn.ReLU(),
        nn.Conv2d(15, 21, 3, groups=3),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(21, 3),
    )


def instance_norm() -> nn.Sequential:
    """Instance norm with affine parameters and running statistics."""
    return nn.Sequential(
        nn.Conv2d(2, 7, 3, bias=False),
        nn.InstanceNorm2d(7, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.Conv2d(7, 5, 3),
        nn.InstanceNorm2d(5, affine=True),
        nn.LeakyReLU(0.1),
        nn.Conv2d(5, 2, 1),
    )


def layer_norm() -> nn.Sequential:
    """Layer norm over hidden units, with and without affine parameters."""
    return nn.Sequential(
        nn.Linear(3, 7),
        nn.LayerNorm(7),
        nn.GELU(),
        nn.Linear(7, 5),
        nn.LayerNorm(5, elementwise_affine=False),
        nn.ELU(),
        nn.Linear(5, 2),
    )


def rms_norm() -> nn.Sequential:
    """RMS norm over hidden units."""
    return nn.Sequential(nn.Linear(3, 7), nn.RMSNorm(7), nn.SiLU(), nn.Linear(7, 2))


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of each pixel, as the convolutional nets of paper 1 have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 7, 3), nn.LayerNorm(7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.head(torch.relu(x).mean(dim=(1, 2)))


class HandRMSNorm(nn.Module):
    """RMS norm written out; statistics in float32 or better, as language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        mean_square = x.to(torch.promote_types(x.dtype, torch.float32)).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean_square + 1e-6).to(x.dtype))


def weight_norm(old: bool) -> nn.Sequential:
    """Weight norm, by hook (`old`) or by parametrisation."""
    wrap = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    return nn.Sequential(wrap(nn.Linear(3, 7)), nn.ReLU(), wrap(nn.Linear(7, 5)), nn.ReLU(), wrap(nn.Linear(5, 2)))


def spectral_norm() -> nn.Sequential:
    """Spectral norm by parametrisation: the power iteration's vectors are buffers of the units' length."""
    wrap = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(wrap(nn.Linear(3, 7)), nn.ReLU(), wrap(nn.Linear(7, 5)), nn.ReLU(), nn.Linear(5, 2))


class UNet(nn.Module):
    """Two levels down, two up; skips by concatenation; group norms of 2 groups."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(6, 10, 3, stride=2, padding=1), nn.GroupNorm(2, 10), nn.SiLU())
        self.bottom = nn.Sequential(nn.Conv2d(10, 14, 3, stride=2, padding=1), nn.GroupNorm(2, 14), nn.SiLU())
        self.up1 = nn.ConvTranspose2d(14, 11, 2, stride=2)
        self.mix1 = nn.Sequential(nn.Conv2d(21, 13, 3, padding=1), nn.BatchNorm2d(13), nn.SiLU())
        self.up2 = nn.Conv2d(13, 5, 1)
        self.mix2 = nn.Sequential(nn.Conv2d(11, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x)
        second = self.down(first)
        y = self.mix1(torch.cat((second, self.up1(self.bottom(second))), dim=1))
        y = F.interpolate(self.up2(y), scale_factor=2.0, mode="nearest")
        return self.mix2(torch.cat((first, y), dim=1))


class ShuffleUnits(nn.Module):
    """Two units of ShuffleNetV2: 6 of 12 channels pass by, 6 are convolved; then both are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv2d(2, 12, 3), nn.Conv2d(12, 2, 1)
        self.branches = nn.ModuleList(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        for branch in self.branches:
            passing, convolved = x.chunk(2, dim=1)
            x = torch.cat((passing, branch(convolved)), dim=1)
            x = x.view(x.shape[0], 2, 6, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.head(x)


class SqueezeExcite(nn.Module):
    """A residual stream, scaled per channel by a gate computed from its own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner = nn.Conv2d(2, 7, 3), nn.Conv2d(7, 11, 3, padding=1)
        self.shrink, self.grow = nn.Conv2d(11, 3, 1), nn.Conv2d(3, 11, 1)
        self.leave, self.gamma = nn.Conv2d(11, 7, 1, bias=False), nn.Parameter(torch.ones(7, 1, 1))
        self.slope, self.head = nn.PReLU(7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = F.hardswish(self.inner(x))
        y = y * torch.sigmoid(self.grow(torch.relu(self.shrink(y.mean((2, 3), keepdim=True)))))
        x = self.slope(x + self.gamma * self.leave(y))
        return self.head(x.amax((2, 3)))
