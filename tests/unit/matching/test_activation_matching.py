"""Activation matching: planted permutations come back, from data and from synthetic inputs; groups are independent."""

from __future__ import annotations

import json

import pytest
import torch
from cases import case, params, spec_of
from torch import Tensor

from onebasin.activations import Activations
from onebasin.errors import UsageError
from onebasin.matching import ActivationMatching, Alignment, align
from onebasin.matching.activation import Statistic
from onebasin.merging import merge
from onebasin.moments import CrossMoments, CrossStatistics
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress
from onebasin.spec import PermutationSpec
from onebasin.synthetic import synthetic_batches

# Plain, with batch norm, residual, depthwise, cut and joined; nested: groups of channels, heads, grouped queries.
PLANTED = (
    "mlp3", "conv2d", "instance_norm", "depthwise", "resnet20_conv", "cut_and_join", "in_place", "token_mixer",
    "grouped_conv", "unet", "multihead_attention", "encoder", "fused_qkv", "grouped_query", "einsum", "two_inputs",
)  # fmt: skip
NESTED = ("grouped_conv", "unet", "encoder", "fused_qkv", "grouped_query", "einsum")


def measure(name: str, count: int = 6) -> Activations:
    inputs = [case(name).inputs(seed) for seed in range(count)]
    return Activations(case(name).model(), [x if isinstance(x, dict) else (x,) for x in inputs])


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def wrong(found: Alignment, planted: Permutation) -> list[str]:
    expected = planted.inverse()
    return [name for name, index in found.permutation.indices.items() if not torch.equal(index, expected.indices[name])]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_permutation_comes_back(name: str) -> None:
    spec, theta = spec_of(case(name)), params(case(name))
    planted = draw(spec, 1)
    found = align(spec, theta, planted.apply(theta), ActivationMatching(measure(name)))
    assert wrong(found, planted) == []
    assert len(found.objective) == 2  # one sweep
    assert found.certificate.gap < 1e-12


@pytest.mark.parametrize("name", NESTED)
def test_without_nesting_it_does_not_come_back(name: str) -> None:
    """The negative twin: one order shared by all heads cannot undo one for each of them."""
    spec, theta = spec_of(case(name)), params(case(name))
    flat = PermutationSpec(spec.sizes, spec.tensors, {}, spec.buffers, spec.ties, spec.taps)
    planted = draw(spec, 1)
    found = align(flat, theta, planted.apply(theta), ActivationMatching(measure(name)))
    again = found.permutation.apply(planted.apply(theta))
    assert not all(torch.allclose(again[key], theta[key]) for key in spec.matched)


@pytest.mark.parametrize("name", ["mlp3", "resnet20_conv", "fused_qkv"])
def test_by_correlation(name: str) -> None:
    spec, theta = spec_of(case(name)), params(case(name))
    planted = draw(spec, 1)
    matcher = ActivationMatching(measure(name), "correlation")
    assert wrong(align(spec, theta, planted.apply(theta), matcher), planted) == []
    assert wrong(align(spec, params(case(name), 1), planted.apply(theta), matcher), planted) != []


@pytest.mark.parametrize("name", ["resnet20_conv", "fused_qkv", "encoder"])
def test_from_synthetic_inputs(name: str) -> None:
    c = case(name)
    spec, theta, planted = spec_of(c), params(c), draw(spec_of(c), 1)
    batches = synthetic_batches(c.model(), c.inputs(), samples=64, batch=32)
    matcher = ActivationMatching(Activations(c.model(), batches, batchnorm=True))
    assert wrong(align(spec, theta, planted.apply(theta), matcher), planted) == []


def test_the_start_does_not_matter() -> None:
    spec, a, b = spec_of(case("grouped_query")), params(case("grouped_query")), params(case("grouped_query"), 1)
    matcher = ActivationMatching(measure("grouped_query"))
    one, other = align(spec, a, b, matcher), align(spec, a, b, matcher, start=draw(spec, 5))
    assert one.permutation == other.permutation
    assert one.objective[-1] == pytest.approx(other.objective[-1])


SPEC = PermutationSpec.from_axes(
    {"fc1.weight": ("P0", None), "fc2.weight": (None, "P0")}, {"fc1.weight": (7, 3), "fc2.weight": (2, 7)}
)


def given(a: Tensor, b: Tensor) -> CrossStatistics:
    moments = CrossMoments(a.shape[1])
    moments.update(a, b)
    return moments.finalize()


def matched(a: Tensor, b: Tensor, statistic: Statistic) -> Tensor:
    def known(
        spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress
    ) -> dict[str, CrossStatistics]:
        return {"P0": given(a, b)}

    theta = {name: torch.ones(shape) for name, shape in SPEC.shapes.items()}
    return align(SPEC, theta, theta, ActivationMatching(known, statistic)).permutation.indices["P0"]


def test_the_product_is_neither_centred_nor_scaled_and_the_correlation_both() -> None:
    a = torch.randn(97, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order, shift = torch.tensor([3, 0, 6, 1, 5, 2, 4]), torch.arange(7.0, 0, -1) * 30
    b = (a * torch.tensor([1, 20, 3, 50, 7, 2, 9.0]))[:, order] + 100 * torch.arange(7)
    assert torch.equal(matched(a, b, "correlation"), order.argsort())
    large = a + shift
    assert torch.equal(matched(large, b, "product"), torch.arange(6, -1, -1))  # sorted by mean: rearrangement


def test_dead_units_are_matched_with_dead_units() -> None:
    a = torch.randn(97, 7, generator=torch.Generator().manual_seed(0)).clamp(min=-1)
    a[:, 2] = a[:, 5] = 0
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    for statistic in ("product", "correlation"):
        found = order[matched(a, a[:, order], statistic)]
        assert found[[0, 1, 3, 4, 6]].tolist() == [0, 1, 3, 4, 6]
        assert sorted(found[[2, 5]].tolist()) == [2, 5]


def test_a_group_that_is_read_nowhere_keeps_the_start() -> None:
    spec, theta = spec_of(case("lstm")), params(case("lstm"))
    start = draw(spec, 2)
    found = align(spec, theta, params(case("lstm"), 1), ActivationMatching(measure("lstm")), start=start)
    assert torch.equal(found.permutation.indices["cell"], start.indices["cell"])


def test_every_model_of_a_merge_is_measured() -> None:
    spec, theta = spec_of(case("mlp3")), params(case("mlp3"))
    copies = [theta, *(draw(spec, seed).apply(theta) for seed in (1, 2))]
    merged = merge(spec, copies, ActivationMatching(measure("mlp3")))
    for name, tensor in theta.items():
        torch.testing.assert_close(merged.params[name], tensor)
    assert json.loads(json.dumps(merged.provenance))["settings"] == {"statistic": "product"}


def test_an_unknown_statistic_is_refused() -> None:
    with pytest.raises(UsageError, match="covariance"):
        ActivationMatching(measure("mlp3"), "covariance")  # type: ignore[arg-type]
