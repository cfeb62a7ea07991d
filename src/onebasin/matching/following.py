"""Matching methods that follow a loss: what they share, from settings and checks to the run over batches."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from onebasin.errors import UsageError, check_counts, no_batches
from onebasin.functional import (
    BatchLoss,
    Predict,
    check_repeatable,
    eval_mode,
    labels_of,
    logits_of,
    loss_of,
    with_params,
)
from onebasin.interpolate import lerp
from onebasin.matching.alignment import Alignment, Certificate, StopReason
from onebasin.matching.criterion import Criterion
from onebasin.params import Params, params_of, widened_to
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec


def classification_loss(predict: Predict, batch: Any) -> Tensor:
    """Return the mean cross entropy of a classifier on `(inputs, labels)`, in nats per example."""
    logits = logits_of(predict, batch)
    return cross_entropy(logits, labels_of(batch).to(logits.device))


@dataclass(frozen=True, eq=False)
class Place:
    """Where a method stands at one batch.

    Args:
        permutation: what it would return now.
        moved: the moved model in the order it stands for now, whose values enter the loss.
        carrier: tensors that stand for those of `moved` in the gradient, which they lead to what the method moves.
        is_hard: whether `moved` is the moved model in the order `permutation`; otherwise the permutation has a loss of
            its own.
    """

    permutation: Permutation
    moved: Params
    carrier: Params
    is_hard: bool


class Mover(Protocol):
    """What a method moves by gradient descent, and what that stands for."""

    optimizer: torch.optim.Optimizer

    @property
    def certificate(self) -> Certificate:
        """How sure all assignments so far are."""
        ...

    def place(self) -> Place:
        """Return where it stands now."""
        ...


@dataclass(frozen=True, eq=False)
class LossFollowing(ABC):
    """Settings that all methods share which follow a loss between two models; see those for what each means."""

    model: nn.Module = field(repr=False)
    batches: Iterable[Any] = field(repr=False)
    loss: BatchLoss = field(default=classification_loss, repr=False)
    epochs: int = 250
    point: Literal["midpoint", "random"] = "midpoint"
    keep: Literal["best", "last"] = "best"
    seed: int = 0
    warmup: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    task: ClassVar[str]
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "point": ("midpoint", "random"),
        "keep": ("best", "last"),
        "schedule": ("constant", "cosine"),
    }

    def __post_init__(self) -> None:
        check_repeatable(self.batches)
        check_counts(1, epochs=self.epochs)
        for name, values in self.choices.items():
            if getattr(self, name) not in values:
                raise UsageError(f"{name} {getattr(self, name)!r}", f"one of {', '.join(values)}", "choose one of them")
        if not 0 <= self.warmup < self.epochs:
            got = f"a warm-up of {self.warmup} epochs in a run of {self.epochs}"
            raise UsageError(got, "one shorter than the run, and not negative", "lower warmup or raise epochs")

    @property
    def criterion(self) -> Criterion:
        """The loss half way between the two models, on all batches."""
        return Criterion(self.model, self.batches, self.loss)

    @abstractmethod
    def mover(self, spec: PermutationSpec, params_a: Params, params_b: Params, start: Permutation) -> Mover:
        """Return what is to be moved."""

    def rate_at(self, epoch: float) -> float:
        """Return by what the learning rate is multiplied after so many epochs."""
        if epoch <= self.warmup:
            return epoch / self.warmup if self.warmup else 1.0
        if self.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * (epoch - self.warmup) / (self.epochs - self.warmup))) / 2

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Descend from `start` on. An interrupt from the keyboard keeps what has been found."""
        began = time.perf_counter()
        params_a, params_b = (widened_to(params_of(self.model), params) for params in (params_a, params_b))
        run = _Run(self, self.mover(spec, params_a, params_b, start), params_a, params_b)
        try:
            with eval_mode(self.model, [m for m in self.model.modules() if isinstance(m, _BatchNorm)]):
                run.descend(progress)
        except KeyboardInterrupt:
            if not run.history:
                raise  # nothing has been found yet
            run.stop = StopReason.INTERRUPTED
        chosen, other = (run.best, run.last) if self.keep == "best" else (run.last, run.best)
        history = run.history if run.stop is StopReason.FINISHED else [*run.history, -run.lowest]
        seconds = time.perf_counter() - began
        return Alignment(chosen, tuple(history), run.stop, run.mover.certificate, self, seconds, other, run.note)


