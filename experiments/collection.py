"""The trained networks that several experiments share, and a command that trains them.

    python experiments/collection.py --data DIR --models DIR [--only NAME ...]

DIR of `--data` holds the folders `mnist`, `fashion-mnist` and `cifar-10-batches-py`. All of them together take about
an hour on one free CPU core that multiplies in bfloat16, several without.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import onebasin as ob
from data import Split, cifar10, mnist
from networks import densenet, mlp, mobilenet_v2, resnet20, vgg
from running import options
from training import Recipe, trained

CIFAR, FASHION, MNIST = "cifar-10-batches-py", "fashion-mnist", "mnist"


@dataclass(frozen=True)
class Net:
    """A network, the data it is trained on, and how.

    Args:
        make: builds it.
        data: folder of its data set.
        recipe: of its training.
        seeds: how many of them are trained: 0, 1, 2, ...
    """

    make: Callable[[], nn.Module]
    data: str
    recipe: Recipe
    seeds: int = 3


def _sgd(epochs: int, rate: float = 0.2, **settings: bool) -> Recipe:
    """Return the recipe of all convolutional networks here: a few epochs, one of them to warm up."""
    return Recipe(rate, epochs, 100, "sgd", decay=5e-4, **{"augment": True} | settings)


NETS = {
    "mnist_mlp": Net(mlp, MNIST, Recipe(1e-3, epochs=100, flax=True), 5),
    "mnist_mlp_short": Net(mlp, MNIST, Recipe(1e-3, epochs=5, flax=True)),
    "mnist_mlp_nobias": Net(partial(mlp, widths=(400, 200, 100), bias=False), MNIST, Recipe(1e-3, epochs=20)),
    "cifar_resnet20_half": Net(partial(resnet20, 1 / 2), CIFAR, _sgd(8)),
    "cifar_resnet20_half_short": Net(partial(resnet20, 1 / 2), CIFAR, _sgd(2)),
    "fashion_resnet20_half": Net(partial(resnet20, 1 / 2, "batch", 1), FASHION, _sgd(6, augment=False)),
    "cifar_vgg11_quarter": Net(partial(vgg, 11, 1 / 4), CIFAR, _sgd(6, 0.1)),
    "fashion_densenet": Net(partial(densenet, 8, 4, 1), FASHION, _sgd(4, augment=False)),
    "fashion_mobilenet": Net(partial(mobilenet_v2, 1 / 4, 1), FASHION, _sgd(3, augment=False, bf16=False)),
    "fashion_vgg11_plain": Net(partial(vgg, 11, 1 / 4, None, 1), FASHION, Recipe(1e-3, epochs=5, batch=100)),
    "cifar_resnet20": Net(resnet20, CIFAR, _sgd(4)),
    "mnist_mlp_part": Net(mlp, MNIST, Recipe(1e-3, epochs=25, flax=True, share=0.5), 32),
}

TITLES = {
    "cifar_resnet20_half": "ResNet20, width 1/2",
    "cifar_resnet20_half_short": "ResNet20, width 1/2, 2 epochs",
    "fashion_resnet20_half": "ResNet20, width 1/2, Fashion",
    "cifar_resnet20": "ResNet20, width 1",
    "cifar_vgg11_quarter": "VGG11, batch norm, width 1/4",
    "fashion_densenet": "DenseNet",
    "fashion_mobilenet": "MobileNetV2, width 1/4",
    "fashion_vgg11_plain": "VGG11, no norm, width 1/4",
    "mnist_mlp_nobias": "MLP 400-200-100, no biases",
    "mnist_mlp": "MLP 3x512, 100 epochs",
    "mnist_mlp_short": "MLP 3x512, 5 epochs",
}


@cache
def read(folder: Path) -> dict[str, Split]:
    """Read a data set by the name of its folder."""
    return cifar10(folder) if folder.name == CIFAR else mnist(folder)


def params_of(name: str, data: Path, models: Path | None, seed: int) -> tuple[ob.Params, float]:
    """Return the weights of one of `NETS` and the CPU seconds of its training, which is done now if need be."""
    net = NETS[name]
    return trained(name, net.make, read(data / net.data)["train"], net.recipe, seed, models)


def measured(
    model: nn.Module, params: ob.Params, evaluate: Callable[..., Any], batches: Iterable[Split] | None = None
) -> dict[str, float]:
    """Return what `evaluate` finds of `model` with these weights; with `batches`, after its batch norm is recomputed.

    The weights of `model` are overwritten.
    """
    model.load_state_dict(params if batches is None else ob.recompute_batchnorm(model, params, batches))
    with torch.no_grad():
        return evaluate(model.eval())


def main(arguments: list[str] | None = None) -> None:
    """Train all, or those that are named."""
    parser = options(__doc__, data="folder of the folders of the data sets")
    parser.add_argument("--only", nargs="+", choices=list(NETS), default=list(NETS), metavar="NAME", help="which")
    args = parser.parse_args(arguments)
    for name in args.only:
        for seed in range(NETS[name].seeds):
            params_of(name, args.data, args.models, seed)


if __name__ == "__main__":
    main()
