"""Records are strict JSON, whatever settings and results are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onebasin.matching import StopReason, WeightMatching
from onebasin.report.record import dumps, plain, record


def a_function() -> None:
    """Stand for a factory in settings."""


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1.5, 1.5),
        (float("nan"), None),
        (float("-inf"), None),
        (True, True),
        (None, None),
        (Path("a/b"), "a/b"),
        (WeightMatching(seed=3), asdict(WeightMatching(seed=3))),
        (StopReason.CONVERGED, "converged"),
        ({"a": (1, 2), 3: {4}}, {"a": [1, 2], "3": [4]}),
        (torch.tensor([[1.0, float("nan")]]), [[1.0, None]]),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (torch.float16, "torch.float16"),
        (a_function, f"{a_function.__module__}:a_function"),
    ],
)
def test_everything_becomes_plain(value: Any, wanted: Any) -> None:
    assert plain(value) == wanted
    assert json.loads(dumps({"value": value}))["value"] == wanted


def test_a_record_says_what_ran_where_and_for_how_long() -> None:
    entry = record("onebasin test", {"matcher": WeightMatching()}, {"loss": 0.5}, 1.23456)
    assert entry["command"] == "onebasin test"
    assert entry["seconds"] == 1.235
    assert entry["settings"] == {"matcher": asdict(WeightMatching())}
    assert entry["results"] == {"loss": 0.5}
    assert set(entry["versions"]) >= {"python", "onebasin", "torch"}
    assert entry["hardware"]["cores"] >= 1
    refuse: Callable[[str], Any] = lambda word: pytest.fail(f"{word} is no JSON")  # noqa: E731
    assert json.loads(dumps(entry), parse_constant=refuse) == entry
