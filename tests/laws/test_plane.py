"""Laws of the plane through three networks, and of the lines between every two of many."""

from __future__ import annotations

import json
import math
from itertools import combinations

import pytest
import torch
from helpers import assert_same, clone
from nets import SPEC, data, net

from onebasin.analysis import Plane, classification, evaluate_path, evaluate_plane, pairwise_curves
from onebasin.errors import ParamsError, UsageError
from onebasin.functional import Predict
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation

EVALUATE = classification(data())


def three() -> list[Params]:
    return [params_of(net(seed)) for seed in (1, 2, 3)]


def flat(params: Params) -> torch.Tensor:
    return torch.cat([params[name].flatten() for name, _ in net(0).named_parameters()])


def test_the_basis_keeps_lengths_and_angles() -> None:
    a, b, c = map(flat, three())
    plane = evaluate_plane(net(0), three(), lambda _: 1.0, points=2)
    (ax, ay), (bx, by), (cx, cy) = plane.corners
    assert (ax, ay, by) == (0, 0, 0)
    assert bx == pytest.approx((b - a).norm().item(), rel=1e-13)
    assert math.hypot(cx, cy) == pytest.approx((c - a).norm().item(), rel=1e-13)
    assert math.hypot(cx - bx, cy) == pytest.approx((c - b).norm().item(), rel=1e-13)


def test_every_point_is_the_network_there() -> None:
    models = three()
    plane = evaluate_plane(net(0), models, EVALUATE, points=4, batchnorm_batches=data())
    a, b, c = map(flat, models)
    u = (b - a) / (b - a).norm()
    v = c - a - u.dot(c - a) * u
    v = v / v.norm()
    for i, y in enumerate(plane.y):
        for j, x in enumerate(plane.x):
            there = a + x * u + y * v
            params, start = dict(models[0]), 0
            for name, own in net(0).named_parameters():
                params[name] = there[start : start + own.numel()].reshape(own.shape)
                start += own.numel()
            curve = evaluate_path(net(0), params, params, EVALUATE, 2, batchnorm_batches=data())
            assert plane.metrics["loss"][i][j] == pytest.approx(curve.loss[0], rel=1e-9)
            assert plane.metrics["accuracy"][i][j] == curve.accuracy[0]


def test_the_corners_are_the_three_networks_and_the_grid_covers_them() -> None:
    models = three()
    plane = evaluate_plane(net(0), models, EVALUATE, points=3, margin=0.25)
    lines = pairwise_curves(net(0), dict(zip("abc", models, strict=True)), EVALUATE)
    losses = lines["a", "b"].loss[0], lines["a", "b"].loss[2], lines["a", "c"].loss[2]
    assert plane.corner_metrics["loss"] == pytest.approx(losses, rel=1e-12)
    for axis, values in zip((plane.x, plane.y), zip(*plane.corners, strict=True), strict=True):
        room = 0.25 * (max(values) - min(values))
        assert (axis[0], axis[-1]) == pytest.approx((min(values) - room, max(values) + room))
        assert axis[1] - axis[0] == pytest.approx(axis[2] - axis[1])


def test_permuting_all_alike_changes_nothing_and_one_alone_does() -> None:
    models = three()
    move = Permutation.random(SPEC, torch.Generator().manual_seed(3)).apply
    plain, alike, alone = (
        evaluate_plane(net(0), given, EVALUATE, points=3, margin=0)
        for given in (models, [move(params) for params in models], [*models[:2], move(models[2])])
    )
    assert alike.corners[2] == pytest.approx(plain.corners[2])
    for found, expected in zip(alike.metrics["loss"], plain.metrics["loss"], strict=True):
        assert found == pytest.approx(expected, rel=1e-9)
    assert alone.corners[1] == plain.corners[1]
    assert alone.corners[2] != pytest.approx(plain.corners[2], rel=1e-3)
    assert alone.corner_metrics["loss"] == pytest.approx(plain.corner_metrics["loss"], rel=1e-9)


def test_extrapolated_variances_do_not_fall_below_zero() -> None:
    models = three()
    models[1]["1.running_var"] = models[1]["1.running_var"] * 100
    plane = evaluate_plane(net(0), models, EVALUATE, points=5, margin=2)
    assert all(math.isfinite(value) for row in plane.metrics["loss"] for value in row)


