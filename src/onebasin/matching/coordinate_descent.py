"""Coordinate descent: solve one group after the other exactly, the others fixed, until nothing improves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onebasin.errors import check_counts
from onebasin.matching.alignment import Alignment, Certificate, Matcher, StopReason
from onebasin.matching.assignment import Assignment, solve
from onebasin.matching.gains import FamilyGains, Level, Rows, rows_of
from onebasin.matching.joint import JointStep, is_chain
from onebasin.matching.objective import Objective
from onebasin.matching.products import Budget
from onebasin.matching.terms import Labelled, new
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# An improvement must exceed this share of `Objective.scale`. Values are sums of exact products in float64, so rounding
# is a few 1e-16 of the scale; a thousand times that is still far below anything a permutation is chosen for.
IMPROVEMENT = 1e-12
# What is held for speed (gain matrices and copies laid out for products) may take so many times the size of one model,
# or so many bytes.
BUDGET = 0.9
LEAST_BUDGET = 1 << 28


@dataclass(frozen=True)
class CoordinateDescent:
    """Maximise an objective over permutations, one group at a time.

    In every sweep all groups are visited in a fresh random order; for each, the gain matrix C[i,k] (`Objective.gain`)
    is computed with the others fixed, and the best assignment taken. A group and all that is nested under it are one
    step, solved together (`JointStep`).

    Args:
        seed: of the visiting orders.
        max_sweeps: give up after so many sweeps; 100 is the default of ainsworth2023's code.
        faq_steps: for a group that stands on two axes of one tensor, as in a recurrent layer: how far to look for a
            better order than the linearised step gives; 30 is the default of scipy's implementation, 0 is off.

    Source: ainsworth2023, Alg. 1 (permutation coordinate descent).
    Differs: (1) An assignment is accepted only if the objective, summed in float64 over the tensors it touches, truly
        rises (by more than 1e-12 of its scale); the paper takes it in any case and compares float32 sums with a
        tolerance below their rounding. So the objective never decreases and the method ends by itself in any dtype.
        (2) A group is solved again only when a group it depends on has changed: nothing else can change its solution.
        (3) Gain matrices are kept, and get only the difference of the columns that other groups have moved since
        (`KeptGains`); one that many such updates have worn is computed anew before the end. Where rounding could decide
        whether an assignment is better, that is computed from the tensors in float64. Each assignment starts from the
        one found last for its group.
    """

    seed: int = 0
    max_sweeps: int = 100
    faq_steps: int = 30

    def __post_init__(self) -> None:
        check_counts(0, max_sweeps=self.max_sweeps, faq_steps=self.faq_steps)

    def maximise(
        self, objective: Objective, start: Permutation, matcher: Matcher, progress: Progress = silent
    ) -> Alignment:
        """Maximise `objective` from `start` on; `matcher` is noted in the result.

        `progress` is called after every group with the number of groups solved; the total is unknown. An interrupt from
        the keyboard does not raise: the best permutation so far is returned, and `stop` says so.
        """
        began = time.perf_counter()
        run = _Run.start(objective, self.faq_steps, start)
        try:
            stop = run.sweeps(self._orders(list(run.families)), progress)
        except KeyboardInterrupt:
            stop = StopReason.INTERRUPTED
        permutation, history = run.result(start)
        return Alignment(permutation, history, stop, run.certificate, matcher, time.perf_counter() - began)

    def _orders(self, names: Sequence[str]) -> Iterator[list[str]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.max_sweeps):
            yield [names[number] for number in torch.randperm(len(names), generator=generator).tolist()]


@dataclass
class _Run:
    """A run so far: what is kept when it is interrupted.

    Args:
        objective: what is maximised.
        faq_steps: see `CoordinateDescent`.
        families: what each group to visit and all under it are worth.
        dependents: for each of them, those to be solved again when it changes.
        rows: the best order so far.
        dirty: groups that are still to be solved.
        history: the objective after every sweep.
        last: of every group, the assignment found last; of nested ones, those of all pairs of their parents' units.
        certificate: of all assignments so far.
    """

    objective: Objective
    faq_steps: int
    families: dict[str, FamilyGains]
    dependents: dict[str, set[str]]
    rows: Rows
    dirty: set[str]
    history: list[float]
    last: dict[str, Assignment] = field(default_factory=dict)
    certificate: Certificate = field(default_factory=Certificate)

    @classmethod
    def start(cls, objective: Objective, faq_steps: int, start: Permutation) -> _Run:
        """Prepare everything."""
        dependents = _dependents(objective)
        budget = Budget(max(LEAST_BUDGET, int(BUDGET * objective.nbytes / 2)))
        families = {name: FamilyGains(objective.spec, name, objective.holding(name), budget) for name in dependents}
        value = objective.value(start)
        return cls(objective, faq_steps, families, dependents, rows_of(start), set(dependents), [value])

    def sweeps(self, orders: Iterator[list[str]], progress: Progress) -> StopReason:
        """Visit the groups in these orders until nothing is left to be solved."""
        least, steps = IMPROVEMENT * self.objective.scale(), 0
        for order in orders:
            if self.is_settled():
                return StopReason.CONVERGED
            self.history.append(self.history[-1])
            for group in order:
                if group in self.dirty:
                    self.dirty.discard(group)
                    if self.step(group, least):
                        self.dirty |= self.dependents[group]
                    steps += 1
                    progress("matching", steps, 0)
        return StopReason.CONVERGED if self.is_settled() else StopReason.MAX_SWEEPS

    def is_settled(self) -> bool:
        """Return whether nothing is left to be solved; a group whose gains are worn by updates is."""
        self.dirty = self.dirty or {group for group, family in self.families.items() if family.renew()}
        return not self.dirty

    def step(self, group: str, least: float) -> bool:
        """Solve one group and what is nested under it; take the result, and return True, if it is better."""
        family = self.families[group]
        matrix = family.update(self.rows)
        if matrix is not None:
            self.last[group] = self.solve(matrix, self.last.get(group))
            found: Rows = {group: Labelled(self.last[group].index, (new(group),))}
        else:
            joint = JointStep(Level(self.objective.spec), self.solve, self.faq_steps, self.last)
            found = joint(family.terms(), self.rows, group)[1]
        after = {**self.rows, **found}
        change = family.change(self.rows, after, least)
        family.release()
        if change <= least:
            return False
        self.rows = after
        self.history[-1] += change
        return True

    def solve(self, gains: Tensor, warm: Assignment | None = None) -> Assignment:
        """Solve assignments, and note how sure they are."""
        found = solve(gains, warm)
        self.certificate += Certificate.of(found)
        return found

    def result(self, start: Permutation) -> tuple[Permutation, tuple[float, ...]]:
        """Return the best permutation, and the history with its exact value at the end.

        Changes on the way are sums of products in the dtype of the features; what rounding makes of them is cut off.
        """
        spec = self.objective.spec
        names = {name: [new(group) for group in (*spec.parents.get(name, ()), name)] for name in self.rows}
        indices = {name: row.aligned(names[name]) for name, row in self.rows.items()}
        if all(torch.equal(index, start.indices[name]) for name, index in indices.items()):
            return start, tuple(self.history)
        found = Permutation(spec, {**start.indices, **indices})
        last = self.objective.value(found)
        return found, (*(min(value, last) for value in self.history[:-1]), last)


def _dependents(objective: Objective) -> dict[str, set[str]]:
    """Return for each group to visit those whose solution may change when its own does, and that of all under it.

    The group itself is one of them if its step is not exact.
    """
    spec = objective.spec
    held = [term.unmoved for term in objective.blocks]
    tops = [name for name in spec.sizes if not spec.parents.get(name) and any(name in places for places in held)]
    return {
        top: set().union(*(_solved_again(spec, places, top, tops) for places in held if top in places)) for top in tops
    }


def _solved_again(spec: PermutationSpec, places: Counter[str], top: str, tops: Sequence[str]) -> set[str]:
    family = {top, *(name for name in places if top in spec.parents.get(name, ()))}
    others = {name for name in tops if name in places and name != top}
    return others if is_chain(spec, places, family) else {*others, top}
