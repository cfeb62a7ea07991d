"""`align(a, P a)` finds its way back: the permutation found is the inverse of P, exactly."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cases import SUPPORTED, Case, params, spec_of
from helpers import assert_same
from models.plain import mlp
from sklearn.datasets import load_digits
from torch import nn

from onebasin.matching import Alignment, WeightMatching, align
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


def convnet() -> nn.Sequential:
    """Two convolutions with batch norm and a hidden layer, on 8 x 8 images."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 13, 3, padding=1, bias=False), nn.BatchNorm2d(13), nn.ReLU(),
        nn.Conv2d(13, 17, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(17), nn.ReLU(), nn.Flatten(),
        nn.Linear(17 * 16, 31), nn.ReLU(), nn.Linear(31, 10),
    )  # fmt: skip


MAKE = {"mlp": lambda: mlp((64, 61, 53, 47, 10)), "convnet": convnet}


@cache
def trained(name: str) -> tuple[PermutationSpec, Params]:
    """Train for a few epochs on scikit-learn's digits; return the spec and the trained params."""
    from onebasin.symmetry.discover import permutation_spec

    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MAKE[name]()
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(15):
            for rows in torch.randperm(len(images)).split(100):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimiser.step()
    model.eval()
    accuracy = (model(images).argmax(1) == labels).double().mean().item()
    assert accuracy > 0.95, "not trained: the law is about trained models here"
    return permutation_spec(model, (images[:3],)), {name: tensor.clone() for name, tensor in params_of(model).items()}


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def recover(spec: PermutationSpec, theta: Params, drawn: Permutation, seed: int = 0) -> Alignment:
    return align(spec, theta, drawn.apply(theta), WeightMatching(seed=seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MAKE)
def test_trained_models_are_recovered_in_four_sweeps(name: str, seed: int) -> None:
    spec, theta = trained(name)
    drawn = draw(spec, seed)
    found = recover(spec, theta, drawn, seed)
    assert found.permutation == drawn.inverse()
    assert_same(found.permutation.apply(drawn.apply(theta)), theta)
    assert len(found.objective) - 1 <= 4


@pytest.mark.parametrize("name", MAKE)
def test_another_model_is_not_recovered(name: str) -> None:
    """The negative twin: what is a permutation of something else comes back as something else."""
    spec, theta = trained(name)
    generator = torch.Generator().manual_seed(7)
    other = {key: tensor + torch.randn(tensor.shape, generator=generator) for key, tensor in theta.items()}
    drawn = draw(spec, 0)
    found = align(spec, theta, drawn.apply(other), WeightMatching(seed=0))
    assert found.permutation != drawn.inverse()
    with pytest.raises(AssertionError):
        assert_same(found.permutation.apply(drawn.apply(other)), theta)


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_random_models_are_recovered(case: Case) -> None:
    """With layers this narrow a run may end in a local optimum; one of a few visiting orders finds the way back.

    Compared through the weights: units that are equal in all that is matched may stand in for each other.
    """
    spec, theta = spec_of(case), params(case)
    drawn, best = draw(spec, 0), {name: theta[name] for name in spec.matched}
    for seed in range(10):
        found = recover(spec, theta, drawn, seed)
        assert list(found.objective) == sorted(found.objective), "the objective never decreases"
        again = found.permutation.apply(drawn.apply(theta))
        if all(torch.equal(again[name], best[name]) for name in best):
            return
    pytest.fail("no visiting order of ten leads back")


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_a_model_is_aligned_with_itself(case: Case) -> None:
    spec, theta = spec_of(case), params(case)
    found = align(spec, theta, theta, WeightMatching(seed=0))
    assert found.permutation == Permutation.identity(spec)
    assert found.objective[0] == found.objective[-1]
