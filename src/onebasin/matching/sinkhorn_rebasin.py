"""Sinkhorn re-basin: soft orders moved by gradient descent on the loss between the two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from onebasin.matching.alignment import Certificate
from onebasin.matching.following import LossFollowing, Mover, Place
from onebasin.matching.sinkhorn import Balance, SoftOrders
from onebasin.matching.soft import apply_softly
from onebasin.params import Params, compute_dtype
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


@dataclass(frozen=True, eq=False)
class SinkhornRebasin(LossFollowing):
    """Minimise the loss half way between A and B in a soft order, L((A + P(B)) / 2), by gradient descent on the order.

    Each group has free logits X; its soft order is P = Sinkhorn(exp(X / temperature)), as in the solver `Sinkhorn`. At
    every batch P is also rounded to the nearest permutation pi by exact assignments, and the loss at (A + pi(B)) / 2 is
    taken on the same batch. Returned is the pi with the lowest of these, or the last one; the other is in
    `Alignment.other`. Groups nested under others have a matrix for each pair of units of their parents.

    `Alignment.objective` is minus the lowest loss of a pi so far: at the first batch, and after every epoch. Batch norm
    normalises by the statistics of the batch. When a loss is not finite the run ends; `stop` says so, and `note` at
    which batch.

    Costs of a batch: a forward and a backward pass, one more forward pass, the soft order of all weights, and one
    assignment per group. Memory: a soft copy of the model, and seven matrices n x n per group.

    Args:
        model: the architecture, on the device of the reference.
        batches: what `loss` takes, readable many times.
        loss: `(predict, batch) -> scalar`; default `classification_loss`.
        epochs: passes over the batches.
        point: where the loss is followed: "midpoint", or "random" for another point of the path at every batch.
        keep: which permutation is returned: "best" or "last".
        seed: seed of the random points and of the noise.
        warmup: epochs in which the rate rises linearly from zero.
        schedule: what the rate does then: "constant", or "cosine" for half a wave down to zero at the end.
        rate: learning rate of AdamW. It matters much: with few batches in all, try 1.0.
        temperature: the smaller, the closer the matrices are to permutations.
        normalisations: of all rows, then all columns, at every step.
        noise: standard deviation of the logits around the start, where they are 1 at its places.

    Raises:
        UsageError: batches that can be read only once, none at all, an unknown setting, or a loss that is no finite
            number at the very first batch.

    Source: pena2023, section 3.3 (losses at the midpoint and at a random point), with the defaults of its code.
    Differs: random points are drawn as in `StraightThrough`; the loss of the rounded order decides which is best; for
        the loss |A - P(B)|^2 there is `WeightMatching(solver="sinkhorn")`; further as in `Sinkhorn`.
    """

    epochs: int = 10
    rate: float = 0.1
    temperature: float = 1.0
    normalisations: int = 20
    noise: float = 0.1
    task: ClassVar[str] = "sinkhorn"

    def __post_init__(self) -> None:
        LossFollowing.__post_init__(self)
        self._balance()  # which checks the others

    def _balance(self) -> Balance:
        return Balance(self.rate, self.temperature, self.normalisations, self.noise, self.seed)

    def mover(self, spec: PermutationSpec, params_a: Params, params_b: Params, start: Permutation) -> Mover:
        """Return the soft orders of all groups, which begin at `start`, on the device of the reference."""
        devices = {tensor.device for tensor in params_a.values()}
        wide = [compute_dtype(params_a[name]) for name in spec.matched]
        dtype = max(wide, key=lambda dtype: dtype.itemsize, default=torch.float32)
        orders = SoftOrders(self._balance(), start, spec.sizes, dtype, min(devices, key=str))
        moved = {name: tensor.to(params_a[name].device) for name, tensor in params_b.items()}
        return _Soft(orders, moved, start)


class _Soft:
    """The moved model in a soft order.

    Args:
        orders: which.
        b: the moved model.
        start: what groups without units are left at.
    """

    def __init__(self, orders: SoftOrders, b: Params, start: Permutation) -> None:
        self.orders, self.b, self.start = orders, b, start
        self.optimizer = orders.balance.optimizer(orders.free)

    @property
    def certificate(self) -> Certificate:
        """How sure all assignments so far are."""
        return self.orders.certificate

    def place(self) -> Place:
        """Return the moved model in the present soft order, and the permutation next to it."""
        with torch.enable_grad():
            soft = apply_softly(self.b, self.orders(), self.start.spec)
        buffers = self.start.spec.buffers  # no gradient leads through batch norm's running statistics
        carrier = {name: tensor for name, tensor in soft.items() if tensor.requires_grad and name not in buffers}
        moved = {name: tensor.detach() for name, tensor in soft.items()}
        return Place(self.orders.rounded(self.start), moved, carrier, is_hard=False)
