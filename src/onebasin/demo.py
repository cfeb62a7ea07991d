"""The demo's data, models and training: scikit-learn's 8 x 8 digits, two architectures, seconds on a CPU.

Everything here can be named on the command line, as in
`onebasin inspect --model onebasin.demo:convnet --inputs 2x1x8x8`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebasin.analysis import classification
from onebasin.errors import UsageError
from onebasin.functional import Predict
from onebasin.progress import Progress, silent

TEST_EXAMPLES = 497  # of 1797
BATCH = 100

Data = tuple[Tensor, Tensor]


def mlp() -> nn.Module:
    """Build the fully connected net of the demo: 64-512-512-10."""
    layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(64, 512), "relu1": nn.ReLU()}
    layers |= {"fc2": nn.Linear(512, 512), "relu2": nn.ReLU(), "fc3": nn.Linear(512, 10)}
    return nn.Sequential(OrderedDict(layers))


def convnet() -> nn.Module:
    """Build the convolutional net of the demo: three convolutions with batch norm (64, 128, 128 channels)."""
    layers: dict[str, nn.Module] = {}
    for number, (channels, out, stride) in enumerate(((1, 64, 1), (64, 128, 2), (128, 128, 2)), 1):
        layers[f"conv{number}"] = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        layers |= {f"norm{number}": nn.BatchNorm2d(out), f"relu{number}": nn.ReLU()}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(128, 10)}
    return nn.Sequential(OrderedDict(layers))


@dataclass(frozen=True)
class Recipe:
    """How one of the demo's networks is trained.

    Args:
        build: returns a new model.
        epochs: passes over the training set.
        shift: move the images of each batch by up to one pixel.
        batchnorm: whether the network has statistics to recompute after merging.
    """

    build: Callable[[], nn.Module]
    epochs: int
    shift: bool = False
    batchnorm: bool = False


RECIPES = {"mlp": Recipe(mlp, epochs=30), "convnet": Recipe(convnet, epochs=10, shift=True, batchnorm=True)}


@cache
def digits() -> tuple[Data, Data]:
    """Return training and test set: images `Float[Tensor, "n 1 8 8"]` in [0, 1] and labels `Int[Tensor, "n"]`.

    Raises:
        UsageError: scikit-learn, which holds the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "scikit-learn is not installed", "the package that holds the demo's images", "pip install onebasin[demo]"
        ) from None
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16
    y = torch.tensor(labels, dtype=torch.int64)[order]
    return (x[TEST_EXAMPLES:], y[TEST_EXAMPLES:]), (x[:TEST_EXAMPLES], y[:TEST_EXAMPLES])


def train(recipe: Recipe, seed: int, progress: Progress = silent) -> nn.Module:
    """Train one network on the digits, with AdamW and a one-cycle schedule.

    Args:
        recipe: which network, and for how long.
        seed: of the initialisation, the order of the images and the shifts.
        progress: told after each epoch.
    """
    (x, y), _ = digits()
    steps = len(y) // BATCH
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, generator = recipe.build(), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, recipe.epochs * steps)
        for epoch in range(recipe.epochs):
            for batch in torch.randperm(len(y), generator=generator).split(BATCH)[:steps]:
                images = _shifted(x[batch], generator) if recipe.shift else x[batch]
                loss = F.cross_entropy(model(images), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            progress(f"train {recipe.build.__name__}, seed {seed}", epoch + 1, recipe.epochs)
    return model.eval()


def evaluate(predict: Predict) -> float | Mapping[str, float]:
    """Return test loss (nats per example) and accuracy (in [0, 1]) of `predict`, a function from images to logits."""
    _, test = digits()
    return classification([test])(predict)


def batches() -> list[Tensor]:
    """Return training images in two batches, to recompute batch-norm statistics with."""
    (x, _), _ = digits()
    return list(x[:600].split(300))


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return F.pad(x, (1, 1, 1, 1))[..., 1 + down : 9 + down, 1 + right : 9 + right]
