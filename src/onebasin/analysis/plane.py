"""Three and more networks: the loss on the plane through three of them, and the barrier between every two."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from onebasin.analysis.evaluation import Evaluation, Point, check_trained, measure
from onebasin.analysis.path import Curve
from onebasin.errors import UsageError
from onebasin.functional import check_repeatable
from onebasin.interpolate import lerp, mean
from onebasin.params import Params
from onebasin.progress import Progress, silent

# A third model closer to the line through the others than this share of their distance lies on it, to rounding.
ON_A_LINE = 1e-6


@dataclass(frozen=True)
class Plane:
    """Metrics on a grid of the plane through three networks, in an orthonormal basis with its origin at the first.

    Lengths are L2 distances over the trained parameters: one unit is the same in both directions.

    Args:
        x: coordinates of the columns, rising.
        y: coordinates of the rows, rising.
        corners: `(x, y)` of the three networks: (0, 0), (distance to the second, 0), and the third, above the axis.
        metrics: metric name -> one row per `y`, one value per `x`.
        corner_metrics: metric name -> its value at each of the three networks themselves.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    corners: tuple[tuple[float, float], ...]
    metrics: Mapping[str, tuple[tuple[float, ...], ...]]
    corner_metrics: Mapping[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "x": list(self.x),
            "y": list(self.y),
            "corners": [list(corner) for corner in self.corners],
            "metrics": {name: [list(row) for row in rows] for name, rows in self.metrics.items()},
            "corner_metrics": {name: list(values) for name, values in self.corner_metrics.items()},
        }

    def __str__(self) -> str:
        places = "  ".join(f"({x:.4g}, {y:.4g})" for x, y in self.corners)
        lines = [f"{len(self.x)} x {len(self.y)} points of the plane through three networks at {places}"]
        for name, rows in self.metrics.items():
            low, high = min(map(min, rows)), max(map(max, rows))
            own = "  ".join(f"{value:.4f}" for value in self.corner_metrics[name])
            lines.append(f"{name}: {low:.4f} to {high:.4f} on the grid; at the networks {own}")
        return "\n".join(lines)


def evaluate_plane(
    model: nn.Module,
    models: Sequence[Mapping[str, Tensor]],
    evaluate: Evaluation,
    points: int = 21,
    *,
    margin: float = 0.2,
    batchnorm_batches: Iterable[Any] | None = None,
    progress: Progress = silent,
) -> Plane:
    """Measure the network on a grid of the plane through three sets of params.

    With d = |b - a|, the basis is `u = (b - a) / d` and what Gram and Schmidt leave of c - a, `v = (c - a - p u) / q`;
    the point (x, y) is `a + x u + y v`. Statistics of batch norm and other buffers have no part in the basis. They are
    combined like the parameters, and a variance that would fall below zero outside of the triangle is zero there.

    Args:
        model: the architecture. Its weights, buffers and modes are left alone.
        models: three sets of params, the reference first: any three of those that were matched to it, itself or not.
        evaluate: `evaluate(predict)` returns the loss, or metric name -> value; see `evaluate_path`.
        points: along either axis; the grid covers the triangle and the margin around it.
        margin: added on every side, as a share of the triangle's width and height.
        batchnorm_batches: batches from which the statistics of batch norm are recomputed at every point, the three
            networks included.
        progress: called after each point.

    Raises:
        ParamsError: tensors that do not fit each other or `model`, or are not finite.
        UsageError: not three models, models on a line, fewer than two points, a negative margin, or an evaluation that
            returns no finite number.

    Source: ito2025, section 6.3 (Fig. 5).
    Differs: the basis and the extent of the grid are not stated there.
    """
    if len(models) != 3 or points < 2 or margin < 0:
        raise UsageError(
            f"{len(models)} models, {points} points and a margin of {margin:g}",
            "three models, two or more points along an axis, and a margin of 0 or more",
            "pass [params_a, b_new, c_new]; of more models, choose three",
        )
    if batchnorm_batches is not None:
        check_repeatable(batchnorm_batches)
    for number, params in enumerate(models, 1):
        check_trained(model, params, f"params of model {number}")
    corners = _corners(model, models)
    x, y = (_axis(values, points, margin) for values in zip(*corners, strict=True))
    places = [*corners, *((column, row) for row in y for column in x)]
    weights = [(f"({column:g}, {row:g})", partial(_at, models, corners, column, row)) for column, row in places]
    found = measure(model, weights, evaluate, batchnorm_batches, progress, "plane")
    starts = range(len(corners), len(places), points)
    return Plane(
        x,
        y,
        corners,
        {name: tuple(values[start : start + points] for start in starts) for name, values in found.items()},
        {name: values[: len(corners)] for name, values in found.items()},
    )


