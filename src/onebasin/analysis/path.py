"""The loss along a path between two networks, and how high its barrier is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

from onebasin.analysis.evaluation import Evaluation, check_trained, measure
from onebasin.errors import UsageError, listing
from onebasin.functional import check_repeatable
from onebasin.interpolate import Interpolation, lerp
from onebasin.progress import Progress, silent

Kind = Literal["mean", "chord", "midpoint"]
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_MEANINGS = {
    "mean": "largest minus the mean of the ends",
    "chord": "largest excess over the chord",
    "midpoint": "midpoint minus the mean of the ends",
}


@dataclass(frozen=True)
class Curve:
    """Metrics at equally spaced points of a path; `lam = 0` is the reference, `lam = 1` the moved model.

    Args:
        lams: positions, from 0 to 1.
        metrics: metric name -> one value per position. Of names that end in "accuracy" more is better, of others less.
    """

    lams: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]

    @property
    def loss(self) -> tuple[float, ...]:
        """Loss at each position, in the unit of the evaluation (nats per example). Raises `UsageError` without one."""
        return self._values("loss")

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Accuracy at each position, in [0, 1]. Raises `UsageError` if the evaluation did not measure it."""
        return self._values("accuracy")

    def barrier(self, kind: Kind = "mean", metric: str = "loss") -> float:
        """Return how much worse the path is than its ends, in the metric's unit; of an accuracy, by how much it drops.

        With c the curve, turned over for an accuracy, and t the position:

        - "mean": `max_t c(t) - (c(0) + c(1)) / 2`. At least half the difference of the ends. (ainsworth2023, Def. 2.2)
        - "chord": `max_t [c(t) - ((1 - t) c(0) + t c(1))]`. Never negative. (entezari2022)
        - "midpoint": `c(1/2) - (c(0) + c(1)) / 2`. Negative if the merged network beats the mean of its parents.
          (ito2025, all tables)

        Raises:
            UsageError: an unknown kind or metric, or "midpoint" for a curve with an even number of points.
        """
        sign = -1 if _more_is_better(metric) else 1
        values = [sign * value for value in self._values(metric)]
        ends = (values[0] + values[-1]) / 2
        if kind == "mean":
            return max(values) - ends
        if kind == "chord":
            pairs = zip(self.lams, values, strict=True)
            return max(value - ((1 - lam) * values[0] + lam * values[-1]) for lam, value in pairs)
        if kind != "midpoint":
            raise UsageError(f"a barrier of kind {kind!r}", f"one of {listing(KINDS)}", "name one of these definitions")
        if len(values) % 2 == 0:
            raise UsageError(
                f"the midpoint of a curve of {len(values)} points, of which none lies at 1/2",
                "an odd number of points",
                f"evaluate the path with points={len(values) + 1}",
            )
        return values[len(values) // 2] - ends

    def to_json(self) -> dict[str, Any]:
        """Return plain values: positions, metrics, and every barrier under the name of its definition."""
        return {
            "lams": list(self.lams),
            "metrics": {name: list(values) for name, values in self.metrics.items()},
            "barriers": {name: {kind: self.barrier(kind, name) for kind in self._kinds()} for name in self.metrics},
        }

    def __str__(self) -> str:
        middle = len(self.lams) // 2
        rows = [
            ["", "lam 0", f"lam {self.lams[middle]:.3g}", "lam 1", *(f"barrier ({kind})" for kind in self._kinds())]
        ]
        for name, values in self.metrics.items():
            barriers = [self.barrier(kind, name) for kind in self._kinds()]
            numbers = [values[0], values[middle], values[-1], *barriers]
            rows.append([name, *(f"{number:.4f}" for number in numbers)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        meanings = [f"barrier ({kind}): {KIND_MEANINGS[kind]}" for kind in self._kinds()]
        drops = ["of an accuracy: how far it drops, in the same way"] * any(map(_more_is_better, self.metrics))
        return "\n".join([f"{len(self.lams)} points", *table, *meanings, *drops])

    def _kinds(self) -> tuple[Kind, ...]:
        return tuple(kind for kind in KINDS if kind != "midpoint" or len(self.lams) % 2)

    def _values(self, metric: str) -> tuple[float, ...]:
        if metric not in self.metrics:
            raise UsageError(
                f"the metric {metric!r}, which was not measured", f"one of {listing(self.metrics)}", "name one of these"
            )
        return self.metrics[metric]


def evaluate_path(
    model: nn.Module,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    evaluate: Evaluation,
    points: int = 25,
    *,
    interpolate: Interpolation = lerp,
    batchnorm_batches: Iterable[Any] | None = None,
    progress: Progress = silent,
) -> Curve:
    """Measure the network at equally spaced points of the path from `params_a` to `params_b`, ends included.

    Args:
        model: the architecture. Its weights, buffers and modes are left alone; no copy is made of it.
        params_a: the reference, `lam = 0`.
        params_b: the moved model, `lam = 1`: as it is for the naive path, aligned for the matched one.
        evaluate: `evaluate(predict)` returns the loss, or metric name -> value. `predict(...)` behaves as the network
            with the interpolated weights, in eval mode, without gradients. `classification` makes one.
        points: number of points; 25 as in ainsworth2023 (an odd number has the midpoint among them).
        interpolate: `lerp` or `slerp`, or any `(a, b, lam) -> params`.
        batchnorm_batches: batches from which the statistics of batch norm are recomputed at every point, both ends
            included: the ends' own statistics were gathered under training (augmentation, moving weights), and a
            curve must not mix two ways of measuring. Its ends are therefore not exactly the two checkpoints as stored.
            Default: statistics are interpolated like any tensor.
        progress: called after each point.

    Raises:
        ParamsError: tensors that do not fit each other or `model`, or are not finite.
        UsageError: fewer than two points, an evaluation that returns no finite number (named with its position), or
            batches that can be read only once.
    """
    _check(points, batchnorm_batches)
    for what, params in (("params of the reference", params_a), ("params of the moved model", params_b)):
        check_trained(model, params, what)
    lams = tuple(index / (points - 1) for index in range(points))
    weights = [(f"lam = {lam:g}", partial(interpolate, params_a, params_b, lam)) for lam in lams]
    return Curve(lams, measure(model, weights, evaluate, batchnorm_batches, progress, "path"))


def _more_is_better(metric: str) -> bool:
    return metric.endswith("accuracy")


def check_points(points: int) -> None:
    """Raise `UsageError` if a path cannot have so few points."""
    if points < 2:
        raise UsageError(f"a path of {points} points", "at least the two ends", "use 25, as in the literature, or 3")


def _check(points: int, batches: Iterable[Any] | None) -> None:
    check_points(points)
    if batches is not None:
        check_repeatable(batches)
