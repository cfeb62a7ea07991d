"""Sinkhorn: balanced matrices and their gradient, planted orders, better optima, starts, interrupts, settings."""

from __future__ import annotations

import json

import pytest
import torch
from specs import SPECS, nested_deeply, nested_heads, random_params

from onebasin.errors import UsageError
from onebasin.matching import CoordinateDescent, Objective, Sinkhorn, StopReason, WeightMatching, align
from onebasin.matching.sinkhorn import Balance, SoftOrders, balanced
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

MATCHER = WeightMatching(solver=Sinkhorn(rate=0.5))
BARE = WeightMatching(solver=Sinkhorn(rate=0.5, steps=100, descent=CoordinateDescent(max_sweeps=0)))


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def chain(*sizes: int) -> PermutationSpec:
    """An MLP without biases."""
    names = [None, *(f"P{number}" for number in range(len(sizes) - 2)), None]
    layers = range(len(sizes) - 1)
    return PermutationSpec.from_axes(
        {f"{layer}": (names[layer + 1], names[layer]) for layer in layers},
        {f"{layer}": (sizes[layer + 1], sizes[layer]) for layer in layers},
    )


def recurrent() -> PermutationSpec:
    """One group on both axes of a weight, and beside inputs."""
    return PermutationSpec.from_axes({"w": ("P0", "P0"), "in": ("P0", None)}, {"w": (11, 11), "in": (11, 5)})


