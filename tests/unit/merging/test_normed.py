"""Networks with the statistics of their units: in train mode, the one half way between two is the repaired one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from models.toys import layer_norm
from repairing import convnet, group_normed, mlp, net, normed
from torch import Tensor, nn

from onebasin.errors import UsageError
from onebasin.functional import eval_mode, with_params
from onebasin.interpolate import lerp
from onebasin.matching import Criterion
from onebasin.matching.criterion import Subject
from onebasin.merging import repair
from onebasin.merging.normed import RepairedCriterion, UnitStatistics
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

MAKES = {mlp: (3,), convnet: (2, 7, 5), normed: (2, 7, 5), group_normed: (2, 7, 5), layer_norm: (3,)}
Found = tuple[nn.Module, PermutationSpec, list[Params], Tensor, Subject]


def subject(make: Callable[[], nn.Module]) -> Found:
    model, spec, ends, inputs = net(make, *MAKES[make])
    return model, spec, ends, inputs, RepairedCriterion(model, [inputs]).subject(spec, *ends)


def drawn(spec: PermutationSpec, seed: int = 0) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def outputs(criterion: Criterion, params: Params, inputs: Tensor) -> Tensor:
    with torch.no_grad(), criterion.mode():
        found: Tensor = with_params(criterion.model, params)(inputs)
    return found


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_the_midpoint_on_a_batch_is_the_one_repaired_on_it(make: Callable[[], nn.Module]) -> None:
    model, spec, (a, b), inputs, seen = subject(make)
    p = drawn(spec)
    moved = p.apply(b)
    repaired, _ = repair(model, spec, lerp(a, moved, 0.5), [a, moved], [inputs])
    plain = Criterion(model, [inputs])  # what batch norm remembers is unbiased: so it is to use the batch here, too
    expected = outputs(plain, repaired, inputs)
    found = outputs(seen.criterion, lerp(seen.a, seen.order(p).apply(seen.b), 0.5), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert (outputs(plain, lerp(a, moved, 0.5), inputs) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_statistics_move_with_their_units(make: Callable[[], nn.Module]) -> None:
    _, spec, _, inputs, seen = subject(make)
    p, middle = seen.order(drawn(spec)), lerp(seen.a, seen.b, 0.5)
    before = outputs(seen.criterion, middle, inputs)
    torch.testing.assert_close(outputs(seen.criterion, p.apply(middle), inputs), before, rtol=1e-9, atol=1e-9)
    left = {name: middle[name] if name.endswith("unit_statistics.weight") else x for name, x in p.apply(middle).items()}
    assert (outputs(seen.criterion, left, inputs) - before).abs().max() > 1e-3


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_ends_are_what_they_were(make: Callable[[], nn.Module]) -> None:
    model, _, ends, inputs, seen = subject(make)
    for end, with_statistics in zip(ends, (seen.a, seen.b), strict=True):
        with torch.no_grad(), eval_mode(model), eval_mode(seen.criterion.model):
            assert torch.equal(
                with_params(seen.criterion.model, with_statistics)(inputs), with_params(model, end)(inputs)
            )
    assert not any(isinstance(module, UnitStatistics) for module in model.modules())
    shared = {tensor.data_ptr() for tensor in model.parameters()}
    assert shared <= {tensor.data_ptr() for tensor in seen.criterion.model.parameters()}


def test_statistics_count_in_slopes_and_matching() -> None:
    _, spec, _, _, seen = subject(convnet)
    between = seen.criterion.between(seen.a, seen.b)
    (slopes,) = between.slopes(between.middle(seen.order(drawn(spec))), 0, torch.Generator())
    names = [name for name in slopes.own if name.endswith(("unit_statistics.weight", "unit_statistics.bias"))]
    assert len(names) == 6
    assert all(slopes.own[name].abs().max() > 0 for name in names)
    assert set(names) <= set(seen.spec.matched)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_half_precision_has_statistics_in_float32(dtype: torch.dtype) -> None:
    model, spec, ends, inputs = net(convnet, *MAKES[convnet])
    model.to(dtype)
    a, b = ({name: x.to(dtype) for name, x in end.items()} for end in ends)
    seen = RepairedCriterion(model, [inputs.to(dtype)]).subject(spec, a, b)
    assert seen.a["0.unit_statistics.weight"].dtype == torch.float32
    value = seen.criterion.between(seen.a, seen.b).at(seen.order(drawn(spec)))
    wide = RepairedCriterion(model.double(), [inputs]).subject(spec, *ends)
    exact = wide.criterion.between(wide.a, wide.b).at(wide.order(drawn(spec)))
    assert value == pytest.approx(exact, rel=0.05 if dtype != torch.float32 else 1e-5)


def test_a_unit_that_never_changes_is_finite() -> None:
    model, spec, (a, b), inputs = net(mlp, 3)
    for params in (a, b):
        params["0.weight"][2] = 0
    a["2.weight"][4], a["2.bias"][4] = 0, 1
    seen = RepairedCriterion(model, [inputs]).subject(spec, a, b)
    between = seen.criterion.between(seen.a, seen.b)
    (slopes,) = between.slopes(between.middle(seen.order(Permutation.identity(spec))), 2, torch.Generator())
    assert all(slope.isfinite().all() for slope in slopes.own.values())


@pytest.mark.parametrize("batches", [[], iter([torch.zeros(2, 3)])], ids=["none", "once"])
def test_batches_that_will_not_do(batches: Sequence[Tensor]) -> None:
    model, spec, ends, _ = net(mlp, 3)
    with pytest.raises(UsageError):
        RepairedCriterion(model.double(), batches).subject(spec, *ends)
