"""Runs of weight matching: what is returned, when it stops, what it refuses."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from specs import SPECS, flat_mlp, random_params

from onebasin.errors import ParamsError, SpecError
from onebasin.matching import StopReason, WeightMatching, align
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


def wide_mlp(hidden: tuple[int, ...] = (61, 67, 59), inputs: int = 29, outputs: int = 7) -> PermutationSpec:
    """An MLP with a bias in every layer."""
    sizes = (inputs, *hidden, outputs)
    names = [None, *(f"P{number}" for number in range(len(hidden))), None]
    shapes: dict[str, tuple[int, ...]] = {}
    axes: dict[str, tuple[str | None, ...]] = {}
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"{layer}.weight": (n_out, n_in), f"{layer}.bias": (n_out,)}
        axes |= {f"{layer}.weight": (names[layer + 1], names[layer]), f"{layer}.bias": (names[layer + 1],)}
    return PermutationSpec.from_axes(axes, shapes)


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def distance(a: Params, b: Params) -> float:
    return sum((a[name].double() - b[name].double()).square().sum().item() for name in a)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_planted_permutation_is_found_in_four_sweeps(seed: int, dtype: torch.dtype) -> None:
    spec = wide_mlp()
    a = {name: tensor.to(dtype) for name, tensor in random_params(spec, seed).items()}
    p = draw(spec, seed + 100)
    found = align(spec, a, p.apply(a), WeightMatching(seed=seed))
    assert found.permutation == p.inverse()
    assert found.permutation.apply(p.apply(a)).keys() == a.keys()
    assert len(found.objective) - 1 <= 4
    assert found.stop is StopReason.CONVERGED
    assert {index.dtype for index in found.permutation.indices.values()} == {torch.int64}


def test_two_dtypes_are_matched_in_the_wider_one() -> None:
    spec = wide_mlp()
    a, p = random_params(spec, 0), draw(spec, 1)
    half = {name: tensor.bfloat16() for name, tensor in p.apply(a).items()}
    assert align(spec, a, half).permutation == align(spec, half, a).permutation.inverse() == p.inverse()


def test_progress_is_told_after_every_group() -> None:
    spec, told = wide_mlp(), []
    found = align(spec, random_params(spec, 0), random_params(spec, 1), progress=lambda *args: told.append(args))
    assert told == [("matching", number + 1, 0) for number in range(found.certificate.assignments)]


def test_one_hidden_layer_has_converged_after_one_sweep() -> None:
    spec = wide_mlp(hidden=(41,))
    found = align(spec, random_params(spec, 0), random_params(spec, 1))
    assert len(found.objective) == 2
    assert found.stop is StopReason.CONVERGED
    assert found.certificate.assignments == 1
    again = align(spec, random_params(spec, 0), random_params(spec, 1), start=found.permutation)
    assert again.permutation == found.permutation
    assert again.objective[0] == again.objective[-1] == found.objective[-1]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("seed", range(7))
def test_the_objective_rises_to_what_the_result_is_worth(spec: PermutationSpec, seed: int) -> None:
    a, b = random_params(spec, seed), random_params(spec, seed + 50)
    start = draw(spec, seed)
    found = align(spec, a, b, WeightMatching(seed=seed), start=start)
    history = found.objective
    assert all(before <= after for before, after in itertools.pairwise(history))
    value = WeightMatching().objective(spec, a, b).value
    assert history[0] == value(start)
    assert history[-1] == value(found.permutation)
    gained = distance(a, start.apply(b)) - distance(a, found.permutation.apply(b))
    assert gained == pytest.approx(2 * (history[-1] - history[0]), rel=1e-5, abs=1e-9)
    assert found.stop is StopReason.CONVERGED
    assert found.certificate.gap < 1e-13


def test_no_group_can_be_improved_at_the_end() -> None:
    spec = wide_mlp()
    a, b = random_params(spec, 0), random_params(spec, 1)
    found = align(spec, a, b).permutation
    objective = WeightMatching().objective(spec, a, b)
    for group, seed in itertools.product(spec.sizes, range(20)):
        index = torch.randperm(spec.sizes[group], generator=torch.Generator().manual_seed(seed))
        assert objective.value(Permutation(spec, {**found.indices, group: index})) <= objective.value(found)


def test_a_seed_decides_the_run() -> None:
    spec = wide_mlp()
    a, b = random_params(spec, 0), random_params(spec, 1)
    runs = [align(spec, a, b, WeightMatching(seed=seed)) for seed in (3, 3, 4, 5, 6, 7)]
    assert runs[0].permutation == runs[1].permutation
    assert runs[0].objective == runs[1].objective
    assert len({run.objective for run in runs}) > 1


def test_the_inputs_are_not_written_to_and_buffers_move() -> None:
    axes = {"w": ("P0", None), "bn.running_mean": ("P0",)}
    spec = PermutationSpec.from_axes(axes, {"w": (13, 5), "bn.running_mean": (13,)})
    a, b = random_params(spec, 0), random_params(spec, 1)
    b["w"] = a["w"].flip(0)
    before = {name: tensor.clone() for name, tensor in b.items()}
    moved = align(spec, a, b).permutation.apply(b)
    assert torch.equal(moved["w"], a["w"])
    assert torch.equal(moved["bn.running_mean"], before["bn.running_mean"].flip(0))
    assert all(torch.equal(b[name], before[name]) for name in b)


def test_the_sweep_limit_is_told() -> None:
    spec = wide_mlp()
    a, b = random_params(spec, 0), random_params(spec, 1)
    found = align(spec, a, b, WeightMatching(max_sweeps=1))
    assert found.stop is StopReason.MAX_SWEEPS
    assert len(found.objective) == 2
    nothing = align(spec, a, b, WeightMatching(max_sweeps=0))
    assert nothing.permutation == Permutation.identity(spec)
    assert len(nothing.objective) == 1


def test_an_interrupt_keeps_the_best_so_far() -> None:
    spec = wide_mlp()
    a, b = random_params(spec, 0), random_params(spec, 1)

    def stop_after_two(task: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    found = align(spec, a, b, progress=stop_after_two)
    assert found.stop is StopReason.INTERRUPTED
    assert found.objective[0] < found.objective[-1]
    assert found.objective[-1] == WeightMatching().objective(spec, a, b).value(found.permutation)
    assert found.certificate.assignments == 2


def test_groups_whose_neighbours_rest_are_not_solved_again() -> None:
    shapes = {"one": (13, 5), "two": (11, 5)}
    spec = PermutationSpec.from_axes({"one": ("P0", None), "two": ("P1", None)}, shapes)
    found = align(spec, random_params(spec, 0), random_params(spec, 1))
    assert found.certificate.assignments == 2
    assert len(found.objective) == 2


def test_all_equal_weights_stay_where_they_are() -> None:
    spec = wide_mlp()
    ones = {name: torch.ones(shape) for name, shape in spec.shapes.items()}
    found = align(spec, ones, ones)
    assert found.permutation == Permutation.identity(spec)
    assert found.stop is StopReason.CONVERGED


def test_a_spec_without_groups_is_no_error() -> None:
    spec = PermutationSpec.from_axes({}, {"w": (3, 2)})
    found = align(spec, random_params(spec, 0), random_params(spec, 1))
    assert found.stop is StopReason.CONVERGED
    assert found.objective == (0.0,)


def test_an_alignment_tells_about_itself() -> None:
    spec = wide_mlp()
    found = align(spec, random_params(spec, 0), random_params(spec, 1), WeightMatching(seed=5))
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    settings = {"seed": 5, "max_sweeps": 100, "faq_steps": 30, "solver": "coordinate-descent", "features": "raw"}
    assert (told["matcher"], told["settings"]) == ("WeightMatching", settings)
    assert (told["stop"], told["why"]) == ("CONVERGED", StopReason.CONVERGED.value)
    assert tuple(told["objective"]) == found.objective
    for part in ("WeightMatching", StopReason.CONVERGED.value, "3 of 3 groups moved", "duality gap"):
        assert part in str(found)


def test_models_that_do_not_fit_are_refused_by_role() -> None:
    spec = flat_mlp()
    good = random_params(spec)
    misshapen = {**good, "fc1.weight": torch.zeros(3, 7)}
    missing = {name: tensor for name, tensor in good.items() if name != "fc1.bias"}
    broken = {**good, "fc2.weight": torch.full((5, 7), float("nan"))}
    with pytest.raises(ParamsError, match=r"the reference.*fc1\.weight \(3, 7\) instead of \(7, 3\)"):
        align(spec, misshapen, good)
    with pytest.raises(ParamsError, match=r"the moved model.*missing: fc1\.bias"):
        align(spec, good, missing)
    with pytest.raises(ParamsError, match=r"the moved model.*not finite.*fc2\.weight"):
        align(spec, good, broken)
    with pytest.raises(SpecError, match="another spec"):
        align(spec, good, good, start=Permutation.identity(wide_mlp()))
    huge = {name: torch.full_like(tensor, 1e30) for name, tensor in good.items()}
    with pytest.raises(ParamsError, match="overflow"):
        align(spec, huge, huge)
