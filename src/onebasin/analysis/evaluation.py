"""Evaluations: functions that measure a network given only the means to call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onebasin.errors import UsageError
from onebasin.functional import Predict, check_repeatable, labels_of, logits_of

# evaluate(predict) -> the loss, or metric name -> value; predict(inputs) behaves as the network does in eval mode.
Evaluation = Callable[[Predict], float | Mapping[str, float]]
Loss = Callable[[Tensor, Tensor], Tensor]


def classification(batches: Iterable[Any], loss: Loss = cross_entropy) -> Evaluation:
    """Return an evaluation that measures `{"loss", "accuracy"}` of a classifier over all of `batches`.

    Both are means over examples, whatever the sizes of the batches: loss in nats per example, accuracy in [0, 1]. An
    example is one label, so a map of labels (segmentation) counts position by position. Logits in half precision are
    widened to float32 first.

    Args:
        batches: `(inputs, labels)` or dicts with the key `"labels"`, readable many times (a list, a DataLoader). Labels
            are class indices, `Int[Tensor, "batch *positions"]`.
        loss: `(logits, labels) -> mean loss over the batch`; default: softmax cross entropy, as in ainsworth2023.

    Returns:
        A function of `predict`, which must return logits `Float[Tensor, "batch classes *positions"]`, or an object that
        has them as its attribute `logits`.

    Raises:
        UsageError: `batches` can be read only once. When called: no examples, or a batch without labels.
    """
    check_repeatable(batches)

    def evaluate(predict: Predict) -> dict[str, float]:
        # Sums stay on the device until the end: asking for a number at each batch would wait for it each time.
        total, right, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64), 0
        for batch in batches:
            labels, logits = labels_of(batch), logits_of(predict, batch)
            labels = labels.to(logits.device)
            total = total.to(logits.device) + loss(logits, labels).double() * labels.numel()
            right = right.to(logits.device) + (logits.argmax(1) == labels).sum()
            count += labels.numel()
        if not count:
            raise UsageError("no examples to evaluate on", "at least one batch of inputs and labels", "check the data")
        return {"loss": total.item() / count, "accuracy": right.item() / count}

    return evaluate