def test_models_are_left_alone() -> None:
    models = three()
    given = [clone(params) for params in models]
    evaluate_plane(net(0), models, EVALUATE, points=2, batchnorm_batches=data())
    pairwise_curves(net(0), dict(zip("abc", models, strict=True)), EVALUATE, batchnorm_batches=data())
    for params, before in zip(models, given, strict=True):
        assert_same(params, before)


@pytest.mark.parametrize("points", [2, 3, 5])
def test_lines_between_every_two_are_the_paths_and_ends_are_measured_once(points: int) -> None:
    models = {name: params_of(net(seed)) for seed, name in enumerate("abcd", 1)}
    calls = []

    def counted(predict: Predict) -> dict[str, float]:
        calls.append(1)
        return dict(EVALUATE(predict))  # type: ignore[arg-type]

    lines = pairwise_curves(net(0), models, counted, points, batchnorm_batches=data())
    assert len(calls) == 4 + 6 * (points - 2)
    assert list(lines) == list(combinations("abcd", 2))
    for (a, b), line in lines.items():
        path = evaluate_path(net(0), models[a], models[b], EVALUATE, points, batchnorm_batches=data())
        assert line.lams == path.lams
        assert line.loss == pytest.approx(path.loss, rel=1e-12)
        assert line.accuracy == path.accuracy


def test_it_shows_itself() -> None:
    plane: Plane = evaluate_plane(net(0), three(), EVALUATE, points=3)
    data_ = json.loads(json.dumps(plane.to_json(), allow_nan=False))
    assert data_["metrics"]["loss"][1][2] == plane.metrics["loss"][1][2]
    assert data_["corners"][2] == list(plane.corners[2])
    assert str(plane).startswith("3 x 3 points")
    assert f"{plane.corner_metrics['loss'][1]:.4f}" in str(plane)


def test_progress_counts_points() -> None:
    seen: list[tuple[str, int, int]] = []
    evaluate_plane(net(0), three(), lambda _: 1.0, points=2, progress=lambda *step: seen.append(step))
    assert seen == [("plane", number, 7) for number in range(1, 8)]


def test_what_spans_no_plane_is_refused() -> None:
    a, b, c = three()
    with pytest.raises(UsageError, match="2 models"):
        evaluate_plane(net(0), [a, b], EVALUATE)
    with pytest.raises(UsageError, match="on a line"):
        evaluate_plane(net(0), [a, b, {name: (a[name] + b[name]) / 2 for name in a}], EVALUATE)
    with pytest.raises(UsageError, match="on a line"):
        evaluate_plane(net(0), [a, a, c], EVALUATE)
    with pytest.raises(UsageError, match="a margin of -1"):
        evaluate_plane(net(0), [a, b, c], EVALUATE, margin=-1)
    with pytest.raises(ParamsError, match=r"model 3 hold values that are not finite.*6\.bias"):
        evaluate_plane(net(0), [a, b, c | {"6.bias": c["6.bias"] / 0}], EVALUATE)
    with pytest.raises(ParamsError, match=r"1 missing: 6\.bias"):
        evaluate_plane(net(0), [a, b, {name: c[name] for name in c if name != "6.bias"}], EVALUATE)
    with pytest.raises(UsageError, match=r"at \(0, 0\) loss is nan"):
        evaluate_plane(net(0), [a, b, c], lambda _: float("nan"))
    with pytest.raises(UsageError, match="generator"):
        evaluate_plane(net(0), [a, b, c], EVALUATE, batchnorm_batches=(batch for batch in data()))


def test_lines_that_cannot_be_measured_are_refused() -> None:
    a, b, _ = three()
    with pytest.raises(UsageError, match="1 models"):
        pairwise_curves(net(0), {"a": a}, EVALUATE)
    with pytest.raises(ParamsError, match="params of b hold"):
        pairwise_curves(net(0), {"a": a, "b": b | {"6.bias": b["6.bias"] / 0}}, EVALUATE)
    values = iter([1.0, 1.0, float("inf")])
    with pytest.raises(UsageError, match=r"at lam = 0\.5 between a and b loss is inf"):
        pairwise_curves(net(0), {"a": a, "b": b}, lambda _: next(values))
