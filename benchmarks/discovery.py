"""Discovery apart from export: on the meta device nothing is proved, so beside the export there is only the search."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import onebasin as ob
from benchmarks.timing import Row, median_seconds

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut."""

    def __init__(self, given: int, inner: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *conv(given, inner, 1), nn.ReLU(), *conv(inner, inner, 3, stride), nn.ReLU(), *conv(inner, 4 * inner, 1)
        )
        fits = given == 4 * inner and stride == 1
        self.shortcut = nn.Identity() if fits else nn.Sequential(*conv(given, 4 * inner, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def conv(given: int, out: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(given, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out)


def resnet50() -> nn.Module:
    layers, given = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for inner, count, stride in STAGES:
        for number in range(count):
            layers.append(Bottleneck(given, inner, stride if number == 0 else 1))
            given = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, 1000)).eval()


def run(large: bool = False) -> Iterator[Row]:
    with torch.device("meta"):
        model, inputs = resnet50(), (torch.empty(2, 3, 224, 224),)
    exporting: list[float] = []
    export = torch.export.export

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return export(*args, **kwargs)
        finally:
            exporting.append(time.process_time() - start)

    torch.export.export = timed
    try:
        whole = median_seconds(lambda: ob.permutation_spec(model, inputs))
    finally:
        torch.export.export = export
    inside = statistics.median(exporting)
    yield Row("ResNet50: discovery apart from export", whole - inside, "torch.export", (whole - inside) / inside)
