"""Frank-Wolfe: the relaxation against dense matrices, planted orders, better optima, starts and interrupts."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from specs import SPECS, flat_mlp, nested_deeply, nested_heads, random_params
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.layout import Leaf, Product
from onebasin.matching import CoordinateDescent, FrankWolfe, Objective, StopReason, WeightMatching, align
from onebasin.matching.frank_wolfe import _Relaxation
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

MATCHER = WeightMatching(solver=FrankWolfe())


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def chain(*sizes: int) -> PermutationSpec:
    """An MLP without biases: every hidden layer stands in two tensors."""
    names = [None, *(f"P{number}" for number in range(len(sizes) - 2)), None]
    pairs = list(enumerate(itertools.pairwise(sizes)))
    axes = {f"{layer}": (names[layer + 1], names[layer]) for layer, _ in pairs}
    return PermutationSpec.from_axes(axes, {f"{layer}": (n_out, n_in) for layer, (n_in, n_out) in pairs})


def recurrent() -> PermutationSpec:
    """One group on both axes of a weight, and beside inputs."""
    return PermutationSpec.from_axes({"w": ("P0", "P0"), "in": ("P0", None)}, {"w": (11, 11), "in": (11, 5)})


def heads() -> PermutationSpec:
    """Units under heads, beside a stream: two variables."""
    grid = Product((Leaf(3, "head"), Leaf(5, "unit")))
    axes = {"query": (grid, None), "out": ("stream", grid), "gate": ("head",), "embed": (None, "stream")}
    shapes = {"query": (15, 7), "out": (11, 15), "gate": (3,), "embed": (2, 11)}
    return replace(PermutationSpec.from_axes(axes, shapes), parents={"unit": ("head",)})


def objective(spec: PermutationSpec, seed: int) -> Objective:
    a, b = ({n: t.double() for n, t in random_params(spec, s).items()} for s in (seed, seed + 50))
    return WeightMatching().objective(spec, a, b)


def matrix(pairs: dict[tuple[object, ...], Tensor]) -> Tensor:
    """Return a soft order as one matrix of new by old positions, from the most detailed of its entries."""
    values = max(pairs.values(), key=torch.Tensor.numel)
    return values.flatten(values.dim() // 2).flatten(0, values.dim() // 2 - 1).clone().requires_grad_()


@pytest.mark.parametrize("spec", [chain(13, 11, 7, 5), recurrent(), heads()], ids=["chain", "recurrent", "heads"])
def test_value_and_gradient_are_those_at_the_soft_orders(spec: PermutationSpec) -> None:
    """The gradient, only ever computed at permutations, is what autograd finds at dense doubly stochastic matrices."""
    relaxed = _Relaxation(wanted := objective(spec, 3))
    for _ in range(5):
        before = relaxed.value
        relaxed.step(0.0)
        assert relaxed.value >= before
        soft = {top: matrix(pairs) for top, pairs in relaxed.soft.items()}
        value = dense_value(wanted, soft)
        value.backward()
        assert relaxed.value == pytest.approx(value.item(), rel=1e-10)
        for top, pairs in relaxed.gradient.items():
            assert soft[top].grad is not None
            torch.testing.assert_close(in_full(pairs), soft[top].grad)
            for order in (soft[top].sum(0), soft[top].sum(1)):
                torch.testing.assert_close(order, torch.ones_like(order))


def dense_value(wanted: Objective, soft: dict[str, Tensor]) -> Tensor:
    """Return the sum of <A, P B Q^T>, where P and Q are the soft orders of the axes."""
    total = torch.zeros((), dtype=torch.float64)
    for feature in wanted.features:
        moved = feature.b
        for dim, axis in enumerate(wanted.spec.tensors[feature.name]):
            order = soft.get(str(axis)) if isinstance(axis, Leaf) else soft["head"]
            if feature.name == "gate":
                order = soft["head"].unflatten(0, (3, 5)).unflatten(2, (3, 5)).sum((1, 3)) / 5
            if order is not None:
                moved = torch.tensordot(order, moved, ([1], [dim])).movedim(0, dim)
        total = total + (feature.a * moved).sum()
    return total


def in_full(pairs: dict[tuple[object, ...], Tensor]) -> Tensor:
    """Add up the gains of all entries per pair of positions; those of a head are shared out among its units."""
    largest = max(pairs.values(), key=torch.Tensor.numel)
    total = torch.zeros_like(largest)
    for values in pairs.values():
        total += values if values.dim() == largest.dim() else values[:, None, :, None] / 5
    return total.flatten(largest.dim() // 2).flatten(0, largest.dim() // 2 - 1)


@pytest.mark.parametrize("spec", [chain(61, 47, 59, 53, 7), recurrent(), heads(), nested_deeply()], ids=range(4))
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_is_found(spec: PermutationSpec, seed: int) -> None:
    a, p = random_params(spec, seed), draw(spec, seed + 100)
    found = align(spec, a, p.apply(a), MATCHER)
    moved = found.permutation.apply(p.apply(a))
    assert all(torch.equal(moved[name], a[name]) for name in a)
    assert found.stop is StopReason.CONVERGED
    other = align(spec, a, random_params(spec, seed + 50), MATCHER)
    assert other.permutation != p.inverse()


@pytest.mark.parametrize("seed", range(5))
def test_it_reaches_more_than_coordinate_descent_on_independent_networks(seed: int) -> None:
    spec = chain(97, 61, 67, 59, 7)
    a, b = random_params(spec, seed), random_params(spec, seed + 50)
    scaled: list[Params] = [{n: t / t.shape[-1] ** 0.5 for n, t in params.items()} for params in (a, b)]
    plain, found = align(spec, *scaled, WeightMatching(seed=seed)), align(spec, *scaled, MATCHER)
    assert found.objective[-1] > 1.01 * plain.objective[-1]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_history_rises_to_what_the_result_is_worth(spec: PermutationSpec) -> None:
    wanted, start = objective(spec, 1), draw(spec, 2)
    found = FrankWolfe().maximise(wanted, start, MATCHER)
    assert list(found.objective) == sorted(found.objective)
    assert found.objective[0] == wanted.value(start)
    assert found.objective[-1] == wanted.value(found.permutation)
    assert found.certificate.gap < 1e-13
    assert found.certificate.assignments > 0


def test_half_precision_is_relaxed_in_float32() -> None:
    spec = nested_heads()
    a, p = {name: tensor.bfloat16() for name, tensor in random_params(spec, 0).items()}, draw(spec, 1)
    assert align(spec, a, p.apply(a), MATCHER).permutation == p.inverse()


def test_constant_gains_alone_are_solved_exactly() -> None:
    spec = flat_mlp()
    gains = {name: torch.randn(n, n, generator=torch.Generator().manual_seed(n)) for name, n in spec.sizes.items()}
    wanted = Objective(spec, gains=gains)
    found = FrankWolfe().maximise(wanted, Permutation.identity(spec), MATCHER)
    best = CoordinateDescent().maximise(wanted, Permutation.identity(spec), MATCHER)
    assert found.permutation == best.permutation


def test_a_better_start_is_kept() -> None:
    spec = chain(29, 23, 19, 7)
    wanted, hasty = objective(spec, 0), FrankWolfe(steps=0, descent=CoordinateDescent(max_sweeps=0))
    start = CoordinateDescent().maximise(wanted, draw(spec, 1), MATCHER).permutation
    found = hasty.maximise(wanted, start, MATCHER)
    assert found.permutation == start
    assert found.objective[0] == found.objective[-1] == wanted.value(start)


@pytest.mark.parametrize(("task", "at"), [("relaxing", 1), ("relaxing", 3), ("matching", 1)])
def test_an_interrupt_keeps_the_best_so_far(task: str, at: int) -> None:
    spec = chain(29, 23, 19, 7)
    wanted, start = objective(spec, 0), Permutation.identity(spec)

    def stop(now: str, done: int, total: int) -> None:
        if (now, done) == (task, at):
            raise KeyboardInterrupt

    found = FrankWolfe().maximise(wanted, start, MATCHER, stop)
    assert found.stop is StopReason.INTERRUPTED
    assert found.objective[-1] == wanted.value(found.permutation) >= found.objective[0]
    assert found.certificate.assignments >= 2 * at if task == "relaxing" else found.permutation != start


def test_a_spec_without_groups_is_no_error() -> None:
    spec = PermutationSpec.from_axes({}, {"w": (3, 2)})
    assert align(spec, random_params(spec, 0), random_params(spec, 1), MATCHER).objective == (0.0, 0.0)


def test_solvers_are_chosen_by_name_or_given() -> None:
    spec = chain(29, 23, 19, 7)
    a, b = random_params(spec, 0), random_params(spec, 1)
    named = align(spec, a, b, WeightMatching(seed=3, solver="frank-wolfe"))
    given = align(spec, a, b, WeightMatching(solver=FrankWolfe(descent=CoordinateDescent(seed=3))))
    assert named.permutation == given.permutation
    assert named.to_json()["settings"]["solver"] == "frank-wolfe"
    told = json.loads(json.dumps(given.to_json()["settings"]["solver"]))
    assert (told["name"], told["steps"], told["descent"]["seed"]) == ("FrankWolfe", 40, 3)
    with pytest.raises(UsageError, match="simplex"):
        align(spec, a, b, WeightMatching(solver="simplex"))  # type: ignore[arg-type]
