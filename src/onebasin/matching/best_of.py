"""The best of several orders by the criterion: another one is taken only where the criterion surely falls."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from onebasin.errors import UsageError
from onebasin.matching.alignment import Alignment, Certificate, Matcher, StopReason
from onebasin.matching.criterion import Between, Criterion, value_of
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec


class Incumbent:
    """The best permutation so far by a criterion.

    Another takes its place if J of it is lower still, and lower than J of the reference by more than one standard
    error of that fall, which the losses of the same inputs under both tell: what is less may be chance, and where a
    network half way is as good as both ends, it is. The reference is what there was to begin with.

    Args:
        between: the criterion.
        permutation: to begin with.

    `value` is J of what was looked at last.

    Raises:
        UsageError: J is not finite.
    """

    def __init__(self, between: Between, permutation: Permutation) -> None:
        self.between, self.permutation = between, permutation
        self._losses = self._reference = between.checked(between.losses(between.middle(permutation)))
        self.value = value_of(self._losses)
        self.history = [-self.value]

    def challenge(self, permutation: Permutation) -> bool:
        """Put `permutation` in the place of the best so far, if it surely is better; return whether it is."""
        losses = self.between.losses(self.between.middle(permutation))
        falls = torch.cat(self._reference) - torch.cat(losses)
        error = falls.std().item() / math.sqrt(len(falls)) if len(falls) > 1 else 0.0
        self.value = value_of(losses)
        better = self.value < -self.history[-1] and self.value < value_of(self._reference) - error
        if better:
            self.permutation, self._losses = permutation, losses
            self.history.append(-self.value)
        return better

    def prefer(self) -> None:
        """Make the best so far the reference."""
        self._reference = self._losses


@dataclass(frozen=True)
class BestOf:
    """The best of several alignments by `Criterion`; the start is one of them.

    The first is preferred: another is taken only if J of it is lower by more than one standard error of the mean of the
    differences, input by input. Of those, the one of lowest J is taken. `Alignment.objective` is minus J of those that
    were the lowest so far. `note` names the last.

    Args:
        criterion: what decides.
        candidates: matchers, the preferred one first, each of which runs from the start; with names, if `note` is to
            tell them.
    """

    criterion: Criterion = field(repr=False)
    candidates: tuple[Matcher, ...] | Mapping[str, Matcher]

    def __post_init__(self) -> None:
        if not self.candidates:
            raise UsageError("no candidates", "matchers to choose from", "pass two or more")

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Run every candidate and keep the best. An interrupt keeps the best so far."""
        began, certificate = time.perf_counter(), Certificate()
        between = self.criterion.between(params_a, params_b)
        best, note, stop = Incumbent(between, start), "the start was best", StopReason.FINISHED
        try:
            for number, (name, matcher) in enumerate(self._named(), 1):
                found = matcher.match(spec, params_a, params_b, start, progress)
                certificate += found.certificate
                if best.challenge(found.permutation):
                    note = f"candidate {number} was best: {name}"
                if number == 1:
                    best.prefer()
                if found.stop is StopReason.INTERRUPTED:
                    raise KeyboardInterrupt
                progress("candidates", number, len(self.candidates))
        except KeyboardInterrupt:
            stop = StopReason.INTERRUPTED
        seconds = time.perf_counter() - began
        return Alignment(best.permutation, tuple(best.history), stop, certificate, self, seconds, note=note)

    def _named(self) -> list[tuple[str, Matcher]]:
        if isinstance(self.candidates, Mapping):
            return list(self.candidates.items())
        return [(type(matcher).__name__, matcher) for matcher in self.candidates]
