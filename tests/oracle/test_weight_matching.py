"""Weight matching against brute force over all permutations, and against what the paper works out by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from specs import random_params
from torch import Tensor

from onebasin.layout import Leaf, Product, Sum
from onebasin.matching import WeightMatching, align
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


def elements(spec: PermutationSpec) -> Iterator[Permutation]:
    """Yield every permutation of a flat spec."""
    rows = [list(itertools.permutations(range(size))) for size in spec.sizes.values()]
    for choice in itertools.product(*rows):
        yield Permutation(spec, {name: torch.tensor(row) for name, row in zip(spec.sizes, choice, strict=True)})


def tiny_specs() -> dict[str, PermutationSpec]:
    chain = PermutationSpec.from_axes(
        {"1": ("P0", None), "1b": ("P0",), "2": ("P1", "P0"), "3": (None, "P1")},
        {"1": (4, 3), "1b": (4,), "2": (3, 4), "3": (2, 3)},
    )
    joined = Sum((Leaf(3, "P0"), Leaf(2), Leaf(4, "P1")))
    concat = PermutationSpec.from_axes(
        {"1": ("P0", None), "2": ("P1", "P0"), "3": (None, joined)}, {"1": (3, 2), "2": (4, 3), "3": (5, 9)}
    )
    grid = Product((Leaf(4, "P0"), Leaf(3)))
    flatten = PermutationSpec.from_axes(
        {"conv": ("P0", None, None, None), "fc": ("P1", grid), "out": (None, "P1")},
        {"conv": (4, 2, 3, 3), "fc": (3, 12), "out": (2, 3)},
    )
    return {"chain": chain, "concat": concat, "flatten": flatten}


TINY = tiny_specs()


@pytest.mark.parametrize("spec", TINY.values(), ids=TINY)
@pytest.mark.parametrize("seed", range(5))
def test_brute_force_bounds_it_and_agrees_on_local_optimality(spec: PermutationSpec, seed: int) -> None:
    a, b = random_params(spec, seed), random_params(spec, seed + 10)
    value = WeightMatching().objective(spec, a, b).value
    values = {tuple(tuple(row.tolist()) for row in p.indices.values()): value(p) for p in elements(spec)}
    best, runs = max(values.values()), []
    for start in (Permutation.identity(spec), *(Permutation.random(spec, generator(s)) for s in range(20))):
        found = align(spec, a, b, start=start)
        key = tuple(tuple(row.tolist()) for row in found.permutation.indices.values())
        assert found.objective[-1] == pytest.approx(values[key])
        one_changed = [v for k, v in values.items() if sum(x != y for x, y in zip(k, key, strict=True)) == 1]
        assert found.objective[-1] >= max(one_changed) - 1e-9
        runs.append(found.objective[-1])
    assert max(runs) == pytest.approx(best)
    assert max(runs) <= best + 1e-9


@pytest.mark.parametrize("spec", TINY.values(), ids=TINY)
def test_brute_force_finds_the_planted_permutation(spec: PermutationSpec) -> None:
    a = random_params(spec, 3)
    p = Permutation.random(spec, generator(4))
    b = p.apply(a)
    objective = WeightMatching().objective(spec, a, b)
    assert max(elements(spec), key=objective.value) == p.inverse() == align(spec, a, b).permutation


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def greedy_chain(e: float) -> tuple[PermutationSpec, Params, Params]:
    """The linear chain of ainsworth2023, A.7.2: f_A(x) = x, f_B(x) = (1 + e) x."""
    spec = PermutationSpec.from_axes(
        {"1": ("P0", None), "2": ("P1", "P0"), "3": (None, "P1")}, {"1": (2, 1), "2": (2, 2), "3": (1, 2)}
    )
    first = torch.tensor([[1.0], [1.0 + e]])
    a = {"1": first, "2": torch.tensor([[1.0, 0.0], [0.0, e]]), "3": torch.tensor([[1.0, 0.0]])}
    b = {"1": first, "2": torch.tensor([[0.0, 0.0], [0.0, 1.0]]), "3": torch.tensor([[0.0, 1.0]])}
    return spec, a, b


@pytest.mark.parametrize("seed", range(8))
def test_both_swaps_where_a_greedy_single_pass_fails(seed: int) -> None:
    e = 0.125
    spec, a, b = greedy_chain(e)
    found = align(spec, a, b, WeightMatching(seed=seed)).permutation
    assert {name: row.tolist() for name, row in found.indices.items()} == {"P0": [1, 0], "P1": [1, 0]}
    moved = found.apply(b)
    middle = [(a[name] + moved[name]) / 2 for name in ("3", "2", "1")]
    assert torch.linalg.multi_dot(middle).item() == pytest.approx(1 + e / 2)


def test_the_seeds_above_visit_the_two_groups_in_both_orders() -> None:
    assert {tuple(next(CoordinateDescent(seed)._orders(["P0", "P1"]))) for seed in range(8)} == {
        ("P0", "P1"),
        ("P1", "P0"),
    }


def two_layers(signs: tuple[float, float], bias: tuple[float, float], second: tuple[float, float]) -> Params:
    return {
        "1.weight": torch.diag(torch.tensor(signs)),
        "1.bias": torch.tensor(bias),
        "2.weight": torch.diag(torch.tensor(second)),
        "2.bias": torch.tensor(bias),
        "3.weight": torch.tensor([[-1.0, -1.0]]),
    }


def error_rate(params: Params, points: Tensor) -> float:
    """Return the share of points that `f(x) >= 0` classifies wrongly; the class is x1 < 0 and x2 > 0."""
    hidden = torch.relu(points @ params["1.weight"].T + params["1.bias"])
    hidden = torch.relu(hidden @ params["2.weight"].T + params["2.bias"])
    said = (hidden @ params["3.weight"].T)[:, 0] >= -1e-6
    return (said != ((points[:, 0] < 0) & (points[:, 1] > 0))).double().mean().item()


def test_the_counterexample_to_universal_linear_mode_connectivity() -> None:
    a = two_layers((-1.0, -1.0), (1.0, 0.0), (-1.0, 1.0))
    b = two_layers((1.0, 1.0), (0.0, 1.0), (1.0, -1.0))
    axes = {
        "1.weight": ("P0", None), "1.bias": ("P0",), "2.weight": ("P1", "P0"), "2.bias": ("P1",),
        "3.weight": (None, "P1"),
    }  # fmt: skip
    spec = PermutationSpec.from_axes(axes, {name: tuple(tensor.shape) for name, tensor in a.items()})
    points = torch.rand(20011, 2, generator=generator(0)) * 2 - 1
    value = WeightMatching().objective(spec, a, b).value
    values = {}
    for p in elements(spec):
        moved = p.apply(b)
        assert error_rate(a, points) == error_rate(moved, points) == 0
        middle = {name: (a[name] + moved[name]) / 2 for name in a}
        assert error_rate(middle, points) == pytest.approx(0.25, abs=0.01)
        values[tuple(row[0].item() for row in p.indices.values())] = value(p)
    # The last layer adds 2 to each: its weights are all -1.
    assert values == {(0, 0): -2, (1, 0): 3, (0, 1): 1, (1, 1): 6}
    assert align(spec, a, b).permutation.indices["P0"].tolist() == [1, 0]
