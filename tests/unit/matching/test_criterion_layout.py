"""Convolutions run channels last where the model lets them; the criterion is the same either way."""

from __future__ import annotations

import pytest
import torch
from helpers import randomise
from nets import Viewed, convolutions
from torch import Tensor, nn

import onebasin as ob
from onebasin.functional import channels_last
from onebasin.matching import Criterion

IMAGES = [torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def between(model: nn.Module, images: list[Tensor] = IMAGES) -> ob.matching.criterion.Between:
    """Return the criterion between two networks."""
    one, other = convolutions(nn.Flatten()), convolutions(nn.Flatten())
    randomise(other, 4)
    return Criterion(model, images).between(ob.params_of(one), ob.params_of(other))


def is_channels_last(model: nn.Module) -> bool:
    """Return whether the second convolution of a model gives maps with the channels last while J is computed."""
    seen = list[bool]()
    one = between(model)
    with model[3].register_forward_hook(
        lambda *given: seen.append(given[2].is_contiguous(memory_format=torch.channels_last))
    ):
        one.losses(one.a)
    assert len(set(seen)) == 1
    return seen[0]


def test_maps_are_channels_last_unless_the_model_needs_them_otherwise() -> None:
    assert is_channels_last(convolutions(nn.Flatten()))
    assert not is_channels_last(convolutions(Viewed()))


def test_the_criterion_and_its_slopes_do_not_depend_on_the_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    found, expected = (between(convolutions(join)) for join in (nn.Flatten(), Viewed()))
    for one, other in zip(found.losses(found.b), expected.losses(found.b), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    slopes = [next(iter(one.slopes(one.a, 0, generator))).own for one in (found, expected)]
    assert slopes[0].keys() == slopes[1].keys()
    for name in slopes[0]:
        torch.testing.assert_close(slopes[0][name], slopes[1][name], rtol=1e-9, atol=1e-12)


def test_only_weights_of_maps_are_laid_out_anew() -> None:
    params = ob.params_of(convolutions(nn.Flatten()))
    found = channels_last(params)
    assert list(found) == list(params)
    for name, value in params.items():
        assert torch.equal(found[name], value)
        assert (found[name] is value) == (value.dim() != 4)


def test_images_that_do_not_fit_are_refused_by_the_model() -> None:
    one = between(convolutions(nn.Flatten()), [torch.randn(2, 4, 8, 8, dtype=torch.float64)])
    with pytest.raises(RuntimeError, match="expected input"):
        one.losses(one.a)
