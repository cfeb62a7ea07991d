"""Alignment: what matching returns. It explains itself: value, history, why it stopped, and how sure it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from onebasin.matching.assignment import Assignment
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress
from onebasin.spec import PermutationSpec


class StopReason(Enum):
    """Why a matching method stopped."""

    CONVERGED = "No group can be improved any more while the others stay as they are."
    MAX_SWEEPS = "The sweep limit was reached while groups could still be improved."
    FINISHED = "All that was asked for is done."
    NOT_FINITE = "A loss or its gradient was not finite; this is the best permutation found until then."
    INTERRUPTED = "Interrupted from the keyboard; this is the best permutation found until then."


@dataclass(frozen=True)
class Certificate:
    """How sure the assignments of a run are.

    Args:
        gap: the largest relative duality gap of all assignments that were solved; zero, or rounding, proves that each
            was optimal.
        assignments: how many were solved.
    """

    gap: float = 0.0
    assignments: int = 0

    @classmethod
    def of(cls, found: Assignment) -> Certificate:
        """Return how sure a batch of assignments is."""
        return cls(max(found.gap.flatten().tolist(), default=0.0), found.gap.numel())

    def __add__(self, other: Certificate) -> Certificate:
        """Return how sure the assignments of both are."""
        return Certificate(max(self.gap, other.gap), self.assignments + other.assignments)


class Matcher(Protocol):
    """The settings of one matching method: a frozen dataclass that can `match`.

    Most methods build an `Objective` (what to match) and give it to a solver (how), as `WeightMatching` does.
    """

    def match(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, start: Permutation, progress: Progress
    ) -> Alignment:
        """Match the moved model `params_b` to the reference `params_a`; both have been checked against `spec`."""
        ...


@dataclass(frozen=True)
class Alignment:
    """A permutation of the moved model, and where it comes from.

    Args:
        permutation: `permutation.apply(params_b)` has the units of the moved model in the order of the reference.
        objective: the value at the start and after every sweep, in float64; it never decreases.
        stop: why the method stopped.
        certificate: how sure the assignments are.
        matcher: the settings.
        seconds: wall time.
        other: of a method that follows a loss, the last permutation where the best one is returned, and the reverse.
        note: what there is to add to `stop`, such as at which batch it happened.
    """

    permutation: Permutation
    objective: tuple[float, ...]
    stop: StopReason
    certificate: Certificate
    matcher: Matcher
    seconds: float
    other: Permutation | None = None
    note: str = ""

    def settings(self) -> dict[str, Any]:
        """Return the fields of the matcher that its repr shows; others are no settings (data it was given)."""
        return settings_of(self.matcher)

    def why(self) -> str:
        """Say why the method stopped, and where if that is known."""
        return f"{self.stop.value} ({self.note})" if self.note else self.stop.value

    def to_json(self) -> dict[str, Any]:
        """Return everything but the permutation (which has its own `to_json`) as plain JSON values."""
        return {
            "matcher": type(self.matcher).__name__,
            "settings": self.settings(),
            "objective": list(self.objective),
            "stop": self.stop.name,
            "why": self.why(),
            "gap": self.certificate.gap,
            "assignments": self.certificate.assignments,
            "fixed_share": self.permutation.fixed_share(),
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        share = self.permutation.fixed_share()
        moved = sum(fixed < 1 for fixed in share.values())
        return "\n".join(
            [
                f"{type(self.matcher).__name__}: objective {self.objective[0]:.6g} -> {self.objective[-1]:.6g} "
                f"in {len(self.objective) - 1} sweeps, {self.seconds:.2f} s",
                self.why(),
                f"{moved} of {len(share)} groups moved; {self.certificate.assignments} assignments, "
                f"largest relative duality gap {self.certificate.gap:.1e}",
            ]
        )


def settings_of(value: Any) -> dict[str, Any]:
    """Return the fields that the repr of a matcher or solver shows, as JSON has them."""
    shown = [field.name for field in dataclasses.fields(value) if field.repr] if dataclasses.is_dataclass(value) else []
    return {name: _plain(getattr(value, name)) for name in shown}


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it: a matcher or solver as its name and its own settings."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return {"name": type(value).__name__, **settings_of(value)} if dataclasses.is_dataclass(value) else value