def pairwise_curves(
    model: nn.Module,
    models: Mapping[str, Mapping[str, Tensor]],
    evaluate: Evaluation,
    points: int = 3,
    *,
    batchnorm_batches: Iterable[Any] | None = None,
    progress: Progress = silent,
) -> dict[tuple[str, str], Curve]:
    """Measure the line between every two of any number of networks, as those that were matched to one of them.

    Networks that were each matched to a reference were not matched to each other: a low barrier between them says that
    what brought each to the reference brought all into one basin.

    Args:
        model: the architecture. Its weights, buffers and modes are left alone.
        models: name -> params, in one order of units; two or more.
        evaluate: `evaluate(predict)` returns the loss, or metric name -> value; see `evaluate_path`.
        points: of each line, ends included; 3 have the midpoint, of which ito2025 reports the barrier.
        batchnorm_batches: batches from which the statistics of batch norm are recomputed at every point.
        progress: called after each point.

    Returns:
        Two names -> curve, in the order of `models`; `.barrier("midpoint")` of each is a figure of the paper's table.
        Each network is measured once, however many lines end in it.

    Raises:
        ParamsError: tensors that do not fit each other or `model`, or are not finite.
        UsageError: fewer than two models or points, or an evaluation that returns no finite number.

    Source: ito2025, section 6.3 (Table 3).
    """
    if len(models) < 2 or points < 2:
        raise UsageError(
            f"{len(models)} models and {points} points",
            "two or more models, and at least the two ends of each line",
            'pass {"a": params_a, "b": b_new, "c": c_new} and points=3',
        )
    if batchnorm_batches is not None:
        check_repeatable(batchnorm_batches)
    for name, params in models.items():
        check_trained(model, params, f"params of {name}")
    lams = tuple(index / (points - 1) for index in range(points))
    pairs, inner = list(combinations(models, 2)), points - 2
    ends: list[Point] = [(f"the network {name}", partial(dict, params)) for name, params in models.items()]
    lines = [
        (f"lam = {lam:g} between {a} and {b}", partial(lerp, models[a], models[b], lam))
        for a, b in pairs
        for lam in lams[1:-1]
    ]
    found = measure(model, [*ends, *lines], evaluate, batchnorm_batches, progress, "pairs")
    places = {name: number for number, name in enumerate(models)}
    curves = {}
    for number, (a, b) in enumerate(pairs):
        start = len(models) + number * inner
        curves[a, b] = Curve(
            lams,
            {name: (v[places[a]], *v[start : start + inner], v[places[b]]) for name, v in found.items()},
        )
    return curves


def _corners(model: nn.Module, models: Sequence[Mapping[str, Tensor]]) -> tuple[tuple[float, float], ...]:
    """Return where the three networks lie in the basis; inner products are over the trained parameters, in float64."""
    names = [name for name, _ in model.named_parameters() if all(name in params for params in models)]
    squares = products = others = 0.0
    for name in names:
        a, b, c = (params[name].detach().to(models[0][name].device, torch.float64) for params in models)
        to_b, to_c = (b - a).flatten(), (c - a).flatten()
        squares, others = squares + (to_b @ to_b).item(), others + (to_c @ to_c).item()
        products += (to_b @ to_c).item()
    width = math.sqrt(squares)
    along = products / width if width else 0.0
    height = math.sqrt(max(others - along**2, 0.0))
    if not width or height <= ON_A_LINE * math.sqrt(others):
        raise UsageError(
            f"three networks on a line (the third lies {height:.3g} from the line through the others)",
            "three that differ from each other",
            "choose another third network, or measure the line with evaluate_path",
        )
    return (0.0, 0.0), (width, 0.0), (along, height)


def _axis(values: Sequence[float], points: int, margin: float) -> tuple[float, ...]:
    low, high = min(values), max(values)
    low, high = low - margin * (high - low), high + margin * (high - low)
    return tuple(low + (high - low) * index / (points - 1) for index in range(points))


def _at(models: Sequence[Mapping[str, Tensor]], corners: tuple[tuple[float, float], ...], x: float, y: float) -> Params:
    """Return the weights at one point: the three networks with shares that sum to 1, outside of them some negative."""
    (_, _), (width, _), (along, height) = corners
    third = y / height
    second = (x - along * third) / width
    found = mean(models, [1 - second - third, second, third])
    variances = [name for name in found if name.rpartition(".")[2] == "running_var"]
    return found | {name: torch.clamp(found[name], min=0) for name in variances}