def start_of(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return -logits.logsumexp(-1), torch.zeros(logits.shape[:-1], dtype=logits.dtype)


def test_matrices_are_doubly_stochastic_and_the_potentials_make_them_so() -> None:
    logits = 3 * torch.randn(4, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, (rows, columns) = balanced(logits, *start_of(logits), 500)
    for axis in (-1, -2):
        torch.testing.assert_close(found.sum(axis), torch.ones(4, 7, dtype=torch.float64))
    torch.testing.assert_close((logits + rows[..., None] + columns[..., None, :]).exp(), found)
    few, _ = balanced(logits, *start_of(logits), 1)
    assert (few.sum(-1) - 1).abs().max() > 1e-3  # the negative twin: one round is not enough


def test_the_gradient_is_that_of_finite_differences_and_of_the_converged_matrix() -> None:
    """Projected to what rows and columns of constant sum allow, as implicit differentiation gives it."""
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: balanced(x, *start_of(logits), 3)[0], [logits.clone().requires_grad_()])
    weights = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    free = logits.clone().requires_grad_()
    matrix, _ = balanced(free, *start_of(logits), 300)
    (weights * matrix).sum().backward()
    p = matrix.detach()
    system = torch.cat([torch.cat([torch.eye(5), p], 1), torch.cat([p.T, torch.eye(5)], 1)])
    sides = torch.cat([(p * weights).sum(1), (p * weights).sum(0)])
    both = torch.linalg.lstsq(system, sides[:, None], driver="gelsd").solution[:, 0]
    torch.testing.assert_close(free.grad, p * (weights - both[:5, None] - both[5:]), rtol=1e-8, atol=1e-10)


def test_logits_far_apart_stay_finite() -> None:
    """Moved by as much as a step may move them, again and again: entries vanish, sums stay."""
    spec = chain(3, 17, 2)
    orders = SoftOrders(Balance(30.0, 1.0, 20, 0.1, 0), Permutation.identity(spec), spec.sizes)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        with torch.no_grad():
            orders.logits["P0"] += 30 * torch.randn(17, 17, generator=generator).sign()
        matrix = orders()["P0"].values
        assert torch.isfinite(matrix).all()
        torch.testing.assert_close(matrix.sum(0), torch.ones(17))


@pytest.mark.parametrize("spec", [chain(61, 47, 59, 53, 7), recurrent(), nested_heads(), nested_deeply()], ids=range(4))
def test_a_planted_permutation_is_found(spec: PermutationSpec) -> None:
    a, p = random_params(spec, 0), draw(spec, 100)
    found = align(spec, a, p.apply(a), MATCHER)
    moved = found.permutation.apply(p.apply(a))
    assert all(torch.equal(moved[name], a[name]) for name in a)
    assert found.stop is StopReason.CONVERGED
    other = align(spec, a, random_params(spec, 50), MATCHER)
    assert other.permutation != p.inverse()


@pytest.mark.parametrize("spec", [chain(31, 23, 19, 7), nested_heads()], ids=range(2))
def test_ascent_alone_finds_it_too(spec: PermutationSpec) -> None:
    """Without coordinate descent at the end; without ascent nothing is found."""
    a, p = random_params(spec, 0), draw(spec, 100)
    assert align(spec, a, p.apply(a), BARE).permutation == p.inverse()
    still = WeightMatching(solver=Sinkhorn(steps=0, descent=CoordinateDescent(max_sweeps=0)))
    assert align(spec, a, p.apply(a), still).permutation == Permutation.identity(spec)


def test_it_reaches_more_than_coordinate_descent_on_independent_networks() -> None:
    spec, ascent = chain(97, 61, 67, 59, 7), WeightMatching(solver=Sinkhorn(rate=1.0))
    reached: dict[str, float] = {"plain": 0.0, "ascent": 0.0}
    for seed in range(4):
        a, b = random_params(spec, seed), random_params(spec, seed + 50)
        scaled: list[Params] = [{n: t / t.shape[-1] ** 0.5 for n, t in params.items()} for params in (a, b)]
        reached["plain"] += align(spec, *scaled, WeightMatching(seed=seed)).objective[-1]
        reached["ascent"] += align(spec, *scaled, ascent).objective[-1]
    assert reached["ascent"] > 1.01 * reached["plain"]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_history_rises_to_what_the_result_is_worth(spec: PermutationSpec) -> None:
    a, b = ({n: t.double() for n, t in random_params(spec, s).items()} for s in (1, 51))
    wanted, start = WeightMatching().objective(spec, a, b), draw(spec, 2)
    found = Sinkhorn().maximise(wanted, start, MATCHER)
    assert list(found.objective) == sorted(found.objective)
    assert found.objective[0] == wanted.value(start)
    assert found.objective[-1] == wanted.value(found.permutation)
    assert found.certificate.gap < 1e-13
    assert found.certificate.assignments > 0


def test_a_better_start_is_kept() -> None:
    spec = chain(29, 23, 19, 7)
    wanted = WeightMatching().objective(spec, random_params(spec, 0), random_params(spec, 1))
    start = CoordinateDescent().maximise(wanted, draw(spec, 1), MATCHER).permutation
    hasty = Sinkhorn(steps=3, rate=5.0, descent=CoordinateDescent(max_sweeps=0))
    found = hasty.maximise(wanted, start, MATCHER)
    assert found.permutation == start
    assert found.objective[0] == found.objective[-1] == wanted.value(start)


@pytest.mark.parametrize(("task", "at"), [("ascending", 1), ("ascending", 30), ("matching", 1)])
def test_an_interrupt_keeps_the_best_so_far(task: str, at: int) -> None:
    spec = chain(29, 23, 19, 7)
    wanted = WeightMatching().objective(spec, random_params(spec, 0), random_params(spec, 1))

    def stop(now: str, done: int, total: int) -> None:
        if (now, done) == (task, at):
            raise KeyboardInterrupt

    found = Sinkhorn(rate=0.5).maximise(wanted, Permutation.identity(spec), MATCHER, stop)
    assert found.stop is StopReason.INTERRUPTED
    assert found.objective[-1] == wanted.value(found.permutation) >= found.objective[0]
    if at == 30 or task == "matching":
        assert found.permutation != Permutation.identity(spec)


def test_gains_alone_and_half_precision() -> None:
    spec = nested_heads()
    shapes = {name: spec.index_shape(name) for name in spec.sizes}
    gains = {n: torch.randn(*s, *s, generator=torch.Generator().manual_seed(3)) for n, s in shapes.items()}
    wanted = Objective(spec, gains=gains)
    best = CoordinateDescent().maximise(wanted, Permutation.identity(spec), MATCHER)
    assert Sinkhorn().maximise(wanted, Permutation.identity(spec), MATCHER).permutation == best.permutation
    a, p = {name: tensor.bfloat16() for name, tensor in random_params(spec, 0).items()}, draw(spec, 1)
    assert align(spec, a, p.apply(a), MATCHER).permutation == p.inverse()


def test_the_same_seed_gives_the_same_and_another_may_not() -> None:
    spec = chain(29, 23, 19, 7)
    a, b = random_params(spec, 0), random_params(spec, 1)
    few = [align(spec, a, b, WeightMatching(seed=seed, solver="sinkhorn")).permutation for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


def test_a_spec_without_groups_is_no_error() -> None:
    spec = PermutationSpec.from_axes({}, {"w": (3, 2)})
    assert align(spec, random_params(spec, 0), random_params(spec, 1), MATCHER).objective == (0.0, 0.0)


def test_settings_are_told_and_checked() -> None:
    spec = chain(5, 3, 2)
    found = align(spec, random_params(spec, 0), random_params(spec, 1), MATCHER)
    told = json.loads(json.dumps(found.to_json()["settings"]["solver"]))
    assert (told["name"], told["steps"], told["rate"], told["temperature"]) == ("Sinkhorn", 50, 0.5, 1.0)
    for wrong in ({"temperature": 0.0}, {"normalisations": 0}, {"rate": 1.0, "temperature": 0.01}, {"rate": -1.0}):
        with pytest.raises(UsageError):
            Sinkhorn(**wrong)  # type: ignore[arg-type]
