"""Descent: gains that gradients of the criterion push about, with an exact assignment after every batch."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.matching.alignment import Alignment, Certificate, Matcher, StopReason
from onebasin.matching.best_of import Incumbent
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.matching.criterion import Between, Criterion
from onebasin.matching.gains import order_of, rows_of
from onebasin.matching.hybrid import Gains
from onebasin.matching.objective import Objective
from onebasin.matching.terms import new
from onebasin.matching.weight import WeightMatching
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# Of both running means: that of the gradients, and that of their mean squares.
MOMENTUM = 0.9
# How often on the way J of all batches is looked at.
LOOKS = 8
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
    only ever looks at true permutations. Most batches are descended on. J of the rest (half of them, eight at most) is
    taken eight times on the way: what `first` finds is returned, unless one of these is lower by more than a standard
    error. A group that `gains` says nothing of stays as in `first`. The more inputs, the less are they fitted alone.

    Costs of a step: a forward and a backward pass of one batch, the gains of all groups, and one assignment each. The
    history is minus J of the rest: of `first`, and whenever it was lowered. Batches of about 128 are meant. When a
    number is not finite the run ends; `stop` says so, and `note` at which step.

    Args:
        criterion: what is lowered.
        gains: where the gains R come from; `ActivationMatching(..., statistic="correlation")` is meant.
        first: what the result is compared with; any matcher.
        steps: batches, in their order, again and again.
        rate: learning rate; the default was tuned on one pair of narrow ResNet20s.

    Differs: no paper has it. It is the straight-through estimator of ainsworth2023 with gains in the place of weights.
    """

    criterion: Criterion = field(repr=False)
    gains: Gains
    first: Matcher
    steps: int = 80
    rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"{self.steps} steps", "at least one", "pass steps=1 or more")

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
        between, held = (part.between(params_a, params_b) for part in self.criterion.split())
        best, stop = Incumbent(held, found.permutation), StopReason.FINISHED
        better = trouble = ""
        objective = self.gains.objective(spec, params_a, params_b, progress)
        run = _Run(between, objective.gains, found.permutation)
        try:
            for number, part in enumerate(itertools.islice(between.parts(1), self.steps), 1):
                if not run.step(part, self.rate * (1 + math.cos(math.pi * number / self.steps)) / 2):
                    stop, trouble = StopReason.NOT_FINITE, f"the gradient was not finite at descent step {number}"
                    break
                progress("descent", number, self.steps)
                looks = number % max(self.steps // LOOKS, 1) == 0
                if looks and best.challenge(run.permutation):
                    better = f"descent, step {number}, was better"
        except KeyboardInterrupt:
            stop = StopReason.INTERRUPTED
        seconds, note = time.perf_counter() - began, "; ".join(filter(None, (found.note, better, trouble)))
        certificate = found.certificate + run.certificate
        return Alignment(best.permutation, tuple(best.history), stop, certificate, self, seconds, note=note)


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
