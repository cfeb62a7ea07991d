"""What a user has: a file with models, evaluations and batches; and what a command line gives back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NET = """
import torch
from torch import nn
from torch.nn import functional as F

generator = torch.Generator().manual_seed(0)
X, Y = torch.randn(23, 3, generator=generator), torch.randint(0, 2, (23,), generator=generator)
IMAGES = torch.randn(13, 2, 5, 5, generator=generator)

def build():
    return nn.Sequential(nn.Linear(3, 11), nn.ReLU(), nn.Linear(11, 7), nn.ReLU(), nn.Linear(7, 2))

def wider():
    return nn.Sequential(nn.Linear(3, 13), nn.ReLU(), nn.Linear(13, 7), nn.ReLU(), nn.Linear(7, 2))

def convnet():
    layers = nn.Conv2d(2, 11, 3), nn.BatchNorm2d(11), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(11, 2))

def without_weights():
    with torch.device("meta"):
        return build()

def loud():
    print("this must not reach stdout")
    return build()

def failing():
    raise ValueError("no weights today")

def nothing():
    return None

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else self.fc(-x)

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, x, *, scale):
        return self.net(x) * scale

def inputs():
    return X[:5]

def nobody():
    return X[:0]

def named_inputs():
    return {"x": X[:5], "scale": torch.ones(5, 1)}

def loss(predict):
    return F.cross_entropy(predict(X), Y)

def both(predict):
    logits = predict(X)
    return {"loss": F.cross_entropy(logits, Y), "accuracy": (logits.argmax(1) == Y).double().mean()}

def image_loss(predict):
    return predict(IMAGES).square().mean()

def images():
    yield IMAGES[:6]
    yield IMAGES[6:]

def no_images():
    return [IMAGES[:0]]

def batches():
    return [(X[:11], Y[:11]), (X[11:], Y[11:])]

def squared(logits, labels):
    return (logits - F.one_hot(labels, 2)).square().mean()

def broken(logits, labels):
    return {}["loss"]

def infinite(logits, labels):
    return logits.sum() / 0

def constant(logits, labels):
    return 0.5

def no_arguments():
    return 0.0

def text(predict):
    return "low"

def not_finite(predict):
    return float("nan")

number = 3
"""


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; NaN and Infinity are no JSON."""
        return json.loads(self.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not strict JSON"))


def files(folder: Path) -> set[str]:
    """Return every path in `folder`, hidden ones too, apart from what Python caches."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in found if "__pycache__" not in path.parts}
