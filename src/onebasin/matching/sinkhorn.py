"""Sinkhorn: all groups at once, through doubly stochastic matrices that gradient descent moves."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from onebasin.errors import UsageError, check_counts
from onebasin.matching.alignment import Alignment, Certificate, Matcher
from onebasin.matching.assignment import Assignment, solve
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.matching.objective import Objective
from onebasin.matching.soft import joint_pairs, nearest, pair_dims, relax_then_descend, value_at
from onebasin.matching.terms import Labelled
from onebasin.params import compute_dtype
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent

# A step changes a logit by about rate / temperature, and so an entry of a matrix by at most the square of its
# exponential; beyond this bound that leaves the range of float32.
STEEPEST = 40.0
# What Adam adds to the size of gradients.
TINY = 1e-16


@dataclass(frozen=True)
class Balance:
    """How free logits X become doubly stochastic: rows and columns of exp(X / temperature) are normalised in turn.

    Args:
        rate: learning rate with which the logits will be moved.
        temperature: the smaller, the closer to a permutation.
        normalisations: of all rows, then all columns, at every step.
        noise: standard deviation of the logits around the order they begin with, where they are 1 at its places.
        seed: of the noise.

    Raises:
        UsageError: a setting out of range.
    """

    rate: float
    temperature: float
    normalisations: int
    noise: float
    seed: int

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.normalisations < 1:
            got = f"a temperature of {self.temperature} and {self.normalisations} normalisations"
            raise UsageError(got, "a positive temperature and at least one normalisation", "see the defaults")
        if not 0 <= self.rate / self.temperature <= STEEPEST:
            raise UsageError(
                f"a rate of {self.rate} at a temperature of {self.temperature}",
                f"at most {STEEPEST:g} times the temperature, and not negative",
                "lower the rate or raise the temperature",
            )

    def optimizer(self, free: list[Tensor]) -> torch.optim.Optimizer:
        """Return what moves the logits; their gradients are tiny in large groups, so nothing is added to them."""
        return torch.optim.AdamW(free, self.rate, eps=TINY)


@dataclass(frozen=True)
class Sinkhorn:
    """Maximise an objective over permutations by gradient ascent on doubly stochastic matrices, all groups at once.

    Each group has free logits X; its soft order is P = Sinkhorn(exp(X / temperature)). Adam ascends the objective at
    the soft orders (for weight matching: sum of < A, P B Q^T >) with respect to all X. At the end the P are rounded to
    the nearest permutations by exact assignments, and coordinate descent takes over from there. The result is never
    worse than the start.

    The relaxed objective is multilinear in the matrices. With one group on two axes of a tensor it is that of two
    independent draws from P, and under soft parents nested orders are averaged over pairs of units; in both cases it is
    exact at permutations only.

    Memory: seven matrices n x n per group (logits, their gradient, Adam's two moments, and the normalisation's), for
    nested groups one n x n per pair of parent units.

    Args:
        steps: of gradient ascent.
        rate: learning rate of AdamW; at 1.0 it reaches more on independent networks than at the published 0.1.
        temperature: the smaller, the closer the matrices are to permutations.
        normalisations: of all rows, then all columns, at every step.
        noise: standard deviation of the logits around the start, where they are 1 at its places.
        seed: of the noise.
        descent: the coordinate descent at the end; `CoordinateDescent(max_sweeps=0)` is the method as published.

    Source: pena2023, section 3, with the defaults of its code; the solver of ito2025, section 2.4.
    Differs: maximises <A, P(B)>, which leaves out |P(B)|^2 from |A - P(B)|^2 (at permutations both have the same
        optima; in between the square favours matrices that are far from any); the normalisation starts from the
        potentials of the step before and is differentiated through its iterations by autograd, not implicitly, which is
        exact for as many iterations as are made; rounds P itself, not X; ends with coordinate descent; nested groups.
        Own lines, no library: POT solves one problem at a time to convergence, 3.6 s at n = 256, which is needed here
        for all groups at every step.
    """

    steps: int = 50
    rate: float = 0.1
    temperature: float = 1.0
    normalisations: int = 20
    noise: float = 0.1
    seed: int = 0
    descent: CoordinateDescent = field(default_factory=CoordinateDescent)

    def __post_init__(self) -> None:
        check_counts(0, steps=self.steps)
        self._balance()  # which checks the others

    def maximise(
        self, objective: Objective, start: Permutation, matcher: Matcher, progress: Progress = silent
    ) -> Alignment:
        """Maximise `objective`; the logits begin at `start`, with whose value the history begins.

        `progress` is called after every step, then by coordinate descent. After an interrupt from the keyboard the best
        permutation so far is returned, and `stop` says so.
        """
        began = time.perf_counter()
        held = {name for term in objective.blocks for name in term.unmoved}
        tensors = [side.values for term in objective.blocks for side in (term.a, term.b)] or [torch.zeros(())]
        dtype = reduce(torch.promote_types, map(compute_dtype, tensors))
        orders = SoftOrders(self._balance(), start, held, dtype, tensors[0].device)
        relax, rounded = partial(self._ascend, objective, orders, progress), partial(orders.rounded, start)
        found = relax_then_descend(relax, rounded, self.descent, objective, start, matcher, progress)
        certificate = orders.certificate + found.certificate
        return replace(found, certificate=certificate, seconds=time.perf_counter() - began)

    def _balance(self) -> Balance:
        return Balance(self.rate, self.temperature, self.normalisations, self.noise, self.seed)

    def _ascend(self, objective: Objective, orders: SoftOrders, progress: Progress) -> None:
        if not orders.free:
            return
        optimizer, scale = orders.balance.optimizer(orders.free), objective.scale() or 1.0
        for number in range(self.steps):
            with torch.enable_grad():
                loss = -value_at(objective, orders()) / scale
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            progress("ascending", number + 1, self.steps)


class SoftOrders:
    """Soft orders that can be moved by an optimiser.

    Args:
        balance: how logits become matrices.
        start: where the logits begin.
        names: of the groups that are to be moved.
        dtype: of the matrices.
        device: of the matrices.
    """

    def __init__(
        self,
        balance: Balance,
        start: Permutation,
        names: Collection[str],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.balance, self.spec, self.certificate = balance, start.spec, Certificate()
        self.logits: dict[str, Tensor] = {}
        self._potentials: dict[str, tuple[Tensor, Tensor]] = {}
        generator = torch.Generator().manual_seed(balance.seed)
        for name in start.spec.sizes:
            if name not in names:
                continue
            dims = pair_dims(self.spec, name)
            shape = [self.spec.sizes[dim.group] for dim in dims]
            noise = balance.noise * torch.randn(shape, generator=generator)
            places = one_hot(start.indices[name], shape[-1])
            for number in range(len(dims) // 2 - 1):  # the same order for every old unit of the parents
                places = places.unsqueeze(2 * number + 1)
            logits = (places + noise).to(device, dtype)
            self.logits[name] = logits.requires_grad_()
            rows = -(logits.detach() / balance.temperature).logsumexp(-1)
            self._potentials[name] = rows, torch.zeros_like(rows)

    @property
    def free(self) -> list[Tensor]:
        """The logits."""
        return list(self.logits.values())

    def __call__(self) -> dict[str, Labelled]:
        """Return the soft orders at the present logits, to be differentiated."""
        result = {}
        for name, logits in self.logits.items():
            scaled = logits / self.balance.temperature
            values, self._potentials[name] = balanced(scaled, *self._potentials[name], self.balance.normalisations)
            result[name] = Labelled(values, pair_dims(self.spec, name))
        return result

    def rounded(self, otherwise: Permutation) -> Permutation:
        """Return the permutation nearest to the soft orders; groups that are not moved stay as in `otherwise`."""
        with torch.no_grad():
            return nearest(joint_pairs(self.spec, self()), otherwise, self._solve)

    def _solve(self, gains: Tensor) -> Assignment:
        found = solve(gains)
        self.certificate += Certificate.of(found)
        return found


def balanced(logits: Tensor, rows: Tensor, columns: Tensor, rounds: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return P[i, k] = exp(logits[i, k] + rows[i] + columns[k]) with all sums 1, and the potentials that make it so.

    The potentials given are where the normalisation starts, and constants to autograd: those of a step before make the
    matrix nearly balanced, so that `rounds` matrix-vector products of range-safe numbers suffice.
    """
    kernel = (logits + rows[..., None] + columns[..., None, :]).exp()
    left, right = torch.ones_like(rows), torch.ones_like(columns)
    for _ in range(rounds):
        left = 1 / (kernel @ right[..., None])[..., 0]
        right = 1 / (left[..., None, :] @ kernel)[..., 0, :]
    after = rows + left.detach().log(), columns + right.detach().log()
    return left[..., None] * kernel * right[..., None, :], after