@dataclass
class _Run:
    """A run so far: what is kept when it is interrupted.

    Args:
        settings: of the run.
        mover: what is moved.
        a: the reference.
        b: the moved model.
        last: the last permutation.
        best: the one with the lowest loss.
        lowest: that loss.
        history: minus the lowest loss, at the first batch and after every epoch.
        stop: why it ended.
        note: at which batch, if it broke off.
    """

    settings: LossFollowing
    mover: Mover
    a: Params
    b: Params
    last: Permutation = field(init=False)
    best: Permutation = field(init=False)
    lowest: float = math.inf
    history: list[float] = field(default_factory=list)
    stop: StopReason = StopReason.FINISHED
    note: str = ""

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.settings.seed)

    def descend(self, progress: Progress) -> None:
        """Go through all epochs, or until a loss or a gradient is not finite."""
        batches, epochs = self.settings.batches, self.settings.epochs
        length = length_hint(batches)
        rates = [group["lr"] for group in self.mover.optimizer.param_groups]
        for epoch in range(1, epochs + 1):
            number = 0
            for number, batch in enumerate(batches, 1):
                factor = self.settings.rate_at(epoch - 1 + number / max(length, number))
                for group, rate in zip(self.mover.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                if not self.step(batch):
                    self.stop, self.note = StopReason.NOT_FINITE, f"batch {number} of epoch {epoch}"
                    return
                progress(self.settings.task, (epoch - 1) * length + number, epochs * length)
            if not number:
                raise no_batches()
            self.history.append(-self.lowest)

    def step(self, batch: Any) -> bool:
        """Take the loss in between and move; return False if a number is not finite."""
        place, optimizer = self.mover.place(), self.mover.optimizer
        with torch.enable_grad():
            loss = self._loss(batch, place)
            optimizer.zero_grad()
            loss.backward()
        own = loss if place.is_hard else self._at_permutation(batch, place.permutation)
        value, followed = own.item(), loss.item()
        if not (self.history or math.isfinite(value)):
            do = "look at the loss and at the inputs of the first batch"
            raise UsageError(f"a loss of {value} at the very first batch", "a finite loss", do)
        self.last = place.permutation
        if value < self.lowest:
            self.best, self.lowest = self.last, value
        self.history = self.history or [-value]
        gradients = [t.grad for group in optimizer.param_groups for t in group["params"] if t.grad is not None]
        optimizer.step()
        return math.isfinite(followed) and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)

    def _loss(self, batch: Any, place: Place) -> Tensor:
        """Return the loss between A and the moved model, whose gradient goes where the carrier leads it."""
        drawn = torch.rand(2, generator=self.random)
        lam = 0.5 if self.settings.point == "midpoint" else (drawn[0] / drawn.sum()).item()
        between = lerp(self.a, place.moved, lam)
        for name, tensor in place.carrier.items():
            between[name] = between[name] + (lam * (tensor - tensor.detach())).to(between[name])
        return loss_of(self.settings.loss, with_params(self.settings.model, between), batch)

    @torch.no_grad()
    def _at_permutation(self, batch: Any, permutation: Permutation) -> Tensor:
        """Return the loss of the midpoint of A and the moved model in the order `permutation`."""
        middle = lerp(self.a, permutation.apply(self.b), 0.5)
        return loss_of(self.settings.loss, with_params(self.settings.model, middle), batch)
