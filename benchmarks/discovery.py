"""Discovery apart from export: on the meta device nothing is proved, so beside the export there is only the search."""

import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from zoo.tiny_transformers import transformers

import onebasin as ob
from benchmarks.large_models import LENGTH, llama_8b
from benchmarks.timing import Phases, Row

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


def vit_b() -> nn.Module:
    """12 layers of 12 heads on 768 units, patches of 16 x 16."""
    library = transformers()
    return library.ViTForImageClassification(library.ViTConfig())


def searched_and_exported(
    model: nn.Module, inputs: tuple[Tensor, ...] | dict[str, Any], runs: int
) -> tuple[float, float]:
    """Return the median CPU seconds of `torch.export`, and of all else in discovery, after a run to warm up."""
    done = []
    for _ in range(runs + 1):
        phases = Phases()
        with phases.phase("search"), phases.watching({"export": ["torch.export.export"]}):
            ob.permutation_spec(model, inputs)
        done.append(phases.spent)
    search, export = (statistics.median(spent[name] for spent in done[1:]) for name in ("search", "export"))
    return search, export


IMAGES = (2, 3, 224, 224)
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...] | dict[str, Any]]]] = {
    "ResNet50": (resnet50, lambda: (torch.empty(IMAGES),)),
    "ViT-B": (vit_b, lambda: (torch.empty(IMAGES),)),
    "LLaMA 8B": (llama_8b, lambda: {"input_ids": torch.zeros(2, LENGTH, dtype=torch.long), "use_cache": False}),
}


def run(large: bool = False) -> Iterator[Row | str]:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name, (make, given) in CASES.items():
        try:
            with torch.device("meta"):
                model, inputs = make().eval(), given()
        except (ImportError, SystemExit) as error:
            yield f"{name}: skipped, since {error}"
            continue
        search, export = searched_and_exported(model, inputs, runs=5 if large else 1)
        yield Row(f"{name}: discovery apart from export", search, "torch.export", search / export)
