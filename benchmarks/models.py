"""Pairs of networks to be matched: trained for a short while on small images, or one a permutation of the other."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from experiments.networks import mlp, resnet20
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

import onebasin as ob


@dataclass(frozen=True)
class Pair:
    """Two networks of one architecture."""

    name: str
    spec: ob.PermutationSpec
    a: ob.Params
    b: ob.Params

    def planted(self) -> "Pair":
        """Return the first network beside itself with its units in another order."""
        order = ob.Permutation.random(self.spec, torch.Generator().manual_seed(5))
        return Pair(f"{self.name.removesuffix(', trained')}, planted", self.spec, self.a, order.apply(self.a))


def digits(size: int) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1797 handwritten digits of 8 x 8 pixels, enlarged."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    return interpolate(pixels, (size, size), mode="bilinear") if size != 8 else pixels, torch.from_numpy(labels).long()


def trained(make: Callable[[], nn.Module], size: int, epochs: int, seed: int) -> ob.Params:
    """Train one network with Adam on digits of `size` x `size` pixels."""
    images, labels = digits(size)
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(images), generator=random).split(100):
            optimizer.zero_grad()
            cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    return ob.params_of(model)


def trained_pair(name: str, make: Callable[[], nn.Module], size: int, epochs: int) -> Pair:
    spec = ob.permutation_spec(make().eval(), (torch.randn(2, 1, size, size),))
    a, b = (trained(make, size, epochs, seed) for seed in (0, 1))
    return Pair(f"{name}, trained", spec, a, b)


def mlp_pair(width: int, depth: int = 3, epochs: int = 20) -> Pair:
    return trained_pair(f"MLP {depth}x{width}", lambda: mlp(widths=(width,) * depth), 28, epochs)


def resnet_pair(width: int, epochs: int = 2) -> Pair:
    return trained_pair(f"ResNet20 {width}x", lambda: resnet20(width, channels=1), 8, epochs)
