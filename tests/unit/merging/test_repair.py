"""REPAIR: every repaired unit has the mean and deviation of the ends; what cannot be repaired is named and left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from helpers import assert_same, clone, randomise
from models.sequence import FusedQKV
from models.toys import layer_norm
from repairing import Net, convnet, group_normed, mlp, net, normed
from torch import Tensor, nn

from onebasin.batchnorm import recompute_batchnorm
from onebasin.errors import ParamsError, UsageError
from onebasin.functional import eval_mode, with_params
from onebasin.interpolate import mean
from onebasin.merging import repair
from onebasin.merging.repair import Repairs
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation
from onebasin.symmetry.discover import permutation_spec


def statistics(model: nn.Module, params: Params, inputs: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the units that `layer` puts out."""
    seen: list[Tensor] = []
    found = model.get_submodule(layer)
    hook = found.register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        with_params(model, params)(inputs)
    hook.remove()
    rows = seen[0] if isinstance(found, nn.Linear | nn.LayerNorm) else seen[0].movedim(1, -1)
    rows = rows.flatten(0, -2)
    return rows.mean(0), rows.std(0, correction=0)


def assert_between(
    found: Net, repaired: Params, layers: Sequence[str], weights: Sequence[float], atol: float = 1e-10
) -> None:
    model, _, ends, inputs = found
    for layer in layers:
        one, other = (statistics(model, params, inputs, layer) for params in ends)
        for value, a, b in zip(statistics(model, repaired, inputs, layer), one, other, strict=True):
            goal = (weights[0] * a + weights[1] * b) / sum(weights)
            torch.testing.assert_close(value, goal, rtol=1e-9, atol=atol, msg=lambda text, layer=layer: layer + text)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0)])
@pytest.mark.parametrize(
    ("make", "shape", "layers"), [(mlp, (3,), ("0", "2", "4")), (convnet, (2, 7, 5), ("0", "2", "5"))]
)
def test_units_have_the_statistics_of_the_ends(
    make: Callable[[], nn.Module], shape: tuple[int, ...], layers: Sequence[str], weights: Sequence[float]
) -> None:
    found = model, spec, ends, inputs = net(make, *shape)
    merged = mean(ends, weights)
    before = clone(merged)
    repaired, left = repair(model, spec, merged, ends, [inputs], weights)
    assert left == {}
    assert_between(found, repaired, layers, weights)
    assert_same(merged, before)
    with pytest.raises(AssertionError):  # averaging alone does not give them
        assert_between(found, merged, layers, weights)
    last = layers[-1].replace("4", "6").replace("5", "7")
    assert torch.equal(repaired[f"{last}.weight"], merged[f"{last}.weight"])  # outputs are no units


def instance_normed() -> nn.Module:
    """Affine instance norm, after a convolution without a bias."""
    layers = nn.Conv2d(2, 7, 3, bias=False), nn.InstanceNorm2d(7, affine=True), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(15, 2))


NESTED = {  # layers that put out units, and those that cannot be repaired
    group_normed: (torch.float64, (2, 7, 5), ("1", "3", "4", "8"), {}),
    instance_normed: (torch.float64, (2, 7, 5), ("1", "3"), {}),
    layer_norm: (torch.float64, (3,), ("0", "1", "3"), {}),
    FusedQKV: (torch.int64, (4,), ("qkv", "out"), {"embed": "is a Embedding"}),
}


@pytest.mark.parametrize("make", NESTED, ids=lambda make: make.__name__)
def test_norms_and_nested_groups_obey_the_law(make: Callable[[], nn.Module]) -> None:
    dtype, shape, layers, reasons = NESTED[make]
    generator = torch.Generator().manual_seed(5)
    model, spec, (a, b), inputs = net(make, *shape, dtype=dtype)
    assert spec.parents or make in (layer_norm, instance_normed)
    order, other = (Permutation.random(spec, generator) for _ in range(2))
    ends = [a, order.apply(b)]
    found = model, spec, ends, inputs
    merged = mean(ends, (3, 1))
    repaired, left = repair(model, spec, merged, ends, [inputs], (3, 1))
    assert left == reasons
    assert_between(found, repaired, layers, (3, 1))
    for layer in layers:
        with pytest.raises(AssertionError):  # averaging alone does not give them
            assert_between(found, merged, [layer], (3, 1))
    for wrong in ([a, b], ends[::-1]):  # nor do ends in another order
        with pytest.raises(AssertionError):
            assert_between(found, repair(model, spec, merged, wrong, [inputs], (3, 1))[0], layers, (3, 1))
    # Repairing networks whose units are in any other order gives the repaired network in that order.
    moved, _ = repair(model, spec, other.apply(merged), [other.apply(end) for end in ends], [inputs], (3, 1))
    for name, tensor in other.apply(repaired).items():
        torch.testing.assert_close(moved[name], tensor, rtol=1e-9, atol=1e-10)
    assert any(not torch.allclose(moved[name], tensor) for name, tensor in repaired.items())


