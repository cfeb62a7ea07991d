"""Recomputed statistics of batch norm are exact, and the caller's model stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same, clone, randomise
from torch import Tensor, nn

from onebasin.batchnorm import recompute_batchnorm
from onebasin.errors import ParamsError, UsageError
from onebasin.params import Params, params_of, tied_names


def conv_net(momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(2, momentum=momentum),
        nn.Conv2d(2, 7, 3),
        nn.BatchNorm2d(7, momentum=momentum, affine=False),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(7 * 3 * 3, 5),
        nn.BatchNorm1d(5, momentum=momentum),
        nn.BatchNorm1d(5, track_running_stats=False),
    ).double()
    randomise(model, 1)
    return model


def images(count: int = 31, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 11


def pooled(features: Tensor) -> tuple[Tensor, Tensor]:
    flat = features.movedim(1, -1).reshape(-1, features.shape[1])
    return flat.mean(0), flat.var(0)


def test_first_layer_gets_the_pooled_moments_of_unequal_batches() -> None:
    model, data = conv_net(), images()
    found = recompute_batchnorm(model, params_of(model), data.split([2, 11, 18]))
    mean, variance = pooled(data)
    torch.testing.assert_close(found["0.running_mean"], mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(found["0.running_var"], variance, rtol=1e-13, atol=0)
    averaged = torch.stack([pooled(batch)[1] for batch in data.split([2, 11, 18])]).mean(0)
    assert ((found["0.running_var"] - averaged).abs() > 1e-3).any()  # an average of variances is something else
    assert found["0.num_batches_tracked"].item() == 3


def test_deeper_layers_see_batch_statistics_upstream_and_no_dropout() -> None:
    model, data = conv_net(), images()
    found = recompute_batchnorm(model, params_of(model), data.split([13, 18]))
    features = []
    for batch in data.split([13, 18]):
        mean, variance = batch.mean((0, 2, 3), keepdim=True), batch.var((0, 2, 3), correction=0, keepdim=True)
        scale, shift = (params_of(model)[f"0.{name}"][:, None, None] for name in ("weight", "bias"))
        features.append(model[1]((batch - mean) / (variance + 1e-5).sqrt() * scale + shift))
    mean, variance = pooled(torch.cat(features))
    torch.testing.assert_close(found["2.running_mean"], mean.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found["2.running_var"], variance.detach(), rtol=1e-12, atol=0)


def test_one_batch_gives_what_torch_stores_without_momentum() -> None:
    model, data = conv_net(momentum=None), images()
    model[4].eval()
    found = recompute_batchnorm(model, params_of(model), [data])
    for layer in (0, 2, 7):
        model[layer].reset_running_stats()
    model.train()
    model[4].eval()
    model(data)
    for name, tensor in params_of(model).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 1.0, None])
def test_momentum_does_not_matter(momentum: float | None) -> None:
    model, other = conv_net(), conv_net(momentum)
    batches = images().split([13, 18])
    expected = recompute_batchnorm(model, params_of(model), batches)
    assert_same(recompute_batchnorm(other, params_of(other), batches), expected)


def test_in_eval_mode_the_network_then_normalises_its_inputs() -> None:
    model, data = conv_net(), images()
    found = recompute_batchnorm(model, params_of(model), [data])
    model.load_state_dict(found)
    model.eval()
    seen: list[Tensor] = []
    model[2].register_forward_hook(lambda _, args, out: seen.append(out))
    model(data)
    mean, variance = pooled(seen[0].detach())
    torch.testing.assert_close(mean, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones(7, dtype=torch.float64), rtol=3e-3, atol=0)


@pytest.mark.parametrize(
    "batch",
    [images(), (images(),), [images(), torch.zeros(31)], {"input": images(), "labels": torch.zeros(31)}],
    ids=["tensor", "tuple of one", "inputs and labels", "dict"],
)
def test_batches_of_every_kind(batch: Any) -> None:
    model = conv_net()
    expected = recompute_batchnorm(model, params_of(model), [images()])
    assert_same(recompute_batchnorm(model, params_of(model), [batch]), expected)


def state(model: nn.Module) -> tuple[Params, list[bool], int]:
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    return clone(params_of(model)), [module.training for module in model.modules()], hooks


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_params_are_left_alone(fails: bool) -> None:
    model, other = conv_net(), conv_net()
    randomise(other, 2)
    model[0].eval()
    params, before = params_of(other), state(model)
    given = clone(params)
    batches = [images(), torch.zeros(3)] if fails else [images()]
    try:
        recompute_batchnorm(model, params, batches)
    except (RuntimeError, ValueError):
        assert fails
    else:
        assert not fails
    after = state(model)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]
    assert_same(params, given)


def test_only_statistics_are_replaced_and_their_dtype_stays() -> None:
    model = conv_net().bfloat16()
    params = params_of(model)
    found = recompute_batchnorm(model, params, [images().bfloat16()])
    changed = {name for name in params if found[name] is not params[name]}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{name}" for layer in (0, 2, 7) for name in statistics}
    assert all(found[name].dtype == params[name].dtype for name in params)


def test_statistics_of_params_in_half_precision_are_those_of_their_float32_copies() -> None:
    model = conv_net().float()
    half = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in params_of(model).items()
    }
    found = recompute_batchnorm(model, half, [images().float()])
    wide = recompute_batchnorm(
        model, {name: tensor.to(params_of(model)[name]) for name, tensor in half.items()}, [images().float()]
    )
    assert_same(found, {name: tensor.to(half[name].dtype) for name, tensor in wide.items()})


def test_a_model_without_batch_norm_gets_its_params_back_unread() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.BatchNorm1d(5, track_running_stats=False))
    params = params_of(model)

    def unread() -> Any:
        raise AssertionError("batches were read")
        yield

    found = recompute_batchnorm(model, params, unread())
    assert found is not params
    assert all(found[name] is tensor for name, tensor in params.items())
    assert list(found) == list(params)


class Shared(nn.Module):
    """One batch norm under two names, used twice; another that is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        self.second = self.first
        self.idle = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(input=self.first(x))
        return self.idle(out) if self.training else out


