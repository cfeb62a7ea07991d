"""Polish: swap units where the gradient says so, and keep what truly lowers the criterion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.interpolate import lerp
from onebasin.matching.alignment import Alignment, Matcher, StopReason
from onebasin.matching.criterion import Between, Criterion
from onebasin.matching.objective import Feature, Objective
from onebasin.matching.weight import WeightMatching
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# A swap must lower the criterion by more than this (nats), as in the study it comes from: less is rounding or fit.
LEAST = 1e-5
# A round that lowers the criterion by less than this share of it is the last.
WORTHWHILE = 0.01
# Units of the parents, then the two new units that change places.
Swap = tuple[int, ...]


@dataclass(frozen=True)
class Polish:
    """Lower `Criterion` J of an alignment by greedy swaps of units.

    With g = dJ/dW at the midpoint, a swap of two units of a group changes J by about 1/2 <g, change of pi(B)>. Group by
    group, in random order, the swaps of which most is expected are tried, disjoint ones together; where J does not
    fall, each half of them is tried by itself, down to single swaps. Only what lowers J is kept. Units of a nested
    group are swapped under one parent unit.

    A visit of a group goes on until no proposal helps. Each look costs one gradient (none, if nothing has changed since
    the last) and some `proposals` evaluations at most. The history is minus J: before, and after every round. `note`
    tells the counts.

    Args:
        criterion: what is lowered.
        first: finds the alignment to begin with; any matcher.
        rounds: at most so many visits of every group; a round that lowers J by less than 1 % is the last.
        proposals: swaps that are tried before the gradient is taken anew or the next group visited.
        seed: seed of the visiting orders.

    Differs: no paper has it.
    """

    criterion: Criterion = field(repr=False)
    first: Matcher = field(default_factory=WeightMatching)
    rounds: int = 10
    proposals: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.proposals < 1:
            got = f"{self.rounds} rounds of {self.proposals} proposals"
            raise UsageError(got, "at least one of each", "pass positive numbers")

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Find the first alignment from `start` on, then polish it. An interrupt keeps the best so far."""
        began = time.perf_counter()
        found = self.first.match(spec, params_a, params_b, start, progress)
        run = _Run(self.criterion.between(params_a, params_b), found.permutation, self.proposals)
        history, stop = [-run.value], found.stop
        if stop is not StopReason.INTERRUPTED:
            stop = self._rounds(run, history, progress)
        counts = f"{run.kept} swaps kept, {run.evaluations} evaluations"
        note = f"{found.note}; {counts}" if found.note else counts
        seconds = time.perf_counter() - began
        return Alignment(run.permutation, tuple(history), stop, found.certificate, self, seconds, note=note)

    def _rounds(self, run: _Run, history: list[float], progress: Progress) -> StopReason:
        names, generator = list(run.spec.sizes), torch.Generator().manual_seed(self.seed)
        try:
            for number in range(self.rounds):
                for done, index in enumerate(torch.randperm(len(names), generator=generator).tolist(), 1):
                    run.visit(names[index])
                    progress("polish", number * len(names) + done, self.rounds * len(names))
                history.append(-run.value)
                if history[-1] - history[-2] <= WORTHWHILE * abs(history[-1]):
                    break
        except KeyboardInterrupt:
            history.append(-run.value)
            return StopReason.INTERRUPTED
        return StopReason.FINISHED


class _Run:
    """An alignment that is being polished.

    Args:
        between: the criterion.
        permutation: to begin with.
        proposals: swaps per visit.
    """

    def __init__(self, between: Between, permutation: Permutation, proposals: int) -> None:
        self.between, self.permutation, self.proposals = between, permutation, proposals
        self.spec: PermutationSpec = permutation.spec
        self.middle = between.middle(permutation)
        self.value = between.at(permutation)
        self.gradient: Params | None = None
        self.kept, self.evaluations = 0, 1

    def visit(self, group: str) -> None:
        """Try the swaps of one group of which most is expected, again and again while that helps."""
        while True:
            if self.gradient is None:
                self.gradient = self.between.gradient(self.middle)
            before = self.kept
            for swaps in _disjoint(_changes(self._gains(group), self.permutation.indices[group]), self.proposals):
                self._try(group, swaps)
                if self.kept > before:
                    break
            else:
                return

    def _gains(self, group: str) -> Tensor:
        assert self.gradient is not None
        names = [name for name in self.spec.matched if name in self.gradient]
        features = (Feature(name, self.gradient[name], self.between.b[name]) for name in names)
        return Objective(self.spec, tuple(features)).gain(self.permutation, group).cpu().double()

    def _try(self, group: str, swaps: Sequence[Swap]) -> None:
        index = self.permutation.indices[group].clone()
        for *row, i, j in swaps:
            at, to = (*row, i), (*row, j)
            index[at], index[to] = index[to].item(), index[at].item()
        permutation = Permutation(self.spec, {**self.permutation.indices, group: index})
        middle = self._moved(permutation, group)
        value, self.evaluations = self.between.value(middle), self.evaluations + 1
        if value < self.value - LEAST:
            self.permutation, self.middle, self.value, self.gradient = permutation, middle, value, None
            self.kept += len(swaps)
        elif len(swaps) > 1:
            half = (len(swaps) + 1) // 2
            self._try(group, swaps[:half])
            self._try(group, swaps[half:])

    def _moved(self, permutation: Permutation, group: str) -> Params:
        """Return the midpoint at `permutation`, which differs from the present one in this group only."""
        names = dict.fromkeys(name for name, _ in self.spec.groups[group].axes)
        moved = {name: permutation.move(self.between.b[name], self.spec.tensors[name]) for name in names}
        return {**self.middle, **lerp({name: self.between.a[name] for name in names}, moved, 0.5)}


def _changes(gains: Tensor, index: Tensor) -> Tensor:
    """Return `Float[Tensor, "*parents n n"]`: by how much J should change when new units i and j are swapped."""
    placed = gains.gather(-1, index[..., None, :].expand_as(gains))
    own = placed.diagonal(dim1=-2, dim2=-1)
    return (placed + placed.mT - own[..., None] - own[..., None, :]) / 2


def _disjoint(changes: Tensor, limit: int) -> list[list[Swap]]:
    """Return up to `limit` swaps that should lower J, best first, in sets of swaps that share no unit."""
    upper = changes.masked_fill(torch.ones_like(changes, dtype=torch.bool).tril(), 0.0).flatten()
    values, order = upper.topk(min(len(upper), limit), largest=False)
    places = torch.stack(torch.unravel_index(order[values < 0], changes.shape), 1).tolist()
    sets: list[tuple[list[Swap], set[Swap]]] = []
    for *row, i, j in places:
        units = {(*row, i), (*row, j)}
        free = next((one for one in sets if not one[1] & units), None)
        if free is None:
            free = ([], set())
            sets.append(free)
        free[0].append((*row, i, j))
        free[1].update(units)
    return [swaps for swaps, _ in sets]
