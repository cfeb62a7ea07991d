"""Curves: the three barriers on curves whose values are known, and how a curve shows itself."""

from __future__ import annotations

import json

import pytest

from onebasin.analysis import Curve
from onebasin.errors import UsageError

LAMS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Ends 1 and 3 (mean 2). The largest value is 5 at 3/4; the chord there is 2.5; the midpoint is 1.5.
LOSS = (1.0, 4.0, 1.5, 5.0, 3.0)


def curve(**metrics: tuple[float, ...]) -> Curve:
    return Curve(LAMS, metrics)


def test_three_barriers_on_a_known_curve() -> None:
    found = curve(loss=LOSS)
    assert found.barrier() == found.barrier("mean") == 5 - 2
    assert found.barrier("chord") == 4 - 1.5 == 5 - 2.5
    assert found.barrier("midpoint") == 1.5 - 2


def test_chord_is_not_largest_where_the_curve_is() -> None:
    found = curve(loss=(0.0, 3.0, 1.0, 3.5, 4.0))
    assert found.barrier("mean") == 4 - 2  # at the end
    assert found.barrier("chord") == 3 - 1  # at 1/4


def test_accuracy_barriers_are_drops() -> None:
    found = curve(accuracy=(0.9, 0.5, 0.2, 0.6, 0.7), top5_accuracy=(0.9, 0.95, 0.99, 0.95, 0.9))
    assert found.barrier("mean", "accuracy") == pytest.approx(0.8 - 0.2)
    assert found.barrier("chord", "accuracy") == pytest.approx(0.8 - 0.2)
    assert found.barrier("midpoint", "accuracy") == pytest.approx(0.6)
    assert found.barrier("midpoint", "top5_accuracy") == pytest.approx(-0.09)


def test_a_dip_below_both_ends_has_no_barrier_but_at_the_midpoint() -> None:
    found = curve(loss=(2.0, 1.0, 0.5, 1.0, 2.0))
    assert found.barrier("mean") == found.barrier("chord") == 0
    assert found.barrier("midpoint") == -1.5


def test_an_even_curve_has_no_midpoint() -> None:
    found = Curve((0.0, 1 / 3, 2 / 3, 1.0), {"loss": (1.0, 2.0, 2.0, 1.0)})
    assert found.barrier("mean") == 1
    with pytest.raises(UsageError, match="points=5"):
        found.barrier("midpoint")
    assert found.to_json()["barriers"]["loss"].keys() == {"mean", "chord"}
    assert "midpoint" not in str(found)


def test_unknown_kinds_and_metrics_are_refused() -> None:
    found = curve(loss=LOSS)
    with pytest.raises(UsageError, match="mean, chord, midpoint"):
        found.barrier("highest")  # type: ignore[arg-type]
    for ask in (lambda: found.accuracy, lambda: found.barrier(metric="accuracy")):
        with pytest.raises(UsageError, match="'accuracy', which was not measured"):
            ask()
    assert found.loss == LOSS


def test_json_is_plain_and_complete() -> None:
    found = curve(loss=LOSS, accuracy=(0.9, 0.5, 0.25, 0.5, 0.7))
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data == found.to_json()
    assert data["lams"] == list(LAMS)
    assert data["metrics"]["loss"] == list(LOSS)
    assert data["barriers"]["loss"] == {"mean": 3.0, "chord": 2.5, "midpoint": -0.5}


def test_text_names_each_definition() -> None:
    text = str(curve(loss=LOSS, accuracy=(0.9, 0.5, 0.25, 0.5, 0.7)))
    assert text.splitlines()[0] == "5 points"
    for number in ("3.0000", "2.5000", "-0.5000", "0.5500"):
        assert number in text
    for meaning in ("largest minus the mean of the ends", "largest excess over the chord", "midpoint minus the mean"):
        assert meaning in text
    assert text.endswith("of an accuracy: how far it drops, in the same way")
    assert "accuracy" not in str(curve(loss=LOSS))
