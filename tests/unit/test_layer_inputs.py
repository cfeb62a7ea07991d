"""What weights are multiplied with: moments equal those of one look at everything, wherever the graph has a product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import case, params
from helpers import randomise
from torch import Tensor, nn
from torch.nn import functional

from onebasin.errors import ParamsError, UsageError
from onebasin.layer_inputs import LayerInputs, LayerMoments
from onebasin.layers import LayerStatistics
from onebasin.params import Params, params_of


class Wired(nn.Module):
    """Products of every kind, with known inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.turned, self.letters = nn.Parameter(torch.empty(3, 5)), nn.Parameter(torch.empty(2, 3, 7))
        self.stack, self.looked_up = nn.Parameter(torch.empty(2, 3, 11)), nn.Embedding(5, 3)
        self.plain, self.twice = nn.Linear(3, 5), nn.Linear(5, 5, bias=False)
        self.conv = nn.Conv2d(2, 4, (3, 2), padding="same")
        self.grouped = nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
        self.back, self.depthwise = nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Conv2d(4, 4, 3, groups=4)
        self.split = nn.Linear(3, 6)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        heads = torch.einsum("...i,hij->...hj", x, self.letters)
        planes = self.conv(y)
        planes.relu_()
        halves = self.split.weight.chunk(2)
        return (
            x @ self.turned, heads, x @ self.stack, self.twice(self.plain(x)) + self.twice(x @ self.turned),
            self.grouped(planes), self.back(planes), self.depthwise(planes),
            functional.linear(x, halves[0]) + functional.linear(x + 1, halves[1]),
            self.looked_up(torch.zeros(2, dtype=torch.int64)),
        )  # fmt: skip


def wired() -> tuple[nn.Module, Params, list[dict[str, Tensor]]]:
    model = Wired().double().eval()
    randomise(model, 0)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3

    return model, params_of(model), [{"x": draw(n, 3), "y": draw(n, 2, 8, 7)} for n in (5, 4, 9)]


def measured(patches: bool = True) -> tuple[nn.Module, dict[str, LayerStatistics], Tensor, Tensor]:
    model, weights, batches = wired()
    x, y = (torch.cat([batch[name] for batch in batches]) for name in "xy")
    return model, LayerInputs(model, batches, patches)(weights), x, y


def assert_moments(found: LayerStatistics, rows: Tensor, outputs: Tensor) -> None:
    """Compare with `rows`, "*matrices samples in", and `outputs`, "samples *channels"."""
    centred = rows - rows.mean(-2, keepdim=True)
    count = rows.shape[-2]
    close = {"rtol": 1e-10, "atol": 1e-12}
    assert found.inputs.count == count
    torch.testing.assert_close(found.inputs.mean, rows.mean(-2), **close)
    torch.testing.assert_close(found.inputs.covariance, centred.mT @ centred / count, **close)
    torch.testing.assert_close(found.inputs.product, rows.mT @ rows / count, **close)
    torch.testing.assert_close(found.deviation, outputs.std(0, correction=0), **close)


def flat(planes: Tensor, groups: int = 0) -> Tensor:
    """Return "samples channels", or "groups samples channels"."""
    rows = planes.movedim(1, -1).reshape(-1, planes.shape[1])
    return rows.reshape(len(rows), groups, -1).transpose(0, 1) if groups else rows


@torch.no_grad()
def test_every_kind_of_product() -> None:
    model, found, x, y = measured()
    assert isinstance(model, Wired)
    before = model.conv(y)
    planes, turned = before.relu(), x @ model.turned
    assert_moments(found["turned"], x.repeat(2, 1), turned.repeat(2, 1))  # used twice
    assert_moments(found["letters"], x, torch.einsum("bi,hij->bhj", x, model.letters).flatten(1))
    assert_moments(found["plain.weight"], x, model.plain(x))
    both = torch.cat([model.plain(x), turned])
    assert_moments(found["twice.weight"], both, model.twice(both))
    assert_moments(found["conv.weight"], flat(y), flat(before))
    assert_moments(found["grouped.weight"], flat(planes, 2), flat(model.grouped(planes)).unflatten(1, (2, 3)))
    assert_moments(found["back.weight"], flat(planes, 2), flat(model.back(planes)).unflatten(1, (2, 3)))
    assert_moments(found["depthwise.weight"], flat(planes, 4), flat(model.depthwise(planes))[..., None])
    assert_moments(found["stack"], x, (x @ model.stack).transpose(0, 1).flatten(1))
    # The halves are used in two ways; the embedding is looked up.
    left_out = {"split.weight", "looked_up.weight"}
    assert set(found) == {name for name, tensor in model.named_parameters() if tensor.dim() > 1} - left_out


