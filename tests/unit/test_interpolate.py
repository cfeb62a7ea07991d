"""Interpolation: exact ends, closed forms in between, ties and dtypes kept, everything that does not fit refused."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_same, clone
from torch import Tensor

from onebasin.errors import ParamsError, UsageError
from onebasin.interpolate import Interpolation, lerp, mean, slerp
from onebasin.params import Params, tied_names

BOTH = pytest.mark.parametrize("interpolate", [lerp, slerp])


def params(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    return {
        "embedding": embedding,
        "fc.weight": torch.randn(7, 5, generator=generator, dtype=torch.float64),
        "fc.bias": torch.zeros(7, dtype=torch.float64) if seed else torch.ones(7, dtype=torch.float64),
        "norm.running_var": torch.rand(7, generator=generator, dtype=torch.float64),
        "norm.num_batches_tracked": torch.tensor(3 + seed),
        "head": embedding,
        "scale": torch.tensor(-0.0 if seed else 0.0, dtype=torch.float64),
    }


@BOTH
def test_the_ends_are_the_two_models_bit_by_bit(interpolate: Interpolation) -> None:
    a, b = params(0), params(1)
    for lam, end in ((0, a), (0.0, a), (1, b), (1.0, b)):
        found = interpolate(a, b, lam)
        assert_same(found, end)
        assert math.copysign(1, found["scale"].item()) == math.copysign(1, end["scale"].item())


@BOTH
def test_results_are_new_tensors_and_ties_stay(interpolate: Interpolation) -> None:
    a, b = params(0), params(1)
    before = clone(a), clone(b)
    for lam in (0.0, 0.3, 1.0):
        found = interpolate(a, b, lam)
        assert tied_names(found) == (("embedding", "head"),)
        for tensor in found.values():
            tensor.zero_()
    assert_same(a, before[0])
    assert_same(b, before[1])


def test_lerp_is_the_weighted_sum_and_counters_are_the_references() -> None:
    a, b = params(0), params(1)
    found = lerp(a, b, 0.3)
    torch.testing.assert_close(found["fc.weight"], 0.7 * a["fc.weight"] + 0.3 * b["fc.weight"])
    torch.testing.assert_close(found["fc.bias"], torch.full((7,), 0.7, dtype=torch.float64))
    assert found["norm.num_batches_tracked"].item() == 3


def test_slerp_turns_evenly_and_interpolates_the_norm() -> None:
    a = {"w": torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)}
    b = {"w": torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)}
    found = slerp(a, b, 1 / 3)["w"]
    torch.testing.assert_close(found, 3 * torch.tensor([math.sqrt(3) / 2, 0, 0.5], dtype=torch.float64))


def test_slerp_keeps_each_norm_where_lerp_shrinks_it() -> None:
    a, b = params(0), params(1)
    for name in ("embedding", "fc.weight"):
        norms = a[name].norm() / 2 + b[name].norm() / 2
        torch.testing.assert_close(slerp(a, b, 0.5)[name].norm(), norms)
        assert lerp(a, b, 0.5)[name].norm() < 0.9 * norms


@pytest.mark.parametrize("b", [[2.0, 4.0], [1 + 1e-9, 2.0], [-3.0, -6.0], [0.0, 0.0]])
def test_slerp_without_a_unique_arc_is_lerp(b: list[float]) -> None:
    one, other = ({"w": torch.tensor(w, dtype=torch.float64)} for w in ([1.0, 2.0], b))
    torch.testing.assert_close(slerp(one, other, 0.25)["w"], lerp(one, other, 0.25)["w"], rtol=0, atol=0)


def test_slerp_meets_lerp_as_the_angle_shrinks() -> None:
    one = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    for angle in (1e-5, 1e-6, 1e-7):
        turn = torch.tensor([[1.0, -angle], [angle, 1.0]], dtype=torch.float64)
        other = {"w": turn @ one["w"]}
        torch.testing.assert_close(slerp(one, other, 0.25)["w"], lerp(one, other, 0.25)["w"], rtol=angle**2, atol=1e-15)


def test_slerp_interpolates_statistics_linearly() -> None:
    a, b = params(0), params(1)
    name = "norm.running_var"
    torch.testing.assert_close(slerp(a, b, 0.5)[name], (a[name] + b[name]) / 2)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_kept(interpolate: Interpolation, dtype: torch.dtype) -> None:
    a, b = ({"w": torch.randn(101, generator=torch.Generator().manual_seed(s)).to(dtype)} for s in (0, 1))
    found = interpolate(a, b, 0.3)["w"]
    exact = interpolate({"w": a["w"].double()}, {"w": b["w"].double()}, 0.3)["w"]
    assert found.dtype == dtype
    # One rounding at the end: no more than half a unit in the last place (and float32's own error).
    assert ((found.double() - exact).abs() <= (exact.abs() * torch.finfo(dtype).eps / 2 + 1e-7)).all()


def test_dtype_is_the_references() -> None:
    a, b = {"w": torch.ones(3, dtype=torch.bfloat16)}, {"w": torch.full((3,), 2.0, dtype=torch.float64)}
    for lam in (0.0, 0.5, 1.0):
        assert lerp(a, b, lam)["w"].dtype == torch.bfloat16


def test_complex_tensors_are_interpolated() -> None:
    a, b = ({"w": torch.tensor([value], dtype=torch.complex64)} for value in (2 + 0j, 0 + 4j))
    torch.testing.assert_close(lerp(a, b, 0.5)["w"], torch.tensor([1 + 2j], dtype=torch.complex64))
    torch.testing.assert_close(mean([a, b])["w"], torch.tensor([1 + 2j], dtype=torch.complex64))
    torch.testing.assert_close(slerp(a, b, 0.5)["w"].abs(), torch.tensor([3.0]))


@BOTH
def test_masks_with_infinities_stay(interpolate: Interpolation) -> None:
    a = {"mask": torch.tensor([0.0, -math.inf])}
    assert_same(interpolate(a, clone(a), 0.5), a)


def test_lerp_is_differentiable() -> None:
    a, b = torch.ones(3, requires_grad=True), torch.zeros(3)
    lerp({"w": a}, {"w": b}, 0.25)["w"].sum().backward()
    torch.testing.assert_close(a.grad, torch.full((3,), 0.75))


def test_mean_is_the_weighted_mean() -> None:
    models = [params(seed) for seed in (0, 1, 2)]
    expected: Tensor = sum(weight * model["fc.weight"] for weight, model in zip((2, 3, 5), models, strict=True)) / 10
    found = mean(models, [2, 3, 5])
    torch.testing.assert_close(found["fc.weight"], expected)
    assert tied_names(found) == (("embedding", "head"),)
    assert found["norm.num_batches_tracked"].item() == 3
    torch.testing.assert_close(mean(models)["fc.bias"], torch.full((7,), 1 / 3, dtype=torch.float64))


def test_mean_of_two_is_the_midpoint_and_of_one_a_copy() -> None:
    a, b = params(0), params(1)
    for name, tensor in lerp(a, b, 0.5).items():
        torch.testing.assert_close(mean([a, b])[name], tensor)
    copy = mean([a])
    assert_same(copy, a)
    assert copy["fc.weight"].data_ptr() != a["fc.weight"].data_ptr()


@pytest.mark.parametrize("weights", [[1.0], [1.0, math.nan], [1.0, -1.0], []])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="2 models"):
        mean([params(0), params(1)], weights)


def test_no_models_are_refused() -> None:
    with pytest.raises(UsageError, match="0 models"):
        mean([])


@BOTH
def test_all_differences_are_named_at_once(interpolate: Interpolation) -> None:
    a, b = params(0), params(1)
    b["extra"] = b.pop("scale")
    b["fc.weight"] = b["fc.weight"].T
    with pytest.raises(ParamsError, match=r"1 missing: scale; 1 unexpected: extra; 1 misshapen: fc\.weight") as caught:
        interpolate(a, b, 0.5)
    assert "the reference" in str(caught.value)


def test_values_that_come_apart_under_a_tie_are_refused() -> None:
    a, b = params(0), params(1)
    lerp(a, clone(b) | {"head": b["head"].clone()}, 0.5)  # equal copies are fine
    with pytest.raises(ParamsError, match="head"):
        lerp(a, b | {"head": b["head"] + 1}, 0.5)


def test_a_mask_of_infinities_that_all_share_survives_any_weights() -> None:
    mask = torch.tensor([0.0, -math.inf])
    models = [{"mask": mask.clone(), "w": torch.full((2,), value)} for value in (1.0, 2.0, 4.0)]
    found = mean(models, [2, -1, 0])
    assert_same(found, {"mask": mask, "w": torch.zeros(2)})
