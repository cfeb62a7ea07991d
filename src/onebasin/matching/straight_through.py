"""Straight-through matching: the permutation whose midpoint has the lowest loss, found by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from onebasin.errors import UsageError
from onebasin.functional import BatchLoss
from onebasin.matching.alignment import Certificate, Matcher, StopReason
from onebasin.matching.following import LossFollowing, Mover, Place, classification_loss
from onebasin.matching.weight import WeightMatching
from onebasin.params import Params, compute_dtype, map_tensors
from onebasin.permutation import Permutation
from onebasin.progress import silent
from onebasin.spec import PermutationSpec

__all__ = ["BatchLoss", "StraightThrough", "classification_loss"]


@dataclass(frozen=True, eq=False)
class StraightThrough(LossFollowing):
    """Minimise the loss of the midpoint, L((A + pi(B)) / 2), by gradient descent on a free copy of the moved model.

    The copy T starts at A. For every batch, pi is what the projection (weight matching) finds between T and B, starting
    from the last pi; the loss is taken at (A + pi(B)) / 2, and its gradient, as if pi(B) were T, moves T. Returned is
    the pi with the lowest loss on a batch, or the last one; the other is in `Alignment.other`.

    `Alignment.objective` is minus the lowest loss so far: at the first batch, and after every epoch. Batch norm
    normalises by the statistics of the batch. When a loss is not finite the run ends; `stop` says so, and `note` at
    which batch.

    The defaults are those of the code of ainsworth2023; two later recipes are `StraightThrough.by_adam` and
    `StraightThrough.by_steep_sgd`.

    Args:
        model: the architecture, on the device of the reference.
        batches: what `loss` takes, readable many times; the paper's are 1000 images, in a new order every epoch.
        loss: `(predict, batch) -> scalar`; default `classification_loss`.
        epochs: passes over the batches; 250 in ainsworth2023's code.
        point: "midpoint", or "random" for a point lam = u / (u + v) of the path, u and v uniform, at every batch.
        keep: which permutation is returned: "best" (the code's) or "last".
        seed: seed of the random points.
        warmup: epochs in which the rate rises linearly from zero.
        schedule: what the rate does then: "constant", or "cosine" for half a wave down to zero at the end.
        optimizer: "sgd" (the code's) or "adam".
        rate: learning rate; 1e-2 in the code.
        momentum: of "sgd"; 0.9 in the code.
        weight_decay: L2 penalty on T.
        projection: matches T and B; default `WeightMatching()`, as in the code.

    Raises:
        UsageError: batches that can be read only once, none at all, an unknown setting, or a loss that is no finite
            number at the very first batch.

    Source: ainsworth2023, section 3.3 and Alg. 2.
    Differs: gradients of tensors that no group moves move T as well, which changes no projection.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0
    projection: Matcher = field(default_factory=WeightMatching)
    task: ClassVar[str] = "straight-through"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {**LossFollowing.choices, "optimizer": ("sgd", "adam")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.rate < math.inf and 0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            got = f"rate={self.rate}, momentum={self.momentum}, weight_decay={self.weight_decay}"
            raise UsageError(got, "no negative rate or decay, and a momentum below 1", "see the defaults")

    @classmethod
    def by_adam(cls, model: nn.Module, batches: Iterable[Any], **settings: Any) -> Self:
        """Return the recipe of the later code of ito2025's group, for batches of 256: Adam, 10 epochs, the last pi.

        That code has `point="midpoint"` and, as a variant, `point="random"`. `settings` replaces any of it.
        """
        recipe = {"optimizer": "adam", "rate": 1e-3, "epochs": 10, "keep": "last"}
        return cls(model, batches, **{**recipe, **settings})

    @classmethod
    def by_steep_sgd(cls, model: nn.Module, batches: Iterable[Any], *, deep: bool = False, **settings: Any) -> Self:
        """Return the recipe of earlier code by one of ito2025's authors: SGD at high rates, 100 epochs, the best pi.

        For MLPs the rate is 0.5, on batches of 500; for `deep` networks 1.0 after one epoch of warm-up, then down by
        half a cosine, on batches of 250; momentum is 0.9. `settings` replaces any of it.
        """
        recipe: dict[str, Any] = {"rate": 0.5, "weight_decay": 1e-4, "epochs": 100}
        if deep:
            recipe |= {"rate": 1.0, "warmup": 1.0, "schedule": "cosine"}
        return cls(model, batches, **{**recipe, **settings})

    def mover(self, spec: PermutationSpec, params_a: Params, params_b: Params, start: Permutation) -> Mover:
        """Return the free copy; the first projection begins at `start`."""
        return _Copy(self, spec, params_a, params_b, start)


@dataclass
class _Copy:
    """The free copy of the moved model, which begins at the reference.

    Args:
        settings: of the run.
        spec: what may be permuted.
        a: the reference.
        b: the moved model.
        last: the last projection.
        certificate: of all assignments so far.
    """

    settings: StraightThrough
    spec: PermutationSpec
    a: Params
    b: Params
    last: Permutation
    certificate: Certificate = field(default_factory=Certificate)

    def __post_init__(self) -> None:
        trained = {n: t for n, t in self.a.items() if n not in self.spec.buffers and t.is_floating_point()}
        self.copy = map_tensors(trained, lambda _, t: t.detach().to(compute_dtype(t), copy=True).requires_grad_())
        free, own = list(dict.fromkeys(self.copy.values())), self.settings
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(free, own.rate, weight_decay=own.weight_decay)
            if own.optimizer == "adam"
            else torch.optim.SGD(free, own.rate, own.momentum, weight_decay=own.weight_decay)
        )

    def place(self) -> Place:
        """Project the copy to the nearest order of the moved model."""
        copy = {**self.a, **{name: tensor.detach() for name, tensor in self.copy.items()}}
        found = self.settings.projection.match(self.spec, copy, self.b, self.last, silent)
        if found.stop is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        self.certificate += found.certificate
        self.last = found.permutation
        return Place(self.last, self.last.apply(self.b), self.copy, is_hard=True)
