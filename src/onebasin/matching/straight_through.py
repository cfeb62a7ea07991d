"""Straight-through matching: the permutation whose midpoint has the lowest loss, found by gradient descent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from onebasin.errors import UsageError
from onebasin.functional import Predict, check_repeatable, eval_mode, labels_of, logits_of, with_params
from onebasin.interpolate import lerp
from onebasin.matching.alignment import Alignment, Certificate, Matcher, StopReason
from onebasin.matching.weight import WeightMatching
from onebasin.params import Params, compute_dtype, map_tensors
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# loss(predict, batch) -> scalar; predict(inputs) behaves as the network between the two models does.
BatchLoss = Callable[[Predict, Any], Tensor]
Optimizer = Literal["sgd", "adam"]


def classification_loss(predict: Predict, batch: Any) -> Tensor:
    """Return the mean cross entropy of a classifier on `(inputs, labels)`, in nats per example."""
    logits = logits_of(predict, batch)
    return cross_entropy(logits, labels_of(batch).to(logits.device))


@dataclass(frozen=True, eq=False)
class StraightThrough:
    """Minimise the loss of the midpoint, L((A + pi(B)) / 2), by gradient descent on a free copy of the moved model.

    The copy T starts at A. For every batch, pi is what the projection (weight matching) finds between T and B, starting
    from the last pi; the loss is taken at (A + pi(B)) / 2, and its gradient, as if pi(B) were T, moves T. Returned is
    the pi with the lowest loss on a batch, or the last one; the other is in `Alignment.other`.

    The history is minus the lowest loss so far: at the first batch, and after every epoch. Batch norm normalises by the
    statistics of the batch. When a loss is not finite the run ends; `stop` says so, and `note` at which batch.

    Two later recipes: `optimizer="adam", rate=1e-3, epochs=10, keep="last"` on batches of 256, where `point="random"`
    is a variant; and `rate=0.5, weight_decay=1e-4, epochs=100` on batches of 500.

    Args:
        model: the architecture, on the device of the reference.
        batches: what `loss` takes, readable many times; the paper's are 1000 images, in a new order every epoch.
        loss: `(predict, batch) -> scalar`; default `classification_loss`.
        epochs: passes over the batches; 250 in ainsworth2023's code.
        optimizer: "sgd" (the code's) or "adam".
        rate: learning rate; 1e-2 in the code.
        momentum: of "sgd"; 0.9 in the code.
        weight_decay: L2 penalty on T.
        point: "midpoint", or "random" for a point lam = u / (u + v) of the path, u and v uniform, at every batch.
        keep: which permutation is returned: "best" (the code's) or "last".
        seed: seed of the random points.
        projection: matches T and B; default `WeightMatching()`, as in the code.

    Raises:
        UsageError: batches that can be read only once, none at all, an unknown setting, or a loss that is no finite
            number at the very first batch.

    Source: ainsworth2023, section 3.3 and Alg. 2.
    Differs: gradients of tensors that no group moves move T as well, which changes no projection; the recipes are those
        of later code by ito2025's group.
    """

    model: nn.Module = field(repr=False)
    batches: Iterable[Any] = field(repr=False)
    loss: BatchLoss = field(default=classification_loss, repr=False)
    epochs: int = 250
    optimizer: Optimizer = "sgd"
    rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0
    point: Literal["midpoint", "random"] = "midpoint"
    keep: Literal["best", "last"] = "best"
    seed: int = 0
    projection: Matcher = field(default_factory=WeightMatching)

    def __post_init__(self) -> None:
        check_repeatable(self.batches)
        if self.epochs < 1:
            raise UsageError(f"{self.epochs} epochs", "at least one", "pass epochs=1 or more")
        allowed = {"optimizer": ("sgd", "adam"), "point": ("midpoint", "random"), "keep": ("best", "last")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UsageError(f"{name} {getattr(self, name)!r}", f"one of {', '.join(values)}", "choose one of them")

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Descend; the first projection begins at `start`. An interrupt from the keyboard keeps what has been found."""
        began = time.perf_counter()
        run = _Run(self, spec, params_a, params_b, start)
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
        return Alignment(chosen, tuple(history), run.stop, run.certificate, self, seconds, other, run.note)

    def _optimizer(self, free: list[Tensor]) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(free, self.rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(free, self.rate, self.momentum, weight_decay=self.weight_decay)


@dataclass
class _Run:
    """A run so far: what is kept when it is interrupted.

    Args:
        settings: of the run.
        spec: what may be permuted.
        a: the reference.
        b: the moved model.
        last: the last projection.
        best: the one with the lowest loss.
        lowest: that loss.
        history: minus the lowest loss, at the first batch and after every epoch.
        certificate: of all assignments so far.
        stop: why it ended.
        note: at which batch, if it broke off.
    """

    settings: StraightThrough
    spec: PermutationSpec
    a: Params
    b: Params
    last: Permutation
    best: Permutation = field(init=False)
    lowest: float = math.inf
    history: list[float] = field(default_factory=list)
    certificate: Certificate = field(default_factory=Certificate)
    stop: StopReason = StopReason.FINISHED
    note: str = ""

    def __post_init__(self) -> None:
        trained = {n: t for n, t in self.a.items() if n not in self.spec.buffers and t.is_floating_point()}
        self.copy = map_tensors(trained, lambda _, t: t.detach().to(compute_dtype(t), copy=True).requires_grad_())
        self.optimizer = self.settings._optimizer(list(dict.fromkeys(self.copy.values())))
        self.random = torch.Generator().manual_seed(self.settings.seed)

    def descend(self, progress: Progress) -> None:
        """Go through all epochs, or until a loss or a gradient is not finite."""
        batches, epochs = self.settings.batches, self.settings.epochs
        total = epochs * len(batches) if isinstance(batches, Sized) else 0
        for epoch in range(1, epochs + 1):
            number = 0
            for number, batch in enumerate(batches, 1):
                if not self.step(batch):
                    self.stop, self.note = StopReason.NOT_FINITE, f"batch {number} of epoch {epoch}"
                    return
                progress("straight-through", (epoch - 1) * (total // epochs) + number, total)
            if not number:
                raise UsageError("no batches", "at least one", "check the data")
            self.history.append(-self.lowest)

    def step(self, batch: Any) -> bool:
        """Project, take the loss in between, and move the copy; return False if a number is not finite."""
        self.last = self._projected()
        with torch.enable_grad():
            loss = self._loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
        value = loss.item()
        if not (self.history or math.isfinite(value)):
            do = "look at the loss and at the inputs of the first batch"
            raise UsageError(f"a loss of {value} at the very first batch", "a finite loss", do)
        if value < self.lowest:
            self.best, self.lowest = self.last, value
        self.history = self.history or [-value]
        gradients = [t.grad for t in self.copy.values() if t.grad is not None]
        self.optimizer.step()
        return math.isfinite(value) and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)

    def _projected(self) -> Permutation:
        copy = {**self.a, **{name: tensor.detach() for name, tensor in self.copy.items()}}
        found = self.settings.projection.match(self.spec, copy, self.b, self.last, silent)
        if found.stop is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        self.certificate += found.certificate
        return found.permutation

    def _loss(self, batch: Any) -> Tensor:
        """Return the loss between A and pi(B); its gradient reaches the copy as if that stood in the place of pi(B)."""
        drawn = torch.rand(2, generator=self.random)
        lam = 0.5 if self.settings.point == "midpoint" else (drawn[0] / drawn.sum()).item()
        between = lerp(self.a, self.last.apply(self.b), lam)
        for name, tensor in self.copy.items():
            between[name] = between[name] + (lam * (tensor - tensor.detach())).to(between[name].dtype)
        loss = self.settings.loss(with_params(self.settings.model, between), batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            do = "return a tensor that torch computed from what `predict` returned, such as a mean over the batch"
            raise UsageError(f"a loss of {got} that cannot be differentiated", "one number with a gradient", do)
        return loss
