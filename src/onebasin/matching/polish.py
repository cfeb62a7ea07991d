"""Polish: swap units where slope and curvature of the criterion promise most, and keep what truly lowers it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from onebasin.errors import check_counts
from onebasin.matching.alignment import Alignment, Matcher, StopReason
from onebasin.matching.best_of import Incumbent
from onebasin.matching.criterion import Between, Criterion
from onebasin.matching.moves import DECIDING
from onebasin.matching.proposals import Proposals
from onebasin.matching.weight import WeightMatching
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# Trials of a round, and rounds in which J of what was left out does not fall.
PATIENCE, STALE = 30, 3
# Swaps that are tried together, at most and at first.
TOGETHER, FIRST = 64, 8


@dataclass(frozen=True)
class Polish:
    """Lower `Criterion` J of an alignment by greedy swaps of units.

    A swap of two units changes the midpoint by D, and J by about

        <g, D> + D^T H D / 2,    g = dJ/dW,    H = n E[s s^T]

    H is the Gauss-Newton part of the Hessian; s are gradients of the mean negative log likelihood of n classes that the
    midpoint's own output draws. So <s, D> of a few draws gives the curvature of every swap, as <g, D> gives the slope:
    all pairs of units of all groups from one pass over the inputs.

    A round measures them, and tries the swaps of which most is expected, of all groups, disjoint ones together:
    twice as many as were kept the last time. Where J does not fall, each half is tried by itself, down to single
    swaps; a swap that fails alone is not tried again. The round goes on with the next ones of units that have not
    moved, in the end such as have a negative slope only, one by one, until as many as that were kept, or after 30
    trials. Only what lowers J is kept. A trial is given up when J has surely risen, by two standard errors, or risen
    at all on the first half of the batches. Units of a nested group are swapped under one parent unit.

    A round sees 32 batches, the next one the next 32. Some are left out of that, half of all and eight at most:
    what is returned has lowered J of these by more than a standard error. Without, polish fits the inputs it sees.

    A round costs five to seven passes over its batches for g and s, and one or less for every trial. It is the last one
    if none of its trials succeeds, or if J of what was left out has not fallen for three rounds. `Alignment.objective`
    is minus J of what was left out: before, and whenever it fell. `note` tells the counts. When J is not finite at a
    trial, the run ends; `stop` says so, and `note` on which batch.

    Args:
        criterion: what is lowered. With a loss of one's own, swaps are ranked by their slopes alone.
        first: finds the alignment to begin with; any matcher.
        rounds: at most so many.
        seed: of the draws.

    Differs: no paper has it. The estimate of H is that of natural-gradient methods.
    """

    criterion: Criterion = field(repr=False)
    first: Matcher = field(default_factory=WeightMatching)
    rounds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(1, rounds=self.rounds)

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
        if found.stop is StopReason.INTERRUPTED:
            return found
        fit, held = (part.between(params_a, params_b) for part in self.criterion.split())
        parts = fit.parts(DECIDING)
        best = Incumbent(held, found.permutation)
        run = Proposals(next(parts), found.permutation, self.seed)
        run.between.checked(run.losses)
        stop = self._rounds(run, parts, best, progress)
        best.challenge(run.permutation)
        counts = f"{run.kept} swaps kept, {run.trials} trials"
        note = "; ".join(filter(None, (found.note, counts, run.trouble)))
        seconds = time.perf_counter() - began
        return Alignment(best.permutation, tuple(best.history), stop, found.certificate, self, seconds, note=note)

    def _rounds(self, run: Proposals, parts: Iterator[Between], best: Incumbent, progress: Progress) -> StopReason:
        count, stop, values = FIRST, StopReason.FINISHED, [best.value]
        try:
            for number in range(1, self.rounds + 1):
                before, enough = run.kept, run.trials + PATIENCE
                for swaps in run.sets(run.swaps(), count):
                    run.attempt(swaps)
                    progress("polish", number, self.rounds)
                    if run.trouble or run.kept - before >= count or run.trials > enough:
                        break
                if run.trouble or run.kept == before:
                    stop = StopReason.NOT_FINITE if run.trouble else stop
                    break
                best.challenge(run.permutation)
                values.append(best.value)
                if len(values) - values.index(min(values)) > STALE:
                    break
                run.turn_to(next(parts))
                count = min(max(2 * (run.kept - before), FIRST // 2), TOGETHER)
        except KeyboardInterrupt:
            stop = StopReason.INTERRUPTED
        return stop
