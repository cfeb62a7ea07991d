"""Coordinate descent: solve one group after the other exactly, the others fixed, until nothing improves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from onebasin.matching.alignment import Alignment, Certificate, Matcher, StopReason
from onebasin.matching.assignment import solve
from onebasin.matching.objective import Objective
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent

# An improvement must exceed this share of `Objective.scale`. Values are sums of exact products in float64, so rounding
# is a few 1e-16 of the scale; a thousand times that is still far below anything a permutation is chosen for.
IMPROVEMENT = 1e-12


@dataclass
class _State:
    """The run so far: what is kept when it is interrupted."""

    permutation: Permutation
    history: list[float]
    certificate: Certificate
    dirty: set[str] = field(default_factory=set)
    steps: int = 0


def coordinate_descent(
    objective: Objective,
    matcher: Matcher,
    start: Permutation,
    seed: int = 0,
    max_sweeps: int = 100,
    progress: Progress = silent,
) -> Alignment:
    """Maximise `objective` over permutations, one group at a time.

    In every sweep all groups are visited in a fresh random order; for each, the gain matrix
    C[i,k] (`Objective.gain`) is computed with the others fixed, and the best assignment taken.

    Args:
        objective: what to maximise.
        matcher: the settings to note in the result.
        start: where to begin.
        seed: of the visiting orders.
        max_sweeps: give up after so many sweeps; 100 is the default of ainsworth2023's code.
        progress: called after every group with the number of groups solved; the total is unknown.

    Returns:
        An alignment with the objective at the start and after every sweep. An interrupt from the keyboard does not
        raise: the best permutation so far is returned, and `stop` says so.

    Source: ainsworth2023, Alg. 1 (permutation coordinate descent).
    Differs: (1) An assignment is accepted only if the objective, summed in float64 over the tensors it touches, truly
        rises (by more than 1e-12 of its scale); the paper takes it in any case and compares float32 sums with a
        tolerance below their rounding. So the objective never decreases and the method ends by itself in any dtype.
        (2) A group is solved again only when a group it depends on has changed: nothing else can change its solution.
    """
    began = time.perf_counter()
    state = _State(start, [objective.value(start)], Certificate(), dirty=set(objective.neighbours()))
    try:
        stop = _run(objective, state, seed, max_sweeps, progress)
    except KeyboardInterrupt:
        stop = StopReason.INTERRUPTED
        state.history.append(objective.value(state.permutation))
    seconds = time.perf_counter() - began
    return Alignment(state.permutation, tuple(state.history), stop, state.certificate, matcher, seconds)


def _run(objective: Objective, state: _State, seed: int, max_sweeps: int, progress: Progress) -> StopReason:
    neighbours, least = objective.neighbours(), IMPROVEMENT * objective.scale()
    for order in _orders(list(objective.spec.sizes), seed, max_sweeps):
        if not state.dirty:
            return StopReason.CONVERGED
        for group in order:
            if group in state.dirty:
                improved = _step(objective, state, group, least)
                state.dirty.discard(group)
                state.dirty |= neighbours[group] if improved else set()
                state.steps += 1
                progress("matching", state.steps, 0)
        state.history.append(objective.value(state.permutation))
    return StopReason.MAX_SWEEPS if state.dirty else StopReason.CONVERGED


def _orders(names: list[str], seed: int, count: int) -> Iterator[list[str]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield [names[number] for number in torch.randperm(len(names), generator=generator).tolist()]


def _step(objective: Objective, state: _State, group: str, least: float) -> bool:
    """Solve one group, and take the result if it is better. Returns whether it was."""
    found = solve(objective.gain(state.permutation, group))
    worst = max([state.certificate.gap, *found.gap.flatten().tolist()])
    state.certificate = Certificate(worst, state.certificate.assignments + found.gap.numel())
    before = state.permutation
    if torch.equal(found.index, before.indices[group]):
        return False
    after = replace(before, indices={**before.indices, group: found.index})
    if objective.value(after, group) - objective.value(before, group) <= least:
        return False
    state.permutation = after
    return True
