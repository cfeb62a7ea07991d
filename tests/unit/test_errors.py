"""Names spelt wrong: the nearest come first."""

from __future__ import annotations

import pytest

import onebasin
from onebasin.errors import choices


def test_the_nearest_names_come_first_and_once() -> None:
    expected, do = choices("wieght", ["bias", "heights", "weight"])
    assert (expected, do) == ("one of: weight, heights, bias", "did you mean weight or heights?")
    assert choices("x", ["bias", "weight"]) == ("one of: bias, weight", "correct the name")
    assert choices("z99", [f"z{number}" for number in range(98)])[0].startswith("one of: z9")


def test_a_public_name_spelt_wrong_is_told_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'WeigthMatching'; did you mean WeightMatching"):
        _ = onebasin.WeigthMatching
    with pytest.raises(AttributeError, match=r"'qqq'; correct the name \(one of: __version__, Params, "):
        _ = onebasin.qqq
