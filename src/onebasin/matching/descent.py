"""Descent: gradients of the criterion push gains about, with an exact assignment each time; then ends are crossed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onebasin.errors import check_counts
from onebasin.matching.alignment import Alignment, Certificate, Matcher, StopReason
from onebasin.matching.best_of import Incumbent
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.matching.criterion import Between, Criterion
from onebasin.matching.gains import order_of, rows_of
from onebasin.matching.hybrid import Gains
from onebasin.matching.moves import DECIDING, cycles
from onebasin.matching.objective import Objective
from onebasin.matching.proposals import Proposals
from onebasin.matching.terms import new
from onebasin.matching.weight import WeightMatching
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# Of both running means: that of the gradients, and that of their mean squares.
MOMENTUM = 0.9
# How often in a run J of the batches left out is looked at.
LOOKS = 8
# Rounds of crossing, trials after which a round ends, and cycles that are tried together.
ROUNDS, TRIALS, TOGETHER = 3, 150, 16
# What gains that are all zero are divided by.
TINY = 1e-30


@dataclass(frozen=True)
class Descent:
    """Lower `Criterion` J by gradient descent on gains, with the best assignment taken after every step.

        X_p = R_p / max |R_p|                                                  at the start: gains of activations
        G_p = gain matrix of < g, pi(B) >,  g = dJ/dW at the midpoint on the next batch
        M_p <- 0.9 M_p + G_p / root mean square of G_p (a running mean of the squares)
        X_p <- X_p - rate_t M_p;    pi_p = the best assignment under X_p       for every group p

    The rate falls to zero by half a cosine. Unlike swaps it changes many units at a time, and unlike soft orders it
    only ever looks at true permutations. Where it ends depends on the batches, so there are several runs, each of which
    goes on with the next ones; but only one, if that finds nothing better than `first`. Then the best order is crossed
    with where each run ended, and with `first`: they differ by cycles of units, and those are taken over that lower J
    on 32 batches, in three rounds. As with the swaps of `Polish`, slope and curvature of J say which are tried, and
    when: up to sixteen together. A round ends after 150 trials, and those of the halves of the set that was begun. A
    cycle that has failed alone is not tried again.

    Most batches are fitted so. J of the rest (half of them, eight at most) is taken eight times in a run, and at the
    end: what `first` finds is returned, unless one of these is lower by more than a standard error. A group that
    `gains` says nothing of stays as in `first`. The more inputs, the less are they fitted alone.

    Costs of a step: a forward and a backward pass of one batch, the gains of all groups, and one assignment each; of a
    trial, a forward pass of 32 batches, or fewer if J surely rises; of a round of crossing, five passes for slope and
    curvature. `Alignment.objective` is minus J of the rest: of `first`, and whenever it was lowered. Batches of about
    128 are meant. When a number is not finite the run ends; `stop` says so, and `note` at which step.

    Args:
        criterion: what is lowered.
        gains: where the gains R come from; `ActivationMatching(..., statistic="correlation")` is meant.
        first: what the result is compared with; any matcher.
        steps: batches of a run, in their order, again and again.
        rate: learning rate; the default was tuned on one pair of narrow ResNet20s.
        runs: how many, at most; the default comes from two other such pairs.

    Differs: no paper has it. It is the straight-through estimator of ainsworth2023 with gains in the place of weights.
    """

    criterion: Criterion = field(repr=False)
    gains: Gains
    first: Matcher
    steps: int = 80
    rate: float = 2e-3
    runs: int = 8

    def __post_init__(self) -> None:
        check_counts(1, steps=self.steps, runs=self.runs)

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Run `first` from `start` on, then descend. An interrupt keeps the best so far."""
        began = time.perf_counter()
        found = self.first.match(spec, params_a, params_b, start, progress)
        if found.stop is StopReason.INTERRUPTED:
            return found
        fit, held = (part.between(params_a, params_b) for part in self.criterion.split())
        best, stop, trouble = Incumbent(held, found.permutation), StopReason.FINISHED, ""
        gains = self.gains.objective(spec, params_a, params_b, progress).gains
        search = _Search(self, fit, best, progress)
        try:
            search.cross([*search.ends(gains, found.permutation), found.permutation])
        except KeyboardInterrupt:
            stop = StopReason.INTERRUPTED
        except _NotFiniteError as error:
            stop, trouble = StopReason.NOT_FINITE, str(error)
        seconds, note = time.perf_counter() - began, "; ".join(filter(None, (found.note, search.better, trouble)))
        certificate = found.certificate + search.certificate
        return Alignment(best.permutation, tuple(best.history), stop, certificate, self, seconds, note=note)


class _NotFiniteError(Exception):
    """A number is not finite, and the search ends."""


