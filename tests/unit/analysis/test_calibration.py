"""Calibration, against bins filled by hand and by a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from onebasin.analysis import calibration
from onebasin.errors import UsageError


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def identity(x: Tensor) -> Tensor:
    return x


# Two classes, the first with probability 0.8 four times and 0.35 once.
LOGITS = torch.tensor([[logit(0.8), 0.0]] * 4 + [[logit(0.35), 0.0]])
LABELS = torch.tensor([0, 0, 0, 1, 1])


def test_bins_filled_by_hand() -> None:
    found = calibration(identity, [(LOGITS, LABELS)], bins=4)
    assert found.counts == (4, 1, 1, 4)
    assert found.predicted == pytest.approx((0.2, 0.35, 0.65, 0.8))
    assert found.observed == pytest.approx((0.25, 0, 1, 0.75))
    assert found.error == pytest.approx((4 * 0.05 + 0.35 + 0.35 + 4 * 0.05) / 10)
    assert found.to_json()["error"] == found.error
    assert "0.3500    0.0000          1" in str(found)


def test_only_the_most_likely_class_counts() -> None:
    found = calibration(identity, [(LOGITS, LABELS)], bins=4, counted="top")
    assert found.counts == (0, 0, 1, 4)
    assert found.error == pytest.approx((0.35 + 4 * 0.05) / 5)


@pytest.mark.parametrize("counted", ["all", "top"])
def test_a_plain_loop_finds_the_same_in_any_batches(counted: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(97, 5, generator=generator), torch.randint(5, (97,), generator=generator)
    found = calibration(identity, list(zip(logits.split(10), labels.split(10), strict=True)), 7, counted)  # type: ignore[arg-type]
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(7)]
    for row, label in zip(logits.double().softmax(1).tolist(), labels.tolist(), strict=True):
        classes = range(5) if counted == "all" else [row.index(max(row))]
        for number in classes:
            bins[min(6, int(row[number] * 7))].append((row[number], number == label))
    assert found.counts == tuple(map(len, bins))
    assert found.predicted == pytest.approx([sum(p for p, _ in one) / max(1, len(one)) for one in bins])
    assert found.observed == pytest.approx([sum(r for _, r in one) / max(1, len(one)) for one in bins])


def test_labels_drawn_from_the_predictions_are_calibrated_and_sharper_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    assert calibration(identity, [(logits, labels)]).error < 0.01
    assert calibration(identity, [(5 * logits, labels)]).error > 0.1


def test_a_module_is_called_in_eval_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(0.9)).train()
    assert calibration(model, [(LOGITS, LABELS)], 4) == calibration(identity, [(LOGITS, LABELS)], 4)
    assert model.training
    assert model[0].training


def test_maps_of_labels_count_position_by_position() -> None:
    logits = LOGITS.T.reshape(1, 2, 5)  # one example, two classes, five positions
    found, expected = (calibration(identity, [batch], 4) for batch in ((logits, LABELS[None]), (LOGITS, LABELS)))
    assert found.counts == expected.counts
    assert found.predicted == pytest.approx(expected.predicted)
    assert found.observed == pytest.approx(expected.observed)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="no examples"):
        calibration(identity, [])
    with pytest.raises(UsageError, match="at least one bin"):
        calibration(identity, [(LOGITS, LABELS)], bins=0)
    with pytest.raises(UsageError, match="'some'"):
        calibration(identity, [(LOGITS, LABELS)], counted="some")  # type: ignore[arg-type]