@torch.no_grad()
def test_patches_are_what_the_kernel_sees() -> None:
    model, found, _, y = measured()
    assert isinstance(model, Wired)
    planes = model.conv(y).relu()
    for name, seen, options in (
        ("conv", functional.pad(y, (0, 1, 1, 1)), {}),
        ("grouped", planes, {"padding": (1, 0), "dilation": (1, 2), "stride": (2, 1)}),
    ):
        layer = model.get_submodule(name)
        columns = functional.unfold(seen, layer.kernel_size, **options).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]
        groups = layer.groups
        rows = columns.reshape(len(columns), groups, -1).transpose(0, 1)  # type: ignore[call-overload]
        product = rows.mT @ rows / len(columns)
        torch.testing.assert_close(found[f"{name}.weight"].product, product if groups > 1 else product[0])
    assert found["back.weight"].patches is None
    _, channels, *_ = measured(patches=False)
    with pytest.raises(UsageError, match="patches=True"):
        _ = channels["conv.weight"].product


@torch.no_grad()
def test_the_operand_is_the_matrix_of_the_layer() -> None:
    model, found, x, _ = measured()
    weights = params_of(model)
    assert isinstance(model, Wired)
    for name, rows, out in (
        ("turned", x, x @ model.turned),
        ("letters", x, torch.einsum("bi,hij->bhj", x, model.letters).flatten(1)),
    ):
        torch.testing.assert_close(rows @ found[name].operand.stack(weights[name])[0, ..., 0].T, out)
    stack = found["grouped.weight"].operand.stack(weights["grouped.weight"])
    torch.testing.assert_close(stack, weights["grouped.weight"].reshape(2, 3, 2, 9))
    for name, one in found.items():
        stack = one.operand.stack(weights[name])
        torch.testing.assert_close(one.operand.put(weights[name], stack), weights[name], rtol=0, atol=0)
        torch.testing.assert_close(one.operand.put(weights[name], 2 * stack), 2 * weights[name])


def batch_of(name: str, seed: int) -> Any:
    inputs = case(name).inputs(seed)
    return inputs if isinstance(inputs, dict) else (inputs,)


@pytest.mark.parametrize("name", ["mlp3", "unet", "grouped_query", "two_inputs", "einsum"])
def test_two_halves_merged_equal_the_whole(name: str) -> None:
    whole, first, second = (LayerMoments(case(name).model(), params(case(name)), patches=True) for _ in range(3))
    for seed in range(4):
        whole.update(batch_of(name, seed))
        (first if seed < 2 else second).update(batch_of(name, seed))
    part = first.finalize()
    first.merge(second)
    merged, expected = first.finalize(), whole.finalize()
    assert list(merged) == list(expected) != []
    for weight, one in merged.items():
        other = expected[weight]
        assert one.inputs.count == other.inputs.count
        for a, b in (
            (one.inputs.covariance, other.inputs.covariance),
            (one.inputs.product, other.inputs.product),
            (one.deviation, other.deviation),
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        if one.patches is not None:
            torch.testing.assert_close(one.patches, other.patches, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(part[weight].inputs.product, other.inputs.product, rtol=1e-3)


def test_what_cannot_be_measured_is_refused() -> None:
    model, weights, batches = wired()
    with pytest.raises(UsageError, match="no batches"):
        LayerInputs(model, [])(weights)
    with pytest.raises(UsageError, match="generator"):
        LayerInputs(model, (batch for batch in batches))(weights)
    with pytest.raises(UsageError, match=r"\(5, 4\)"):
        LayerInputs(model, [{"x": torch.ones(5, 4).double(), "y": batches[0]["y"]}])(weights)
    with pytest.raises(ParamsError, match=r"plain\.weight"):
        LayerInputs(model, batches)({**weights, "plain.weight": torch.ones(2, 2)})
    with pytest.raises(ParamsError, match="not finite"):
        LayerInputs(model, [{"x": batches[0]["x"] / 0, "y": batches[0]["y"]}])(weights)
