"""The gains against the definition: what the objective changes by when one group is permuted otherwise."""

from __future__ import annotations

import pytest
import torch
from specs import SPECS, flat_mlp, nested_heads, random_params
from torch import Tensor

from onebasin.errors import ParamsError
from onebasin.matching import Feature, Objective, WeightMatching, tensors
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def doubles(spec: PermutationSpec, seed: int) -> Params:
    return {name: tensor.double() for name, tensor in random_params(spec, seed).items()}


def with_constants(spec: PermutationSpec) -> Objective:
    """Features for every tensor and a constant gain for every group."""
    generator = torch.Generator().manual_seed(3)
    shapes = {name: spec.index_shape(name) * 2 for name in spec.sizes}
    gains = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return WeightMatching().objective(spec, doubles(spec, 0), doubles(spec, 1)) + Objective(spec, gains=gains)


def inner(a: Params, b: Params, names: tuple[str, ...]) -> float:
    return sum((a[name] * b[name]).sum().item() for name in names)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_value_is_the_inner_product_with_the_moved_model(spec: PermutationSpec) -> None:
    a, b, p = doubles(spec, 0), doubles(spec, 1), draw(spec, 2)
    value = WeightMatching().objective(spec, a, b).value(p)
    assert value == pytest.approx(inner(a, p.apply(b), spec.matched), rel=1e-12)
    assert value != pytest.approx(inner(a, p.inverse().apply(b), spec.matched), rel=1e-3)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_gain_differences_are_value_differences(spec: PermutationSpec) -> None:
    objective, before = with_constants(spec), draw(spec, 4)
    quadratic = {name for term in objective.blocks for name, count in term.unmoved.items() if count > 1}
    for group in spec.sizes:
        after = Permutation(spec, {**before.indices, group: before.indices[group].roll(1, -1)})
        gain = objective.gain(before, group)
        rise = (picked(gain, after.indices[group]) - picked(gain, before.indices[group])).item()
        difference = objective.value(after) - objective.value(before)
        assert objective.value(after, group) - objective.value(before, group) == pytest.approx(difference, abs=1e-9)
        if group in quadratic:
            assert rise != pytest.approx(difference, abs=1e-3)
        else:
            assert rise == pytest.approx(difference, abs=1e-9)


def picked(gain: Tensor, index: Tensor) -> Tensor:
    return gain.gather(-1, index[..., None]).sum()


def flat_mlp_objective() -> Objective:
    spec = flat_mlp()
    return WeightMatching().objective(spec, doubles(spec, 0), doubles(spec, 1))


def test_the_gain_of_a_quadratic_group_is_the_gradient() -> None:
    spec = PermutationSpec.from_axes({"w": ("P0", "P0")}, {"w": (5, 5)})
    a, b, p = doubles(spec, 0)["w"], doubles(spec, 1)["w"], draw(spec, 2)
    soft = torch.eye(5, dtype=torch.float64)[p.indices["P0"]].requires_grad_()
    (a * (soft @ b @ soft.T)).sum().backward()
    objective = WeightMatching().objective(spec, {"w": a}, {"w": b})
    torch.testing.assert_close(objective.gain(p, "P0"), soft.grad)


def test_the_axis_that_is_solved_for_is_not_permuted() -> None:
    objective, p = flat_mlp_objective(), draw(flat_mlp(), 2)
    other = Permutation(p.spec, {**p.indices, "P0": draw(p.spec, 9).indices["P0"]})
    assert torch.equal(objective.gain(p, "P0"), objective.gain(other, "P0"))
    assert not torch.equal(objective.gain(p, "P1"), objective.gain(other, "P1"))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_sum_of_two_objectives_is_an_objective(spec: PermutationSpec) -> None:
    both, p = with_constants(spec), draw(spec, 6)
    features, constants = Objective(spec, both.features), Objective(spec, gains=both.gains)
    assert (both + both).value(p) == pytest.approx(2 * (features.value(p) + constants.value(p)), rel=1e-12)
    for group in spec.sizes:
        total = features.gain(p, group) + constants.gain(p, group)
        torch.testing.assert_close((both + both).gain(p, group), 2 * total)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_scale_bounds_the_value(spec: PermutationSpec) -> None:
    objective = with_constants(spec)
    assert all(abs(objective.value(draw(spec, seed))) < objective.scale() for seed in range(10))
    same = WeightMatching().objective(spec, doubles(spec, 0), doubles(spec, 0))
    assert same.value(Permutation.identity(spec)) == pytest.approx(same.scale())


def test_tied_tensors_count_once_and_buffers_do_not() -> None:
    axes = {"one": ("P0", None), "two": ("P0", None), "bn.running_mean": ("P0",), "fixed": (None,)}
    free = PermutationSpec.from_axes(axes, {"one": (5, 3), "two": (5, 3), "bn.running_mean": (5,), "fixed": (2,)})
    tied = PermutationSpec(free.sizes, free.tensors, buffers=free.buffers, ties=(("one", "two"),))
    a, b = doubles(tied, 0), doubles(tied, 1)
    a["two"], b["two"] = a["one"], b["one"]
    p = draw(tied, 2)
    once = WeightMatching().objective(tied, a, b)
    assert once.value(p) == pytest.approx(inner(a, p.apply(b), ("one",)))
    twice = WeightMatching().objective(free, a, b)
    torch.testing.assert_close(twice.gain(p, "P0"), 2 * once.gain(p, "P0"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    spec = PermutationSpec.from_axes({"w": ("P0", None)}, {"w": (5, 4099)})
    a, b = ({name: x.to(dtype) for name, x in random_params(spec, seed).items()} for seed in (0, 1))
    p = draw(spec, 2)
    objective = WeightMatching().objective(spec, a, b)
    assert objective.gain(p, "P0").dtype == torch.float32
    exact = a["w"].double() @ b["w"].double().T
    torch.testing.assert_close(objective.gain(p, "P0").double(), exact, rtol=1e-5, atol=1e-3)
    assert objective.value(p) == pytest.approx(inner(wide(a), wide(p.apply(b)), ("w",)), rel=1e-12)


def wide(params: Params) -> Params:
    return {name: tensor.double() for name, tensor in params.items()}


def test_large_tensors_are_summed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, p = with_constants(nested_heads()), draw(nested_heads(), 2)
    whole = objective.value(p)
    monkeypatch.setattr(tensors, "_is_for_numba", lambda *_: False)
    for chunk in (1, 7, 100):
        monkeypatch.setattr(tensors, "CHUNK", chunk)
        assert objective.value(p) == pytest.approx(whole, rel=1e-12)


def test_what_does_not_fit_is_listed() -> None:
    spec = nested_heads()
    features = (Feature("nowhere", torch.zeros(1), torch.zeros(1)), Feature("gate", torch.zeros(3), torch.zeros(5)))
    gains = {"unit": torch.zeros(5, 5), "ghost": torch.zeros(2, 2)}
    with pytest.raises(ParamsError) as error:
        Objective(spec, features, gains)
    for part in ("nowhere", "gate: (5,) instead of (3,)", "gain of unit: (5, 5) instead of (3, 5, 3, 5)", "ghost"):
        assert part in str(error.value)
