"""What verbs measure with the user's own code: an evaluation on the way between networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from onebasin.analysis import Curve, Evaluation, evaluate_path
from onebasin.analysis.path import check_points
from onebasin.cli.resolve import guarded, load_callable
from onebasin.errors import UsageError
from onebasin.functional import Predict
from onebasin.interpolate import Interpolation, lerp
from onebasin.params import Params
from onebasin.progress import Progress


@dataclass(frozen=True)
class Line:
    """What is measured on the way between two networks, and how."""

    model: nn.Module
    evaluate: Evaluation
    points: int
    batches: Iterable[Any] | None
    interpolate: Interpolation = lerp

    def __post_init__(self) -> None:
        check_points(self.points)  # before networks are matched, which may take long

    def curve(self, a: Params, b: Params, label: str, progress: Progress) -> Curve:
        """Measure the way from `a` to `b`; `label` is for the progress bar."""

        def told(task: str, done: int, total: int) -> None:
            progress(f"{label} {task}", done, total)

        def measure() -> Curve:
            return evaluate_path(
                self.model,
                a,
                b,
                self.evaluate,
                self.points,
                interpolate=self.interpolate,
                batchnorm_batches=self.batches,
                progress=told,
            )

        return guarded(measure, f"the {label} path", self.batches)


def evaluation(name: str) -> Evaluation:
    """Return the user's function; whatever goes wrong in it is told with its place."""
    function, what = load_callable(name, "--eval", ("predict",)), f"--eval {name}"

    def evaluate(predict: Predict) -> dict[str, float]:
        result = guarded(lambda: function(predict), what)
        named = dict(result) if isinstance(result, Mapping) else {"loss": result}
        try:
            return {str(key): float(value) for key, value in named.items()}
        except (TypeError, ValueError):
            raise UsageError(
                f"{what} returned {result!r:.60}", "a number, or a dict of numbers by name", "return the mean loss"
            ) from None

    return evaluate
