"""Evaluations are exact over batches of any sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from onebasin.analysis import classification
from onebasin.errors import UsageError

LOGITS = torch.randn(31, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(31) % 5


def identity(x: Tensor) -> Tensor:
    return x


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(LOGITS.split(sizes), LABELS.split(sizes), strict=True))


def test_unequal_batches_give_the_mean_over_examples() -> None:
    found = classification(batches(2, 11, 18))(identity)
    assert found.keys() == {"loss", "accuracy"}
    assert found["loss"] == pytest.approx(cross_entropy(LOGITS, LABELS).item(), rel=1e-14)
    assert found["accuracy"] == (LOGITS.argmax(1) == LABELS).sum().item() / 31
    averaged = sum(cross_entropy(*batch).item() for batch in batches(2, 11, 18)) / 3
    assert abs(found["loss"] - averaged) > 1e-3  # a mean over batches is something else


def test_it_can_be_called_again() -> None:
    evaluate = classification(batches(13, 18))
    assert evaluate(identity) == evaluate(identity)


def test_dict_batches_and_outputs_with_logits() -> None:
    def predict(**inputs: Any) -> Any:
        assert inputs.keys() == {"x"}
        return SimpleNamespace(logits=inputs["x"])

    dicts = [{"x": logits, "labels": labels} for logits, labels in batches(13, 18)]
    assert classification(dicts)(predict) == classification(batches(13, 18))(identity)


def test_every_position_of_a_label_map_is_an_example() -> None:
    maps, labels = LOGITS[:30].reshape(2, 3, 5, 5).movedim(3, 1), LABELS[:30].reshape(2, 3, 5)
    found = classification([(maps[:1], labels[:1]), (maps[1:], labels[1:])])(identity)
    assert found["loss"] == pytest.approx(cross_entropy(LOGITS[:30], LABELS[:30]).item(), rel=1e-14)
    assert found["accuracy"] == pytest.approx((LOGITS[:30].argmax(1) == LABELS[:30]).double().mean().item())


def test_half_precision_logits_are_widened() -> None:
    found = classification([(LOGITS.bfloat16(), LABELS)])(identity)
    assert found["loss"] == pytest.approx(cross_entropy(LOGITS.bfloat16().double(), LABELS).item(), rel=1e-6)


def test_another_loss() -> None:
    def squared(logits: Tensor, labels: Tensor) -> Tensor:
        return mse_loss(logits, torch.eye(5, dtype=logits.dtype)[labels])

    found = classification(batches(2, 29), squared)(identity)
    assert found["loss"] == pytest.approx(squared(LOGITS, LABELS).item())


def test_no_examples_and_generators_are_refused() -> None:
    with pytest.raises(UsageError, match="no examples"):
        classification([])(identity)
    with pytest.raises(UsageError, match="generator"):
        classification(batch for batch in batches(31))
    with pytest.raises(UsageError, match="labels"):
        classification([LOGITS])(identity)
