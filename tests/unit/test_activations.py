"""Activations: moments equal what hooks see, halves merge to the whole, and what cannot be measured is refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache

import pytest
import torch
from cases import Case, case, params, spec_of
from helpers import randomise
from nets import Viewed, convolutions
from torch import Tensor, nn

from onebasin.activations import ActivationMoments, Activations, Taps
from onebasin.batchnorm import recompute_batchnorm
from onebasin.errors import ParamsError, SpecError, UsageError
from onebasin.moments import CrossStatistics
from onebasin.params import Params, params_of
from onebasin.spec import PermutationSpec
from onebasin.symmetry.discover import permutation_spec
from onebasin.symmetry.export import export
from onebasin.symmetry.graph import flat_inputs, graph_function, pair_function

SIZES = (5, 3, 2)  # of batches


class Residual(nn.Module):
    """A stream of 7 channels read by two blocks and the head."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(2, 7, 3, padding=1), nn.Linear(7, 3)
        self.up = nn.ModuleList([nn.Conv2d(7, 5, 1), nn.Conv2d(7, 11, 1)])
        self.down = nn.ModuleList([nn.Conv2d(5, 7, 1), nn.Conv2d(11, 7, 1)])
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).tanh()
        for up, down in zip(self.up, self.down, strict=True):
            update = down(up(x).relu())
            if self.in_place:
                x += update
            else:
                x = x + update
        return self.leave(x.mean((2, 3)))


def plain_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2))


def convnet() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    return nn.Sequential(nn.Conv2d(2, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.GELU(), *head)


Net = tuple[nn.Module, PermutationSpec, Params, Params, list[Tensor]]


@cache
def net(make: Callable[[], nn.Module], *shape: int) -> Net:
    """Return a model, its spec, two sets of params and batches, in float64."""
    model, both = make().double().eval(), []
    for seed in range(2):
        randomise(model, seed)
        both.append({name: tensor.clone() for name, tensor in params_of(model).items()})
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(size, *shape, generator=generator, dtype=torch.float64) for size in SIZES]
    return model, permutation_spec(model, (batches[0],)), both[0], both[1], batches


def measured(found: Net) -> dict[str, CrossStatistics]:
    model, spec, a, b, batches = found
    return Activations(model, batches)(spec, a, b)


def hooked(found: Net, *readers: str) -> tuple[Tensor, Tensor]:
    """Return what the modules called `readers` are given by all batches, as (samples, units), for both networks."""
    model, _, a, b, batches = found
    rows: list[list[Tensor]] = [[], []]
    for side, weights in enumerate((a, b)):
        for reader in readers:
            hook = model.get_submodule(reader).register_forward_pre_hook(
                lambda _, args, side=side: rows[side].append(
                    args[0].movedim(1, -1).reshape(-1, args[0].shape[1]).clone()
                )
            )
            for batch in batches:
                with torch.no_grad():
                    torch.func.functional_call(model, weights, (batch,))
            hook.remove()
    return torch.cat(rows[0]), torch.cat(rows[1])


def assert_moments(found: CrossStatistics, a: Tensor, b: Tensor) -> None:
    assert found.a.count == len(a)
    torch.testing.assert_close(found.product, a.T @ b / len(a), rtol=1e-11, atol=1e-13)
    joint = torch.corrcoef(torch.cat([a, b], 1).T)[: a.shape[1], a.shape[1] :]
    torch.testing.assert_close(found.correlation, joint, rtol=1e-9, atol=1e-10)


def test_an_mlp_as_hooks_see_it() -> None:
    found = net(plain_mlp, 3)
    moments = measured(found)
    for group, reader in (("0", "2"), ("2", "4")):
        assert_moments(moments[group], *hooked(found, reader))
    assert list(moments) == ["0", "2"]


def test_pixels_are_samples() -> None:
    found = net(convnet, 2, 7, 5)
    moments = measured(found)
    assert_moments(moments["0"], *hooked(found, "3"))
    assert moments["0"].a.count == sum(SIZES) * 5 * 3
    assert_moments(moments["3"], *hooked(found, "7"))


def test_maps_are_read_channels_last_unless_the_model_needs_them_otherwise() -> None:
    params_a = params_of(convolutions(nn.Flatten()))
    params_b = {name: tensor.flip(0) for name, tensor in params_a.items()}
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, layouts = [], []
    for join in (nn.Flatten(), Viewed()):
        model = convolutions(join)
        traced = export(model, images)
        read = [node for node in traced.graph.nodes if {"conv2d", "linear"} & set(str(node.target).split("."))]
        _, maps, _ = graph_function(traced, read)(params_a, [images])
        layouts.append(maps.is_contiguous(memory_format=torch.channels_last))
        moments = ActivationMoments(model, permutation_spec(model, (images,)), params_a, params_b)
        moments.update(images)
        found.append(moments.finalize())
    assert layouts == [True, False]
    assert found[0].keys() == found[1].keys() != set()
    for group, one in found[0].items():
        torch.testing.assert_close(one.covariance, found[1][group].covariance, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.b.mean, found[1][group].b.mean, rtol=1e-12, atol=1e-12)


