"""Solvers: how an objective is maximised. Any objective goes with any solver."""

from __future__ import annotations

from typing import Literal, Protocol

from onebasin.errors import UsageError
from onebasin.matching.alignment import Alignment, Matcher
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.matching.frank_wolfe import FrankWolfe
from onebasin.matching.objective import Objective
from onebasin.matching.sinkhorn import Sinkhorn
from onebasin.permutation import Permutation
from onebasin.progress import Progress

SolverName = Literal["coordinate-descent", "frank-wolfe", "sinkhorn"]


class Solver(Protocol):
    """A way to maximise any objective: a frozen dataclass such as `CoordinateDescent`, `FrankWolfe` or `Sinkhorn`."""

    def maximise(self, objective: Objective, start: Permutation, matcher: Matcher, progress: Progress) -> Alignment:
        """Maximise `objective` from `start` on; `matcher` is noted in the result."""
        ...


def solver_of(choice: SolverName | Solver, descent: CoordinateDescent) -> Solver:
    """Return the solver called `choice`, with `descent` as its coordinate descent, or `choice` itself.

    Raises:
        UsageError: no solver has this name.
    """
    if not isinstance(choice, str):
        if isinstance(choice, type) or not callable(getattr(choice, "maximise", None)):
            do = "pass a solver with its settings, as FrankWolfe(steps=100)"
            raise UsageError(f"solver {choice!r:.60}", "a solver, or the name of one", do)
        return choice
    named: dict[str, Solver] = {
        "coordinate-descent": descent,
        "frank-wolfe": FrankWolfe(descent=descent),
        "sinkhorn": Sinkhorn(seed=descent.seed, descent=descent),
    }
    if choice not in named:
        do = "correct the name, or pass a solver with its settings, as FrankWolfe(steps=100)"
        raise UsageError(f"solver {choice!r}", f"one of {', '.join(named)}, or a solver", do)
    return named[choice]
