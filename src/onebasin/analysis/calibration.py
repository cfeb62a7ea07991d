"""Calibration: whether what a classifier calls 70 % likely is true seven times in ten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from onebasin.errors import UsageError
from onebasin.functional import Predict, eval_mode, labels_of, logits_of

Counted = Literal["all", "top"]


@dataclass(frozen=True)
class Calibration:
    """A reliability curve: predicted probabilities in bins of equal width over [0, 1], and how often each came true.

    Args:
        counts: predictions in each bin.
        predicted: their mean probability; 0 in an empty bin.
        observed: the share of them that came true; 0 in an empty bin.
    """

    counts: tuple[int, ...]
    predicted: tuple[float, ...]
    observed: tuple[float, ...]

    @property
    def error(self) -> float:
        """Return the expected calibration error: mean over all predictions of | observed - predicted | of their bin."""
        gaps = (
            count * abs(true - said)
            for count, said, true in zip(self.counts, self.predicted, self.observed, strict=True)
        )
        return sum(gaps) / sum(self.counts)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        curve = {"counts": list(self.counts), "predicted": list(self.predicted), "observed": list(self.observed)}
        return {**curve, "error": self.error}

    def __str__(self) -> str:
        rows = zip(self.counts, self.predicted, self.observed, strict=True)
        lines = [f"{said:9.4f}  {true:8.4f}  {count:9d}" for count, said, true in rows if count]
        head = f"expected calibration error {self.error:.4f}"
        return "\n".join([head, f"{'predicted':>9}  {'observed':>8}  {'count':>9}", *lines])


def calibration(predict: Predict, batches: Iterable[Any], bins: int = 10, counted: Counted = "all") -> Calibration:
    """Compare the probabilities a classifier gives with how often it is right.

    A probability of exactly k / bins belongs to the bin above it, 1 to the last.

    Args:
        predict: a module, which is called in eval mode and left as it was, or any function of the inputs that returns
            logits `Float[Tensor, "batch classes *positions"]` (an ensemble: the mean of its members' logits).
        batches: `(inputs, labels)` or dicts with the key `"labels"`.
        bins: of equal width.
        counted: "all": the probability of every class of every example is a prediction that this is its class; "top":
            only that of the most likely class.

    Raises:
        UsageError: no examples, no bins, an unknown choice, or a batch without labels.

    Source: ainsworth2023's code, in which all classes count.
    """
    if bins < 1 or counted not in ("all", "top"):
        expected = 'at least one bin, and counted="all" or "top"'
        raise UsageError(f"{bins} bins, counted={counted!r}", expected, "choose one of them")
    sums = torch.zeros(3, bins, dtype=torch.float64)  # predictions, their probabilities, those that came true
    modules = [predict] if isinstance(predict, nn.Module) else []
    with torch.no_grad(), eval_mode(nn.ModuleList(modules)):
        for batch in batches:
            sums += _binned(logits_of(predict, batch), labels_of(batch), bins, counted)
    counts, predicted, observed = sums
    if not counts.sum():
        raise UsageError("no examples", "at least one batch of inputs and labels", "check the data")
    some = counts.clamp_min(1)
    return Calibration(
        tuple(map(int, counts.tolist())), tuple((predicted / some).tolist()), tuple((observed / some).tolist())
    )


def _binned(logits: Tensor, labels: Tensor, bins: int, counted: Counted) -> Tensor:
    """Return `Float64[Tensor, "3 bins"]` of one batch."""
    probabilities = logits.double().softmax(1).movedim(1, -1).cpu()
    right = torch.nn.functional.one_hot(labels.cpu(), probabilities.shape[-1]).bool()
    if counted == "top":
        probabilities, best = probabilities.max(-1, keepdim=True)
        right = right.gather(-1, best)
    said, true = probabilities.flatten(), right.flatten().double()
    place = (said * bins).long().clamp_max(bins - 1)
    rows = torch.stack([torch.ones_like(said), said, true])
    return torch.zeros(3, bins, dtype=torch.float64).index_add_(1, place, rows)
