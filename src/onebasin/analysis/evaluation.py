"""Evaluations: functions that measure a network given only the means to call it; and measuring it at many points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onebasin.batchnorm import recompute_batchnorm
from onebasin.errors import UsageError, listing
from onebasin.functional import Predict, check_repeatable, eval_mode, labels_of, logits_of, with_params
from onebasin.params import Params, check_finite
from onebasin.progress import Progress

# evaluate(predict) -> the loss, or metric name -> value; predict(inputs) behaves as the network does in eval mode.
Evaluation = Callable[[Predict], float | Mapping[str, float]]
Loss = Callable[[Tensor, Tensor], Tensor]
Point = tuple[str, Callable[[], Params]]  # what errors call it, and what makes its weights


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


def measure(
    model: nn.Module,
    points: Sequence[Point],
    evaluate: Evaluation,
    batchnorm_batches: Iterable[Any] | None,
    progress: Progress,
    task: str,
) -> dict[str, tuple[float, ...]]:
    """Return metric name -> its value at each of `points`.

    Args:
        model: the architecture, left alone.
        points: where; the weights of a point are made when it comes up, and dropped after it.
        evaluate: `evaluate(predict)` returns the loss, or metric name -> value.
        batchnorm_batches: batches from which the statistics of batch norm are recomputed at every point.
        progress: told after each point, under the name `task`.
        task: as above.

    Raises:
        UsageError: an evaluation that returns no finite number, or not the same metrics at every point.
    """
    rows: list[dict[str, float]] = []
    with eval_mode(model), torch.no_grad():
        for number, (place, weights) in enumerate(points, 1):
            params = weights()
            if batchnorm_batches is not None:
                params = recompute_batchnorm(model, params, batchnorm_batches)
            rows.append(_measured(evaluate(with_params(model, params)), place, rows))
            progress(task, number, len(points))
    return {name: tuple(row[name] for row in rows) for name in rows[0]}


def check_trained(model: nn.Module, params: Mapping[str, Tensor], what: str) -> None:
    """Raise `ParamsError` if trained tensors of `params` are not finite; buffers may be (attention masks)."""
    check_finite({name: params[name] for name, _ in model.named_parameters() if name in params}, what)


def _measured(result: float | Mapping[str, float], place: str, before: list[dict[str, float]]) -> dict[str, float]:
    row = {
        name: float(value) for name, value in (result.items() if isinstance(result, Mapping) else [("loss", result)])
    }
    bad = [f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)]
    if bad or not row:
        raise UsageError(
            f"at {place} {listing(bad) or 'nothing is measured'}",
            "a finite number for each metric at every point",
            "check what evaluate does with the network there; evaluate one that overflows in half precision in float32",
        )
    if before and row.keys() != before[0].keys():
        raise UsageError(
            f"at {place} the metrics {listing(row)}, before them {listing(before[0])}",
            "the same metrics at every point",
            "return the same names each time evaluate is called",
        )
    return row