def test_a_shared_layer_pools_its_uses_and_an_idle_one_keeps_its_statistics() -> None:
    model, data = Shared().double(), images()[:, 0, :, :3].reshape(-1, 3)
    found = recompute_batchnorm(model, params_of(model), [data])
    again = (data - data.mean(0)) / (data.var(0, correction=0) + 1e-5).sqrt()
    mean, variance = pooled(torch.cat([data, again]))
    torch.testing.assert_close(found["first.running_mean"], mean)
    torch.testing.assert_close(found["second.running_var"], variance)
    assert ("first.running_mean", "second.running_mean") in tied_names(found)
    torch.testing.assert_close(found["idle.running_var"], torch.ones(3, dtype=torch.float64))


def test_progress_counts_batches() -> None:
    model, seen = conv_net(), []
    recompute_batchnorm(model, params_of(model), images().split(13), lambda *step: seen.append(step))
    assert [step[1:] for step in seen] == [(1, 3), (2, 3), (3, 3)]


def test_a_single_value_per_channel_is_refused() -> None:
    model = conv_net()
    with pytest.raises(UsageError, match=r"gives 7 a single value per channel \(shape \(1, 5\)\)"):
        recompute_batchnorm(model, params_of(model), images().split(30))


def test_no_batches_are_refused() -> None:
    model = conv_net()
    with pytest.raises(UsageError, match="no batches"):
        recompute_batchnorm(model, params_of(model), iter([]))


def test_params_of_another_model_are_refused() -> None:
    with pytest.raises(ParamsError, match="missing"):
        recompute_batchnorm(conv_net(), {}, [images()])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(value: float) -> None:
    model, data = conv_net(), images()
    data[13, 1, 2, 2] = value
    with pytest.raises(ParamsError, match="not finite from batch 2 on, of 3 layers: 0, 2, 7"):
        recompute_batchnorm(model, params_of(model), data.split(11))
    recompute_batchnorm(model, params_of(model), data[:13].split(11))


def test_a_layer_that_overflows_is_named_and_what_half_precision_cannot_hold_too() -> None:
    model = conv_net()
    broken = clone(params_of(model))
    broken["1.bias"][3] = 1e200
    with pytest.raises(ParamsError, match="not finite from batch 1 on, of 1 layers: 2"):
        recompute_batchnorm(model, broken, [images()])
    model, wide = nn.Sequential(nn.BatchNorm1d(3)), torch.randn(31, 3) * 1000  # a variance of a million
    recompute_batchnorm(model, params_of(model), [wide])
    with pytest.raises(ParamsError, match=r"batch norm hold values that are not finite, in 1 tensors: 0.running_var"):
        recompute_batchnorm(model.half(), params_of(model), [wide.half()])
