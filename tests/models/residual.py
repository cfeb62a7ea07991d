"""Networks with skips: ResNet 18, 20 and 50, DenseNet121, MobileNetV2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions and a skip; `shortcut` maps the input where the shape changes."""

    def __init__(self, wide_in: int, wide_out: int, stride: int, shortcut: nn.Module, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, wide_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide_out)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a skip."""

    def __init__(self, wide_in: int, wide_out: int, stride: int, shortcut: nn.Module, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, wide_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide_out)
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y += self.shortcut(x)
        return self.relu(y)


class PadShortcut(nn.Module):
    """Option A: every second pixel, zeros for the channels that are new (`before` and `after` the old ones)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def conv_shortcut(wide_in: int, wide_out: int, stride: int) -> nn.Module:
    """1x1 convolution and batch norm."""
    return nn.Sequential(nn.Conv2d(wide_in, wide_out, 1, stride, bias=False), nn.BatchNorm2d(wide_out))


class ResNet(nn.Module):
    """A stem and stages of residual blocks.

    `streams[s]` is the width between the blocks of stage s, `inners[s]` the width inside its blocks. `pads` makes the
    shortcuts those of option A. `stem` differs from `streams[0]` in ResNet50, whose first stage has a shortcut too.
    """

    def __init__(
        self,
        block: type[Block] | type[Bottleneck],
        depths: Sequence[int],
        streams: Sequence[int],
        inners: Sequence[int],
        pads: Sequence[tuple[int, int]] = (),
        stem: int | None = None,
    ) -> None:
        super().__init__()
        width = stem or streams[0]
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        for stage, (depth, stream, inner) in enumerate(zip(depths, streams, inners, strict=True)):
            blocks = nn.Sequential()
            for number in range(depth):
                stride = 2 if stage and not number else 1
                shortcut: nn.Module = nn.Identity()
                if width != stream:
                    shortcut = PadShortcut(*pads[stage - 1]) if pads else conv_shortcut(width, stream, stride)
                blocks.append(block(width, stream, stride, shortcut, inner))
                width = stream
            self.stages.append(blocks)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        for stage in self.stages:
            x = stage(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DenseLayer(nn.Module):
    """Norm, 1x1, norm, 3x3: `growth` new channels, appended to all before them."""

    def __init__(self, wide_in: int, inner: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(wide_in), nn.Conv2d(wide_in, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(torch.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(torch.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """Dense blocks; between them transitions (norm, 1x1 convolution, pooling) of the given widths."""

    def __init__(self, depths: Sequence[int], stem: int, inner: int, growth: int, transitions: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        width = stem
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for number, depth in enumerate(depths):
            self.blocks.append(nn.ModuleList(DenseLayer(width + k * growth, inner, growth) for k in range(depth)))
            width += depth * growth
            if number < len(transitions):
                conv = nn.Conv2d(width, transitions[number], 1, bias=False)
                self.transitions.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), conv, nn.AvgPool2d(2)))
                width = transitions[number]
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            features = [x]
            for layer in block:  # type: ignore[attr-defined]
                features.append(layer(features))
            x = torch.cat(features, 1)
            if number < len(self.transitions):
                x = self.transitions[number](x)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


def conv_norm_relu6(wide_in: int, wide_out: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU6."""
    conv = nn.Conv2d(wide_in, wide_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(wide_out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, project by 1x1; a skip where the shape stays."""

    def __init__(self, wide_in: int, wide_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = wide_in * expansion
        layers = [conv_norm_relu6(wide_in, hidden, 1, 1)] if expansion > 1 else []
        layers.append(conv_norm_relu6(hidden, hidden, 3, stride, groups=hidden))
        layers += [nn.Sequential(nn.Conv2d(hidden, wide_out, 1, bias=False), nn.BatchNorm2d(wide_out))]
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and wide_in == wide_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals in seven stages of the given widths, then a wide 1x1 convolution `last`."""

    REPEATS = (1, 2, 3, 4, 3, 3, 1)
    STRIDES = (1, 2, 2, 2, 1, 2, 1)

    def __init__(self, stem: int, widths: Sequence[int], last: int, expansion: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm_relu6(3, stem, 3, 1)]
        wide_in = stem
        for stage, (width, repeats, stride) in enumerate(zip(widths, self.REPEATS, self.STRIDES, strict=True)):
            for number in range(repeats):
                layers.append(InvertedResidual(wide_in, width, 1 if number else stride, expansion if stage else 1))
                wide_in = width
        layers.append(conv_norm_relu6(wide_in, last, 1, 1))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1))