def test_a_norm_that_does_not_read_the_layer_itself_carries_nothing() -> None:
    layers = nn.Conv2d(2, 7, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1)
    model, spec, ends, inputs = net(lambda: nn.Sequential(*layers), 2, 5, 5)
    assert repair(model, spec, mean(ends), ends, [inputs])[1] == {"0": "has no bias"}


def test_negative_weights_are_refused() -> None:
    model, spec, ends, inputs = net(mlp, 3)
    with pytest.raises(UsageError, match="negative"):
        repair(model, spec, mean(ends, (2, -1)), ends, [inputs], (2, -1))
    repair(model, spec, ends[0], ends, [inputs], (2, 0))


def test_small_batches_come_near() -> None:
    model, spec, ends, inputs = net(mlp, 3)
    merged = mean(ends)
    whole, _ = repair(model, spec, merged, ends, [inputs])
    split, _ = repair(model, spec, merged, ends, list(inputs.split(27)))
    for name in ("0.weight", "0.bias"):  # nothing before the first layer is normalised batch by batch
        torch.testing.assert_close(split[name], whole[name])
    out = [with_params(model, params)(inputs) for params in (merged, split, whole)]
    assert (out[1] - out[2]).norm() < 0.3 * (out[0] - out[2]).norm()


def test_a_merge_of_equals_is_left_as_it_is() -> None:
    model, spec, (theta, _), inputs = net(convnet, 2, 7, 5)
    repaired, _ = repair(model, spec, theta, [theta, theta], [inputs])
    for name, tensor in theta.items():
        torch.testing.assert_close(repaired[name], tensor)


def test_batch_norm_is_recomputed_and_repaired() -> None:
    found = model, spec, ends, inputs = net(normed, 2, 7, 5)
    repaired, left = repair(model, spec, mean(ends), ends, [inputs])
    assert left == {}  # what convolution 3 puts out goes into a norm, which carries the change
    assert_between(found, repaired, ["0"], (1, 1))
    # Running variances are divided by n - 1, those of a batch by n.
    assert_between(found, repaired, ["1", "4", "7"], (1, 1), 0.02)
    recomputed = recompute_batchnorm(model, mean(ends), [inputs])
    for layer in ("1", "4", "7"):
        with pytest.raises(AssertionError):
            assert_between(found, recomputed, [layer], (1, 1), 0.02)
    for layer in ("1", "4"):  # on the statistics of the batch it is exact
        goals = zip(*(statistics(model, params, inputs, layer) for params in ends), strict=True)
        with eval_mode(model, [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]):
            exact = statistics(model, repaired, inputs, layer)
        for value, (a, b) in zip(exact, goals, strict=True):
            torch.testing.assert_close(value, (a + b) / 2, rtol=1e-9, atol=1e-10)
    again = recompute_batchnorm(model, repaired, [inputs])
    for name in ("1.running_mean", "4.running_var"):
        torch.testing.assert_close(repaired[name], again[name])


def test_repairs_read_the_inputs_once_and_leave_running_statistics_to_others() -> None:
    model, spec, ends, inputs = net(normed, 2, 7, 5)
    repairs, merged, read = Repairs(model, spec, ends, [inputs]), mean(ends), []
    handle = model.register_forward_hook(lambda *_: read.append(1))
    found = repairs.of(merged)
    handle.remove()
    assert len(read) == 1
    assert torch.equal(found["1.running_var"], merged["1.running_var"])
    expected, _ = repair(model, spec, merged, ends, [inputs])
    for name, tensor in recompute_batchnorm(model, found, [inputs]).items():
        torch.testing.assert_close(tensor, expected[name])
    assert not torch.allclose(found["1.running_var"], expected["1.running_var"], rtol=0.1)


def test_a_unit_that_never_changes_is_only_shifted() -> None:
    model, spec, ends, inputs = net(mlp, 3)
    merged = mean(ends)
    merged["0.weight"][2] = 0
    repaired, _ = repair(model, spec, merged, ends, [inputs])
    assert all(torch.isfinite(tensor).all() for tensor in repaired.values())
    assert torch.equal(repaired["0.weight"][2], merged["0.weight"][2])
    goals = [statistics(model, params, inputs, "0")[0][2] for params in ends]
    torch.testing.assert_close(statistics(model, repaired, inputs, "0")[0][2], sum(goals) / 2)


