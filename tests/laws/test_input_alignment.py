"""Laws of inputs along singular vectors: moments equal a brute-force look, and add up to what the layer puts out."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn
from torch.nn.functional import relu, unfold

from onebasin.analysis import InputAlignment, input_alignment
from onebasin.analysis.singular import decompose, unfolded
from onebasin.errors import ParamsError, UsageError
from onebasin.layer_inputs import LayerInputs
from onebasin.layers import LayerStatistics
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation
from onebasin.symmetry.discover import permutation_spec


def net(seed: int) -> nn.Sequential:
    layers = nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 2, groups=1), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(4 * 12, 3), nn.ReLU(), nn.Linear(3, 7)).double()
    randomise(model, seed)
    return model.eval()


IMAGES = torch.randn(11, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


def measured(model: nn.Module) -> dict[str, LayerStatistics]:
    return LayerInputs(model, list(IMAGES.split(4)), patches=True)(params_of(model))


def rows(model: nn.Sequential) -> dict[str, Tensor]:
    """What each weight is multiplied with, one row per product: patches of images, then hidden units."""
    x = IMAGES
    seen = {"0.weight": unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)}
    x = relu(model[0](x))
    seen["2.weight"] = unfold(x, 2).transpose(1, 2).flatten(0, 1)
    seen["5.weight"] = model[4](relu(model[2](x)))
    return seen | {"7.weight": relu(model[5](seen["5.weight"]))}


def test_moments_are_those_of_a_brute_force_look() -> None:
    model = net(1)
    params, found = params_of(model), input_alignment(params_of(model), measured(model))
    assert list(found.layers) == ["0.weight", "2.weight", "5.weight", "7.weight"]
    for name, z in rows(model).items():
        layer, exact = found.layers[name], decompose(params[name])
        torch.testing.assert_close(layer.values, exact.values, rtol=1e-10, atol=0)
        torch.testing.assert_close(layer.moments, (z @ exact.v).square().mean(0), rtol=1e-8, atol=1e-12)
        assert layer.total == pytest.approx(z.square().sum(1).mean().item(), rel=1e-10)
        assert layer.directions == z.shape[1]


def test_they_add_up_to_what_the_layer_puts_out() -> None:
    model = net(1)
    found = input_alignment(params_of(model), measured(model))
    for name, z in rows(model).items():
        layer = found.layers[name]
        out = z @ unfolded(params_of(model)[name]).T
        expected = out.square().sum(1).mean().item()
        assert (layer.values.square() @ layer.moments).item() == pytest.approx(expected, rel=1e-10)
        assert layer.output_share(0) == pytest.approx(1)
        assert 0 < layer.share(0.9) <= layer.share(0.3) <= layer.share(0) <= 1 + 1e-12
    wide = found.layers["5.weight"]  # 3 vectors in 48 directions: what they do not see is in no share
    assert wide.share(0) < 0.9


def test_theorem_4_2_the_difference_of_outputs_follows_from_singular_values_and_vectors() -> None:
    a, b = net(1), net(2)
    for name, z in rows(a).items():
        weight_a, weight_b = params_of(a)[name], params_of(b)[name]
        product = measured(a)[name].product
        own = input_alignment({name: weight_a}, {name: measured(a)[name]}).layers[name]
        other = input_alignment({name: weight_b}, {name: measured(a)[name]}).layers[name]
        one, two = decompose(weight_a), decompose(weight_b)
        weights = one.values[:, None] * two.values * (one.u.T @ two.u)
        mixed = (weights * (one.v.T @ product @ two.v)).sum()
        squares = own.values.square() @ own.moments + other.values.square() @ other.moments
        apart = (z @ (unfolded(weight_a) - unfolded(weight_b)).T).square().sum(1).mean()
        torch.testing.assert_close(squares - 2 * mixed, apart, rtol=1e-9, atol=1e-12)
        assert (squares - apart).abs() > 1e-3 * apart  # without the mixed term it is something else


def test_a_permutation_changes_nothing_when_statistics_move_too() -> None:
    model, moved = net(1), net(1)
    spec = permutation_spec(model, (IMAGES[:2],))
    permuted = Permutation.random(spec, torch.Generator().manual_seed(3)).apply(params_of(model))
    moved.load_state_dict(permuted)
    plain = input_alignment(params_of(model), measured(model))
    alike = input_alignment(permuted, measured(moved))
    wrong = input_alignment(permuted, measured(model))  # statistics of another order of units
    for name, layer in plain.layers.items():
        torch.testing.assert_close(alike.layers[name].moments, layer.moments, rtol=1e-8, atol=1e-12)
        assert alike.layers[name].total == pytest.approx(layer.total, rel=1e-10)
    assert (wrong.layers["2.weight"].moments - plain.layers["2.weight"].moments).abs().max() > 1e-3


def test_inputs_along_the_first_vector_are_captured_by_it() -> None:
    model = nn.Sequential(nn.Linear(7, 5, bias=False)).double()
    exact = decompose(model[0].weight)
    inputs = torch.randn(13, 1, generator=torch.Generator().manual_seed(0)).double() * exact.v[:, 0]
    layer = input_alignment(params_of(model), LayerInputs(model, [inputs])(params_of(model))).layers["0.weight"]
    assert layer.share(1.0) == pytest.approx(1)
    assert layer.kept(1.0) == 1
    assert layer.moments[1:].abs().max() < 1e-12


def test_matrices_of_a_grouped_convolution_have_the_inputs_of_their_own() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2, bias=False)).double()
    images = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    statistics = LayerInputs(model, [images], patches=True)(params_of(model))
    layer = input_alignment(params_of(model), statistics).layers["0.weight"]
    assert (len(layer.values), layer.directions) == (6, 16)
    expected = model(images).square().sum(1).mean().item()
    assert (layer.values.square() @ layer.moments).item() == pytest.approx(expected, rel=1e-10)
    assert (layer.values.diff() <= 0).all()


def test_it_shows_itself() -> None:
    model = net(1)
    found: InputAlignment = input_alignment(params_of(model), measured(model))
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["5.weight"]["shares"]["0.3"]["inputs"] == found.layers["5.weight"].share(0.3)
    assert len(told["0.weight"]["moments"]) == 5
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(found.layers)
    assert f"{found.layers['5.weight'].share(0.3):.1%}" in str(found)


def test_progress_counts_weights() -> None:
    seen: list[tuple[str, int, int]] = []
    model = net(1)
    input_alignment(params_of(model), measured(model), progress=lambda *step: seen.append(step))
    assert [step[1:] for step in seen] == [(number, 4) for number in range(1, 5)]


def test_what_was_not_measured_is_refused() -> None:
    model = net(1)
    params: Params = params_of(model)
    with pytest.raises(ParamsError, match=r"do not have: 5\.weight"):
        input_alignment({name: t for name, t in params.items() if name != "5.weight"}, measured(model))
    channels = LayerInputs(model, [IMAGES])(params)
    with pytest.raises(UsageError, match="channels only"):
        input_alignment(params, channels)
