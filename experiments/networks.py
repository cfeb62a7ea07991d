"""Networks of the experiments: plain modules, each with its width as an argument.

Convolutional ones take images of any size from 28 x 28 up; a width of 1 is the published one, a fraction is narrower.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "layer"] | None
VGG_CHANNELS = {
    11: (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
    16: (64, 64, "pool", 128, 128, "pool", *(256,) * 3, "pool", *(512,) * 3, "pool", *(512,) * 3, "pool"),
}


def mlp(
    inputs: int = 784, widths: Sequence[int] = (512, 512, 512), classes: int = 10, bias: bool = True
) -> nn.Sequential:
    """Build a ReLU network on flattened images."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip((inputs, *widths), widths, strict=False):
        layers += [nn.Linear(before, after, bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes, bias))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel, as Flax has it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `Float[Tensor, "batch channels height width"]`."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def norm_of(kind: Norm, channels: int) -> nn.Module:
    """Return the layer that normalises `channels`."""
    return {"batch": nn.BatchNorm2d, "layer": ChannelNorm}[kind](channels) if kind else nn.Identity()


def vgg(
    depth: Literal[11, 16] = 11, width: float = 1.0, norm: Norm = "batch", channels: int = 3, classes: int = 10
) -> nn.Sequential:
    """Build a VGG with one linear layer as its head; 28 x 28 and 32 x 32 images end as a single pixel."""
    layers: list[nn.Module] = []
    for step in VGG_CHANNELS[depth]:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            continue
        after = round(step * width)
        layers += [nn.Conv2d(channels, after, 3, padding=1), norm_of(norm, after), nn.ReLU()]
        channels = after
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, classes))
    if norm is None:  # signals fade on their way through eight layers that start as torch has it
        for layer in model:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 3 x 3 convolution too where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        bias = norm is None
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=bias), norm_of(norm, after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=bias), norm_of(norm, after)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=bias), norm_of(norm, after))

    def forward(self, x: Tensor) -> Tensor:
        """Add both ways."""
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def resnet20(width: float = 1.0, norm: Norm = "batch", channels: int = 3, classes: int = 10) -> nn.Sequential:
    """Build the ResNet20 of Git Re-Basin: three stages of three blocks, 16, 32 and 64 channels times `width`."""
    sizes = [round(size * width) for size in (16, 32, 64)]
    layers = [nn.Conv2d(channels, sizes[0], 3, padding=1, bias=norm is None), norm_of(norm, sizes[0]), nn.ReLU()]
    before = sizes[0]
    for stage, after in enumerate(sizes):
        for block in range(3):
            layers.append(Residual(before, after, 2 if stage and not block else 1, norm))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class DenseLayer(nn.Module):
    """Norm, ReLU and a 3 x 3 convolution, whose outputs are put beside the inputs."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return inputs and outputs."""
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet(growth: int = 12, layers: int = 4, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """Build a small DenseNet: a strided stem, then three dense blocks with halving transitions between."""
    size = 2 * growth
    parts: list[nn.Module] = [nn.Conv2d(channels, size, 3, 2, 1, bias=False)]
    for block in range(3):
        if block:
            parts += [nn.BatchNorm2d(size), nn.ReLU(), nn.Conv2d(size, size // 2, 1, bias=False), nn.AvgPool2d(2)]
            size //= 2
        for _ in range(layers):
            parts.append(DenseLayer(size, growth))
            size += growth
    head = [nn.BatchNorm2d(size), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(size, classes)]
    return nn.Sequential(*parts, *head)


class InvertedResidual(nn.Module):
    """Widen by a 1 x 1 convolution, filter each channel by itself, narrow again; a shortcut where the shape stays."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.layers = nn.Sequential(
            *(conv_norm(before, inner, 1), nn.ReLU6()) if expansion > 1 else (),
            *(conv_norm(inner, inner, 3, stride, groups=inner), nn.ReLU6(), conv_norm(inner, after, 1)),
        )
        self.keeps_shape = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Return the narrow outputs."""
        return x + self.layers(x) if self.keeps_shape else self.layers(x)


def conv_norm(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias and its batch norm."""
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after))


# Expansion, channels, blocks and stride of each stage of MobileNetV2; strides are those used for small images.
MOBILE_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(width: float = 1.0, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """Build a MobileNetV2 whose stem halves the image once."""
    before = max(4, round(32 * width))
    parts: list[nn.Module] = [conv_norm(channels, before, 3, 2), nn.ReLU6()]
    for expansion, size, blocks, stride in MOBILE_STAGES:
        after = max(4, round(size * width))
        for block in range(blocks):
            parts.append(InvertedResidual(before, after, 1 if block else stride, expansion))
            before = after
    last = round(1280 * width)
    parts += [conv_norm(before, last, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]
    return nn.Sequential(*parts)
