"""One pass of two networks: what it measures is what separate passes measure, and halves merge to the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import case, params, spec_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from onebasin.activations import Activations
from onebasin.errors import SpecError, UsageError
from onebasin.layer_inputs import LayerInputs
from onebasin.pairs import PairMoments, PairStatistics

NAMES = ("mlp3", "depthwise", "in_place", "grouped_query", "einsum")


def batches(name: str, count: int = 4) -> list[Any]:
    inputs = [case(name).inputs(seed) for seed in range(count)]
    return [x if isinstance(x, dict) else (x,) for x in inputs]


def moments(name: str) -> PairMoments:
    return PairMoments(case(name).model(), spec_of(case(name)), params(case(name)), params(case(name), 1))


def tensors(found: PairStatistics) -> dict[str, Tensor]:
    units = {name: one.covariance for name, one in found.units.items()}
    layers = {f"{n} {side}": t for side, seen in enumerate((found.layers_a, found.layers_b)) for n, x in seen.items()
              for t in (torch.cat([x.inputs.covariance.flatten(), x.deviation.flatten()]),)}  # fmt: skip
    return units | layers


@pytest.mark.parametrize("name", NAMES)
def test_one_pass_measures_what_separate_ones_do(name: str) -> None:
    model, both = case(name).model(), moments(name)
    for batch in batches(name):
        both.update(batch)
    a, b, layers = params(case(name)), params(case(name), 1), LayerInputs(model, batches(name))
    apart = PairStatistics(Activations(model, batches(name))(spec_of(case(name)), a, b), layers(a), layers(b))
    found, expected = tensors(both.finalize()), tensors(apart)
    assert list(found) == list(expected) != []
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-12, atol=1e-14)
    assert not torch.equal(layers(a)[min(layers(a))].deviation, layers(b)[min(layers(b))].deviation)


@pytest.mark.parametrize("name", ["mlp3", "grouped_query"])
def test_two_halves_merged_equal_the_whole(name: str) -> None:
    whole, first, second = (moments(name) for _ in range(3))
    for number, batch in enumerate(batches(name)):
        whole.update(batch)
        (first if number < 2 else second).update(batch)
    half = tensors(first.finalize())
    first.merge(second)
    merged, expected = tensors(first.finalize()), tensors(whole.finalize())
    for key, tensor in expected.items():
        torch.testing.assert_close(merged[key], tensor, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(half[key], tensor, rtol=1e-3)


def test_each_network_runs_once_a_batch() -> None:
    products: list[Any] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            products.extend([func] * (func is torch.ops.aten.addmm.default))
            return func(*args, **(kwargs or {}))

    both = moments("mlp3")
    both.update(batches("mlp3")[0])  # traced once
    with Watching():
        both.update(batches("mlp3")[1])
    assert len(products) == 2 * 4  # networks of four layers


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="no batches"):
        moments("mlp3").finalize()
    with pytest.raises(UsageError, match=r"\(5, 4\)"):
        moments("mlp3").update(torch.ones(5, 4).double())
    with pytest.raises(SpecError, match="another spec"):
        moments("mlp3").merge(moments("einsum"))
