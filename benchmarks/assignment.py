"""One assignment against scipy's: from nothing, and from the answer to gains that differ a little.

Families: gains of the first hidden layer of two trained MLPs, of matrices whose singular values fall as i^-0.5 (with a
basis of their own, or the same one as for common inputs), of a permutation under noise as large as the weights, and
uniform numbers. Every answer is proved, and worth as much as scipy's, or the benchmark fails.

    python -m benchmarks --only assignment [--large]
"""

import functools
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any

import torch
from experiments.networks import mlp
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import onebasin as ob
from benchmarks.models import trained
from benchmarks.timing import Row, median_seconds

# Not public by itself: every matcher reaches it through the gains that it computes.
solve = resolve_name("onebasin.matching.assignment.solve")
SIZES, LARGE = (16, 32, 64, 128, 256, 512, 1024, 2048), (4096, 8192)
FAMILIES = ("trained", "power law", "shared basis", "planted", "uniform")
SHORT = 256  # of fewer units, many assignments are timed together: one takes microseconds
APART = 0.02  # how far gains differ from those of the start, as a share of their spread


def run(large: bool = False) -> Iterator[Row]:
    for n in SIZES + (LARGE if large else ()):
        for family in FAMILIES:
            yield from measure(f"{family}, {n} units", gains_of(family, n), 5 if n <= 512 else 3 if n <= 2048 else 1)


def measure(name: str, gains: Tensor, runs: int) -> Iterator[Row]:
    """Time both on the same gains."""
    random = torch.Generator().manual_seed(1)
    start = solve(gains + APART * gains.std() * torch.randn(gains.shape, generator=random))
    calls = range(max(1, SHORT // len(gains)) ** 2)
    rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
    base = median_seconds(lambda: [linear_sum_assignment(gains.numpy(), maximize=True) for _ in calls], runs)
    best = gains.double().numpy()[rows, columns].sum()
    for what, warm in (("from nothing", None), ("from a near one", start)):
        seconds = median_seconds(functools.partial(repeat, gains, warm, calls), runs)
        found = solve(gains, warm)
        if abs(found.value.item() - best) > 1e-12 * abs(best) or found.gap.item() > 1e-13:
            raise AssertionError(f"an assignment worth {found.value.item()}, gap {found.gap.item()}; scipy's is {best}")
        yield Row(f"{name}: {what}", seconds / len(calls), "scipy", seconds / base)


def repeat(gains: Tensor, warm: Any | None, calls: range) -> None:
    for _ in calls:
        solve(gains, warm)


def gains_of(family: str, n: int) -> Tensor:
    random = torch.Generator().manual_seed(0)

    def normal(columns: int = n) -> Tensor:
        return torch.randn(n, columns, generator=random)

    def power_law(basis: Tensor) -> Tensor:
        """Return weights with rows of unequal norm; normal matrices stand for orthogonal ones."""
        return torch.exp(normal(1) / 2) * (normal() * torch.arange(1, n + 1) ** -0.5 / n) @ basis

    if family == "trained":
        return trained_gains(n)
    if family == "power law":
        return power_law(normal()) @ power_law(normal()).T
    if family == "shared basis":
        basis = normal()
        return power_law(basis) @ power_law(basis).T
    if family == "planted":
        weights = normal(2 * n)
        return weights @ (weights[torch.randperm(n, generator=random)] + normal(2 * n)).T
    return torch.rand(n, n, generator=random)


def trained_gains(n: int) -> Tensor:
    a, b = (trained(lambda: mlp(64, (n, n)), 8, 3, seed) for seed in (0, 1))
    (first_a, second_a), (first_b, second_b) = (matrices(params)[:2] for params in (a, b))
    return first_a @ first_b.T + second_a.T @ second_b


def matrices(params: ob.Params) -> list[Tensor]:
    return [tensor for tensor in params.values() if tensor.dim() == 2]
