"""Laws of covariance-weighted features: they move as the weights do, and are what the definition says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from cases import case, params, spec_of
from torch import Tensor, nn

from onebasin.layer_inputs import LayerInputs
from onebasin.layers import LayerStatistics
from onebasin.matching import Covariance, Features, Hybrid, WeightMatching, align
from onebasin.matching.objective import Objective
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec
from onebasin.symmetry.discover import permutation_spec

# Plain, batch norm, depthwise, residual, shared; nested: groups of channels, heads, grouped queries, einsum.
NAMES = ("mlp3", "conv2d", "depthwise", "resnet20_conv", "grouped_conv", "unet", "fused_qkv", "grouped_query", "einsum")
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


@cache
def measure(name: str) -> LayerInputs:
    inputs = [case(name).inputs(seed) for seed in range(3)]
    return LayerInputs(case(name).model(), [x if isinstance(x, dict) else (x,) for x in inputs])


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def moved_ones(features: Features, spec: PermutationSpec, theta: Params) -> dict[str, Tensor]:
    """Return F of the second model, which is not scaled."""
    return {feature.name: feature.b for feature in features.of(spec, theta, theta)}


@pytest.mark.parametrize("name", NAMES)
def test_features_commute_with_permutations(name: str) -> None:
    spec, theta = spec_of(case(name)), params(case(name))
    p, own = draw(spec, 1), Covariance(measure(name))
    before, after = moved_ones(own, spec, theta), moved_ones(own, spec, p.apply(theta))
    assert set(before) == {name for name in spec.matched if theta[name].dim() > 1}
    for tensor, feature in before.items():
        torch.testing.assert_close(after[tensor], p.move(feature, spec.tensors[tensor]), **CLOSE)
    strange = Covariance(lambda params, progress: measure(name)(theta, progress))  # statistics of another order
    wrong = moved_ones(strange, spec, p.apply(theta))
    assert any(not torch.allclose(wrong[n], p.move(f, spec.tensors[n]), rtol=1e-3) for n, f in before.items())


class Net(nn.Module):
    """A dense layer, a convolution, one in groups and a depthwise one, and something that is only looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 2, groups=2)
        self.depthwise, self.looked_up = nn.Conv2d(6, 6, 1, groups=6), nn.Embedding(5, 7)
        self.fc = nn.Linear(6 * 9, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.grouped(self.conv(x).relu()).relu()).relu()
        return self.fc(x.flatten(1)) * self.looked_up(torch.zeros(len(x), dtype=torch.int64))


def net() -> tuple[Net, LayerInputs]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double().eval(), LayerInputs(Net().double(), [torch.randn(97, 2, 6, 6).double() + 0.5])


def root(matrix: Tensor) -> Tensor:
    from scipy.linalg import sqrtm

    return torch.from_numpy(sqrtm(matrix.numpy()).real)


def test_they_are_what_the_definition_says() -> None:
    model, measured = net()
    theta, seen = params_of(model), measured(params_of(model))
    spec = permutation_spec(model, torch.zeros(2, 2, 6, 6).double())
    found = moved_ones(Covariance(measured), spec, theta)

    def by_rows(name: str) -> Tensor:
        return theta[name] / seen[name].deviation.reshape(-1, *[1] * (theta[name].dim() - 1))

    conv = torch.einsum("oikl,ij->ojkl", by_rows("conv.weight"), root(seen["conv.weight"].inputs.covariance))
    torch.testing.assert_close(found["conv.weight"], conv, **CLOSE)
    halves = zip(by_rows("grouped.weight").chunk(2), seen["grouped.weight"].inputs.covariance, strict=True)
    grouped = torch.cat([torch.einsum("oikl,ij->ojkl", half, root(covariance)) for half, covariance in halves])
    torch.testing.assert_close(found["grouped.weight"], grouped, **CLOSE)
    torch.testing.assert_close(found["depthwise.weight"], by_rows("depthwise.weight"), **CLOSE)
    # Of a dense layer, the products of rows are the correlations of its outputs.
    rows = found["fc.weight"] @ found["fc.weight"].T
    torch.testing.assert_close(rows.diagonal(), torch.ones(7).double(), **CLOSE)
    assert not torch.allclose(rows, torch.eye(7).double(), atol=0.1)


def test_a_perfect_match_is_worth_one_a_tensor() -> None:
    model, measured = net()
    theta, spec = params_of(model), permutation_spec(model, torch.zeros(2, 2, 6, 6).double())
    itself = Objective(spec, Covariance(measured).of(spec, theta, theta))
    assert itself.value(Permutation.identity(spec)) == pytest.approx(len(itself.features))


def test_weights_without_statistics_and_dead_outputs() -> None:
    model, measured = net()
    theta, spec = params_of(model), permutation_spec(model, torch.zeros(2, 2, 6, 6).double())

    def partly(params: Params, progress: Progress = silent) -> dict[str, LayerStatistics]:
        found = measured(params, progress)
        dead = found["conv.weight"].deviation.index_fill(0, torch.tensor([2]), 0.0)
        return {"conv.weight": replace(found["conv.weight"], deviation=dead)}

    found = moved_ones(Covariance(partly), spec, theta)
    torch.testing.assert_close(found["grouped.weight"], theta["grouped.weight"], rtol=0, atol=0)
    assert found["conv.weight"][2].abs().max() == 0
    whole = moved_ones(Covariance(measured), spec, theta)["conv.weight"]
    torch.testing.assert_close(found["conv.weight"][[0, 1, 3]], whole[[0, 1, 3]], **CLOSE)


@pytest.mark.parametrize("solver", ["coordinate-descent", "frank-wolfe"])
@pytest.mark.parametrize("name", ["mlp3", "depthwise", "grouped_conv", "grouped_query"])
def test_a_planted_permutation_comes_back(name: str, solver: str) -> None:
    spec, theta = spec_of(case(name)), params(case(name))
    moved = draw(spec, 1).apply(theta)
    features = Covariance(measure(name))
    runs = (WeightMatching(seed, solver=solver, features=features) for seed in range(6))  # type: ignore[arg-type]
    found = (align(spec, theta, moved, run).permutation.apply(moved) for run in runs)
    names = [name for name in spec.matched if theta[name].dim() > 1]
    assert any(all(torch.equal(one[n], theta[n]) for n in names) for one in found)


def test_settings_tell_the_features() -> None:
    spec, theta = spec_of(case("mlp3")), params(case("mlp3"))
    weights = WeightMatching(features=Covariance(measure("mlp3")))
    told = align(spec, theta, theta, weights).to_json()
    assert told["settings"]["features"] == {"name": "Covariance"}
    seen: list[str] = []
    Hybrid(_Nothing(), weights).objective(spec, theta, theta, lambda task, *_: seen.append(task))
    assert seen == ["layer inputs"] * 6


class _Nothing:
    def objective(self, spec: PermutationSpec, *_: object) -> Objective:
        return Objective(spec)