class Spectral(nn.Module):
    """Reads a weight of four dimensions as complex numbers, which must lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.weight = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4, 6, 6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.fft.fft2(self.convolution(x)) * torch.view_as_complex(self.weight)).real


def test_weights_that_are_read_as_complex_numbers_stay_as_they_are() -> None:
    model, images = Spectral(), torch.randn(2, 3, 8, 8)
    traced = export(model, images)
    (found,) = graph_function(traced, traced.held)(params_of(model), [images])
    torch.testing.assert_close(found, model(images).detach())


def plain_residual() -> nn.Module:
    return Residual()


def in_place_residual() -> nn.Module:
    return Residual(in_place=True)


@pytest.mark.parametrize("make", [plain_residual, in_place_residual])
def test_a_residual_stream_is_read_wherever_it_is_consumed(make: Callable[[], nn.Module]) -> None:
    found = net(make, 2, 7, 5)
    stream, *_ = [name for name, size in found[1].sizes.items() if size == 7]
    assert_moments(measured(found)[stream], *hooked(found, "up.0", "up.1", "leave"))


def test_one_place_alone_is_not_the_stream() -> None:
    """The negative twin."""
    found = net(plain_residual, 2, 7, 5)
    stream, *_ = [name for name, size in found[1].sizes.items() if size == 7]
    a, b = hooked(found, "up.0")
    assert not torch.allclose(measured(found)[stream].product, a.T @ b / len(a), rtol=1e-2)


def stream_of(c: Case) -> ActivationMoments:
    return ActivationMoments(c.model(), spec_of(c), params(c, 0), params(c, 1))


def batch_of(c: Case, seed: int) -> object:
    inputs = c.inputs(seed)
    return inputs if isinstance(inputs, dict) else (inputs,)


@pytest.mark.parametrize("name", ["mlp3", "unet", "grouped_query", "two_inputs", "einsum"])
def test_two_halves_merged_equal_the_whole(name: str) -> None:
    whole, first, second = (stream_of(case(name)) for _ in range(3))
    for seed in range(4):
        whole.update(batch_of(case(name), seed))
        (first if seed < 2 else second).update(batch_of(case(name), seed))
    part = first.finalize()
    first.merge(second)
    expected = whole.finalize()
    assert list(expected) == list(first.finalize()) == [name for name in whole.spec.sizes if name in expected] != []
    for group, statistics in first.finalize().items():
        assert statistics.a.count == expected[group].a.count
        torch.testing.assert_close(statistics.covariance, expected[group].covariance, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(statistics.product, expected[group].product, rtol=1e-11, atol=1e-12)
        assert not torch.allclose(part[group].product, expected[group].product, rtol=1e-3)


def test_nested_units_are_paired_under_every_pair_of_parents() -> None:
    found, c = stream_of(case("fused_qkv")), case("fused_qkv")
    found.update(batch_of(c, 0))
    shapes = {group: tuple(statistics.product.shape) for group, statistics in found.finalize().items()}
    assert shapes == {"embed": (7, 7), "qkv": (3, 3), "qkv#2": (15, 15), "qkv#3": (15, 15)}


def test_exchanging_the_networks_transposes() -> None:
    c = case("grouped_query")
    one, other = stream_of(c), ActivationMoments(c.model(), spec_of(c), params(c, 1), params(c, 0))
    for moments in (one, other):
        moments.update(batch_of(c, 0))
    for group, statistics in one.finalize().items():
        torch.testing.assert_close(statistics.product, other.finalize()[group].product.T)


def test_nothing_is_kept_but_one_matrix_per_group() -> None:
    found = net(convnet, 2, 7, 5)
    moments = ActivationMoments(*found[:4])
    for batch in found[4]:
        moments.update(batch)
    kept = [x for stream in moments.streams.values() for x in (stream.products, stream.a.mean, stream.a.squares)]
    assert sum(x.numel() for x in kept) == (7 * 7 + 2 * 7) + (5 * 5 + 2 * 5)


@pytest.mark.parametrize("name", ["in_place", "unet", "grouped_query", "two_inputs"])
def test_networks_in_step_give_what_each_gives_by_itself(name: str) -> None:
    c, seen = case(name), dict[int, tuple[Tensor, Tensor]]()
    exported = export(c.model(), c.inputs(0))
    taps = Taps.of(c.model(), spec_of(c), exported, None)
    both = [params(c, 0), params(c, 1)]
    read = pair_function(exported, taps.nodes)
    read(*both, flat_inputs(exported), lambda number, *pair: seen.update({number: (pair[0].clone(), pair[1].clone())}))
    alone = graph_function(exported, taps.nodes)
    expected = list(zip(*(alone(weights, flat_inputs(exported)) for weights in both), strict=True))
    assert len(expected) == len(seen) > 0
    for number, pair in enumerate(expected):
        assert all(map(torch.equal, seen[number], pair))
        assert not torch.equal(*pair)


def deep_mlp() -> nn.Module:
    layers = (layer for _ in range(5) for layer in (nn.Linear(3, 3), nn.Tanh()))
    return nn.Sequential(*layers, nn.Linear(3, 3))


def test_activations_live_no_longer_than_the_networks_need_them() -> None:
    """Kept for the other network, all five would be alive at the end."""
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watched(ActivationMoments):
        def take(self, taps: Taps, number: int, value_a: Tensor, value_b: Tensor) -> None:
            seen.append(weakref.ref(value_a))
            alive.append(sum(ref() is not None for ref in seen))
            super().take(taps, number, value_a, value_b)

    found = net(deep_mlp, 3)
    Watched(*found[:4]).update(found[4][0])
    assert alive == [1] * 5


def test_a_spec_written_by_hand_names_the_groups() -> None:
    found = net(plain_mlp, 3)
    shapes = {name: tuple(tensor.shape) for name, tensor in found[2].items()}
    axes = {"0.weight": ("one", None), "0.bias": ("one",), "2.weight": (None, "one")}
    by_hand = PermutationSpec.from_axes(axes, shapes)
    moments = measured((found[0], by_hand, *found[2:]))
    assert list(moments) == ["one"]
    torch.testing.assert_close(moments["one"].product, measured(found)["0"].product)


def test_outputs_that_need_not_be_kept() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(3, 7), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.enter(x).relu()
            return self.leave(hidden), hidden

    model = TwoHeads()
    spec = permutation_spec(model, (torch.randn(5, 3),), outputs=0)
    weights = params_of(model)
    assert list(Activations(model, [torch.randn(5, 3)], outputs=0)(spec, weights, weights)) == ["enter"]
    assert Activations(model, [torch.randn(5, 3)])(spec, weights, weights) == {}


def test_batch_norm_is_recomputed_for_each_network() -> None:
    model, spec, a, b, batches = net(convnet, 2, 7, 5)
    fresh = [recompute_batchnorm(model, weights, batches) for weights in (a, b)]
    found = Activations(model, batches, batchnorm=True)(spec, a, b)
    expected = Activations(model, batches)(spec, *fresh)
    torch.testing.assert_close(found["0"].product, expected["0"].product)
    assert not torch.allclose(found["0"].product, measured(net(convnet, 2, 7, 5))["0"].product, rtol=0.1)


def test_progress_counts_batches() -> None:
    model, spec, a, b, batches = net(plain_mlp, 3)
    seen: list[tuple[str, int, int]] = []
    Activations(model, batches)(spec, a, b, lambda *step: seen.append(step))
    assert seen == [("activations", number, 3) for number in (1, 2, 3)]


def test_what_cannot_be_measured_is_refused() -> None:
    model, spec, a, b, batches = net(plain_mlp, 3)
    with pytest.raises(UsageError, match=r"\(5, 4\)"):
        Activations(model, [torch.randn(5, 4).double()])(spec, a, b)
    with pytest.raises(UsageError, match="no batches"):
        Activations(model, [])(spec, a, b)
    with pytest.raises(UsageError, match="generator"):
        Activations(model, (batch for batch in batches))(spec, a, b)
    with pytest.raises(ParamsError, match=r"0\.weight"):
        Activations(model, batches)(spec, a, {**b, "0.weight": b["0.weight"].T})
    with pytest.raises(ParamsError, match="2 groups: 0, 2"):
        Activations(model, [*batches, batches[0] / 0])(spec, a, b)
    with pytest.raises(SpecError, match="another spec"):
        ActivationMoments(model, spec, a, b).merge(stream_of(case("mlp3")))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_half_precision_are_measured_as_their_float32_copies(dtype: torch.dtype) -> None:
    _, spec, *both, _ = net(plain_mlp, 3)
    model, batch = plain_mlp(), torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    halves = [{name: tensor.to(dtype) for name, tensor in one.items()} for one in both]
    wide = [{name: tensor.float() for name, tensor in one.items()} for one in halves]
    found, expected = (Activations(model, [batch])(spec, *pair) for pair in (halves, wide))
    for group, statistics in expected.items():
        assert torch.equal(found[group].covariance, statistics.covariance)