class Mixed(nn.Module):
    """Layers that cannot be repaired: an embedding, no bias, tied, called twice, weight norm, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.free, self.twice = nn.Embedding(13, 7), nn.Linear(7, 5, bias=False), nn.Linear(5, 5)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(5, 11))
        self.one, self.other = nn.Linear(11, 11), nn.Linear(11, 11)
        self.other.weight = self.one.weight
        self.turned, self.good, self.head = nn.ConvTranspose1d(11, 3, 1), nn.Linear(3, 17), nn.Linear(17, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.twice(self.twice(self.free(self.embed(tokens)).relu()).relu()).relu()
        x = self.other(self.one(self.normed(x).relu()).relu()).relu()
        return self.head(self.good(self.turned(x[..., None])[..., 0].relu()).relu())


def test_what_cannot_be_repaired_is_named_and_left() -> None:
    model, ends = Mixed().double(), []
    tokens = torch.randint(0, 13, (53,), generator=torch.Generator().manual_seed(0))
    for seed in range(2):
        randomise(model, seed)
        ends.append(clone(params_of(model)))
    spec, merged = permutation_spec(model, (tokens,)), mean(ends)
    repaired, left = repair(model, spec, merged, ends, [tokens])
    reasons = {
        "embed": "is a Embedding",
        "free": "has no bias",
        "twice": "is not called exactly once per batch",
        "normed.parametrizations.weight": "is a _ParametrizationList",
        "one": "is tied to another layer",
        "other": "is tied to another layer",
        "turned": "is a ConvTranspose1d",
    }
    assert left | {"normed.parametrizations.weight": reasons["normed.parametrizations.weight"]} == reasons
    assert "normed.parametrizations.weight" in left
    changed = {name for name in merged if not torch.equal(merged[name], repaired[name])}
    assert changed == {"good.weight", "good.bias"}
    found: Net = (model, spec, ends, tokens)
    assert_between(found, repaired, ["good"], (1, 1))


def test_the_model_is_left_alone_and_progress_told() -> None:
    model, spec, ends, inputs = net(normed, 2, 7, 5)
    model.train()
    before, seen = clone(params_of(model)), []
    repair(model, spec, mean(ends), ends, [inputs], progress=lambda *step: seen.append(step[0]))
    assert_same(params_of(model), before)
    assert all(layer.training for layer in model.modules())
    assert not any(layer._forward_hooks for layer in model.modules())
    assert seen.count("repair") == 3


def test_half_precision_keeps_its_dtype() -> None:
    model, spec, ends, inputs = net(mlp, 3)
    halves = [{name: tensor.bfloat16() for name, tensor in params.items()} for params in ends]
    repaired, _ = repair(model.bfloat16(), spec, mean(halves), halves, [inputs.bfloat16()])
    assert {tensor.dtype for tensor in repaired.values()} == {torch.bfloat16}


def test_wrong_batches_are_refused() -> None:
    model, spec, ends, inputs = net(mlp, 3)
    with pytest.raises(UsageError, match="no batches"):
        repair(model, spec, mean(ends), ends, [])
    with pytest.raises(UsageError, match="generator"):
        repair(model, spec, mean(ends), ends, (batch for batch in [inputs]))
    with pytest.raises(ParamsError, match="weights of the model"):
        repair(convnet(), spec, mean(ends), ends, [inputs])
    with pytest.raises(UsageError, match="2 models and the weights"):
        repair(model, spec, mean(ends), ends, [inputs], [1.0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("make", "shape", "count"), [(mlp, (3,), 3), (normed, (2, 7, 5), 4)])
def test_statistics_that_are_not_finite_are_refused(
    make: Callable[[], nn.Module], shape: tuple[int, ...], count: int, value: float
) -> None:
    model, spec, ends, inputs = net(make, *shape)
    inputs[13, 0] = value
    with pytest.raises(ParamsError, match=f"not finite from batch 2 on, of {count} layers: "):
        repair(model, spec, mean(ends), ends, inputs.split(11))
    repair(model, spec, mean(ends), ends, inputs[:11].split(11))


def test_weights_that_half_precision_cannot_hold_are_refused() -> None:
    model, spec, ends, inputs = net(mlp, 3)
    ends = [{name: tensor.half() for name, tensor in end.items()} for end in ends]
    merged, inputs = mean(ends), inputs.half()
    merged["0.weight"] *= 0.1
    repair(model.half(), spec, merged, ends, [inputs])
    inputs[:, 0] = 0  # so that it does not matter what this is multiplied with
    merged["0.weight"][:, 0] = 60000
    with pytest.raises(ParamsError, match=r"repaired weights hold .* not finite, in 1 tensors: 0.weight"):
        repair(model, spec, merged, ends, [inputs])
