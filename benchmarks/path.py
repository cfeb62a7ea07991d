"""evaluate_path against the bare forward passes it needs."""

from collections.abc import Iterator

import torch
from torch import nn

import onebasin as ob
from benchmarks.timing import Row, compared

POINTS = 11


def run(large: bool = False) -> Iterator[Row]:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    a = ob.params_of(model)
    b = {name: value + 0.01 * torch.randn_like(value) for name, value in a.items()}
    batches = [(torch.randn(100, 3, 16, 16), torch.randint(10, (100,))) for _ in range(4)]
    evaluate = ob.classification(batches)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(POINTS):
                for inputs, _ in batches:
                    model(inputs)

    def curve() -> None:
        ob.evaluate_path(model, a, b, evaluate, POINTS)

    yield compared(f"small conv net: evaluate_path, {POINTS} points", curve, "bare forward passes", bare)
