"""Narrow nets trained on scikit-learn's digits, on which weight matching leaves a barrier."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onebasin.interpolate import lerp
from onebasin.matching.following import classification_loss
from onebasin.params import Params, params_of
from onebasin.spec import PermutationSpec

Batches = list[tuple[Tensor, Tensor]]


def narrow(batch_norm: bool = False) -> nn.Sequential:
    """A net so narrow that weight matching leaves a barrier."""
    norm = [nn.BatchNorm1d(13)] if batch_norm else []
    return nn.Sequential(nn.Linear(64, 13), *norm, nn.ReLU(), nn.Linear(13, 11), nn.ReLU(), nn.Linear(11, 10))


@cache
def digits() -> Batches:
    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    return list(zip(images.split(300), labels.split(300), strict=True))


@cache
def trained(seed: int, batch_norm: bool = False) -> Params:
    return fitted(lambda: narrow(batch_norm), seed)


def fitted(make: Callable[[], nn.Module], seed: int) -> Params:
    """Return the params of a network after 25 epochs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for images, labels in 25 * digits():
            optimiser.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimiser.step()
    return {name: tensor.clone() for name, tensor in params_of(model.eval()).items()}


@cache
def spec_of(batch_norm: bool = False) -> PermutationSpec:
    from onebasin.symmetry.discover import permutation_spec

    return permutation_spec(narrow(batch_norm), (digits()[0][0][:3],))


def loss_between(model: nn.Module, a: Params, b: Params, *, train: bool = False) -> float:
    """Return the loss at the midpoint."""
    model.load_state_dict(lerp(a, b, 0.5))
    with torch.no_grad():
        return sum(classification_loss(model.train(train), batch).item() for batch in digits()) / len(digits())