class _Search:
    """Runs of descent, and crossing of what they find. What surely lowers J of the held batches becomes the best.

    Args:
        settings: of the descent.
        between: the criterion of the fitted batches.
        best: what the held ones say is best.
        progress: of steps and rounds.
    """

    def __init__(self, settings: Descent, between: Between, best: Incumbent, progress: Progress) -> None:
        self.settings, self.between, self.best, self.progress = settings, between, best, progress
        self.certificate, self.better = Certificate(), ""
        self._batches = between.parts(1)

    def ends(self, gains: Mapping[str, Tensor], otherwise: Permutation) -> list[Permutation]:
        """Return where the runs end; after one that finds nothing better there are no others."""
        found = [self.descend(gains, otherwise)]
        while self.better and len(found) < self.settings.runs:
            found.append(self.descend(gains, otherwise))
        return found

    def descend(self, gains: Mapping[str, Tensor], otherwise: Permutation) -> Permutation:
        """Return where a run from these gains ends."""
        steps, run = self.settings.steps, _Run(self.between, gains, otherwise)
        try:
            for number, part in enumerate(itertools.islice(self._batches, steps), 1):
                if not run.step(part, self.settings.rate * (1 + math.cos(math.pi * number / steps)) / 2):
                    raise _NotFiniteError(f"the gradient was not finite at descent step {number}")
                self.progress("descent", number, steps)
                if number % max(steps // LOOKS, 1) == 0:
                    self._look(run.permutation, f"descent, step {number}, was better")
        finally:  # what was found until an interrupt is certified, too
            self.certificate += run.certificate
        return run.permutation

    def cross(self, others: Sequence[Permutation]) -> None:
        """Cross the best order with others; what was found until an interrupt is looked at, too."""
        parts = self.between.parts(DECIDING)
        trials = Proposals(next(parts), self.best.permutation)
        try:
            self._rounds(trials, parts, others)
        finally:
            self._look(trials.permutation, f"{trials.kept} cycles crossed in {trials.trials} trials")
        if trials.trouble:
            raise _NotFiniteError(trials.trouble)

    def _rounds(self, trials: Proposals, parts: Iterator[Between], others: Sequence[Permutation]) -> None:
        for number in range(1, ROUNDS + 1):
            before, enough = trials.kept, trials.trials + TRIALS
            ways = (cycle for other in others for moves in cycles(trials.permutation, other) for cycle in moves)
            for moves in trials.sets(trials.promising(ways), TOGETHER):
                trials.attempt(moves)
                self.progress(f"crossing, round {number}", min(trials.trials - enough + TRIALS, TRIALS), TRIALS)
                if trials.trouble or trials.trials >= enough:
                    break
            if trials.kept == before or trials.trouble:
                break
            trials.turn_to(next(parts))

    def _look(self, permutation: Permutation, note: str) -> None:
        if self.best.challenge(permutation):
            self.better = note


class _Run:
    """Gains that are pushed about, and the best permutation under them.

    Args:
        between: the criterion.
        gains: where the gains begin.
        otherwise: the order of groups without gains.
    """

    def __init__(self, between: Between, gains: Mapping[str, Tensor], otherwise: Permutation) -> None:
        self.between, self.spec, self.certificate = between, otherwise.spec, Certificate()
        self.gains = {name: gain.double() / gain.abs().max().clamp_min(TINY) for name, gain in gains.items()}
        self._means = {name: torch.zeros_like(gain) for name, gain in self.gains.items()}
        self._squares, self._steps = dict.fromkeys(self.gains, 0.0), 0
        self._generator = torch.Generator()
        self.permutation = otherwise
        self._assign()

    def step(self, part: Between, rate: float) -> bool:
        """Follow the gradient of J on one batch; return False, and do nothing, if it is not finite."""
        (slopes,) = part.slopes(part.middle(self.permutation), 0, self._generator)
        gains = self.between.gains(slopes.own, self.permutation, self.gains)
        found = {name: gain.to(self.gains[name]) for name, gain in gains.items()}
        squares = {name: gain.square().mean().item() for name, gain in found.items()}
        if not all(map(math.isfinite, squares.values())):
            return False
        self._steps += 1
        for name, gain in found.items():
            self._squares[name] += (1 - MOMENTUM) * (squares[name] - self._squares[name])
            scale = math.sqrt(self._squares[name] / (1 - MOMENTUM**self._steps)) or 1.0
            self._means[name] *= MOMENTUM
            self._add(self._means[name], name, gain / scale)
            self.gains[name] -= rate * self._means[name]
        self._assign()
        return True

    def _add(self, total: Tensor, group: str, gain: Tensor) -> None:
        """Add what units are worth under the present order of their parents: nothing is known of the other pairs."""
        size, parents = self.spec.sizes[group], self.spec.parents.get(group, ())
        order = order_of(self.spec, [new(parent) for parent in parents], rows_of(self.permutation))
        places = torch.arange(len(order), device=total.device)
        total.view(len(order), size, len(order), size)[places, :, order.to(total.device)] += gain.reshape(
            -1, size, size
        )

    def _assign(self) -> None:
        objective = Objective(self.spec, gains=self.gains)
        found = CoordinateDescent().maximise(objective, self.permutation, WeightMatching())
        if found.stop is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        self.permutation, self.certificate = found.permutation, self.certificate + found.certificate
