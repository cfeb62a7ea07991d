"""Weight matching and applying a permutation."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

import onebasin as ob
from benchmarks.timing import Row, compared

WIDTH = 512


def run(large: bool = False) -> Iterator[Row]:
    torch.manual_seed(0)
    sizes = (784, WIDTH, WIDTH, WIDTH, 10)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    spec = ob.permutation_spec(model, (torch.randn(2, 784),))
    params = ob.params_of(model)
    permutation = ob.Permutation.random(spec, torch.Generator().manual_seed(0))
    moved = permutation.apply(params)
    weights = [value for value in params.values() if value.dim() == 2]

    def products() -> None:
        for _ in range(3):  # one sweep needs about two products a group: rows of one weight, columns of the next
            for weight in weights:
                weight @ weight.T

    yield compared(
        "MLP 3x512: match a planted permutation",
        lambda: ob.align(spec, params, moved),
        "3 sweeps of products",
        products,
    )
    copies = "copies of the weights"
    copy = lambda: {name: value.clone() for name, value in params.items()}  # noqa: E731
    yield compared("MLP 3x512: apply a permutation", lambda: permutation.apply(params), copies, copy)
