"""A criterion of alignments that follows the network itself. No labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from onebasin.errors import UsageError, no_batches
from onebasin.functional import (
    BatchLoss,
    Predict,
    channels_last,
    check_repeatable,
    eval_mode,
    inputs_of,
    logits_of,
    loss_of,
    with_params,
)
from onebasin.interpolate import lerp
from onebasin.matching.objective import Feature, Objective
from onebasin.params import Params, map_tensors
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# So many batches tell good orders from bad ones.
FEW = 8


@dataclass(frozen=True, eq=False)
class Criterion:
    """How far the network half way between two models is from agreeing with them.

        J(pi) = mean over inputs x of the cross entropy of softmax f((A + pi(B)) / 2, x) against the mean of the two
                models' own softmaxes, in nats per example

    It needs inputs, but no labels. Batch norm normalises by the statistics of the batch. Batches count alike, whatever
    their sizes. The classes are on axis 1 of the output; on the last one if the first input holds integers (tokens).

    Args:
        model: the architecture, a classifier, on the device of the reference.
        batches: inputs: tensors, `(inputs, labels)`, or dicts of keyword inputs, readable many times. About 1000
            inputs are enough to tell good alignments from bad ones.
        loss: `(predict, batch) -> scalar`, to be used in the place of J for networks that are no classifiers.

    Raises:
        UsageError: batches that can be read only once.
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: BatchLoss | None = None

    def __post_init__(self) -> None:
        check_repeatable(self.batches)

    def between(self, params_a: Params, params_b: Params) -> Between:
        """Return the criterion for two models, in any order of their units.

        Raises:
            UsageError: there are no batches.
        """
        return Between(self, params_a, params_b)

    def subject(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> Subject:
        """Return what is looked at of two models: themselves."""
        return Subject(self, spec, params_a, params_b)

    def few(self) -> Criterion:
        """Return the criterion of eight batches at most, evenly spread."""
        batches = list(self.batches)
        return replace(self, batches=batches[:: math.ceil(len(batches) / FEW) or 1])

    def split(self) -> tuple[Criterion, Criterion]:
        """Return the criterion of most batches and that of the rest: half of them, eight at most.

        Both are of the same batch if there is but one.
        """
        batches = list(self.batches)
        every = max(2, math.ceil(len(batches) / FEW))
        fitted = [batch for number, batch in enumerate(batches) if number % every != 1]
        return replace(self, batches=fitted), replace(self, batches=batches[1::every] or batches)

    def mode(self) -> AbstractContextManager[None]:
        """Put the model into eval mode, but batch norm into train mode."""
        return eval_mode(self.model, [module for module in self.model.modules() if isinstance(module, _BatchNorm)])


@dataclass(frozen=True, eq=False)
class Subject:
    """What a criterion looks at of two models: maybe networks with more tensors than theirs, but of the same groups.

    Args:
        criterion: of these networks.
        spec: their symmetries.
        a: the reference.
        b: the moved network.
    """

    criterion: Criterion
    spec: PermutationSpec
    a: Params
    b: Params

    def order(self, permutation: Permutation) -> Permutation:
        """Return a permutation of the models as one of these networks."""
        return Permutation(self.spec, permutation.indices)


def criterion_of(matcher: object) -> Criterion | None:
    """Return the criterion that a matcher lowers, its `criterion`; None if it goes by weights or activations."""
    found = getattr(matcher, "criterion", None)
    return found if isinstance(found, Criterion) else None


class Between:
    """A criterion for the line between two models.

    Args:
        criterion: which.
        a: the reference.
        b: the moved model.
    """

    def __init__(self, criterion: Criterion, a: Params, b: Params) -> None:
        self.criterion, self.a, self.b = criterion, a, b
        self._numbers: Sequence[int] | None = None  # of the batches of a part
        self._targets: dict[int, Tensor] = {}  # by number of the batch; a part has them in common with the whole
        for first in criterion.batches:
            self._is_for_channels_last = self._runs_channels_last(first)
            break
        else:
            raise no_batches()

    def at(self, permutation: Permutation) -> float:
        """Return J of `permutation`.

        Raises:
            UsageError: it is not finite.
        """
        return value_of(self.checked(self.losses(self.middle(permutation))))

    def checked(self, losses: list[Tensor]) -> list[Tensor]:
        """Return the losses of all batches.

        Raises:
            UsageError: one is not finite.
        """
        for number, loss in enumerate(losses, 1):
            if not loss.isfinite().all():
                do = "look at the inputs and the loss, and whether both models give finite outputs"
                got = f"a criterion of {loss.mean().item()} at the midpoint, on batch {number}"
                raise UsageError(got, "a finite number", do)
        return losses

    def middle(self, permutation: Permutation) -> Params:
        """Return the network half way to the moved model, in this order of its units."""
        return lerp(self.a, permutation.apply(self.b), 0.5)

    def gains(self, gradient: Params, permutation: Permutation, groups: Iterable[str]) -> dict[str, Tensor]:
        """Return the gain matrices of < gradient, pi(B) > for some groups, all others as in `permutation`."""
        spec = permutation.spec
        names = [name for name in spec.matched if name in gradient]
        objective = Objective(spec, tuple(Feature(name, gradient[name], self.b[name]) for name in names))
        return {group: objective.gain(permutation, group) for group in groups}

    def losses(self, middle: Params, enough: Callable[[list[Tensor]], bool] | None = None) -> list[Tensor]:
        """Return the losses of the network with the weights `middle`, batch by batch, or until there are `enough`.

        They are `Float64[Tensor, " inputs"]`; of a loss of one's own, a single one for the batch.
        """
        found: list[Tensor] = []
        with torch.no_grad(), self.criterion.mode():
            for loss, _ in self._losses(middle):
                found.append(loss.double().cpu())
                if enough is not None and enough(found):
                    break
        return found

    def slopes(self, middle: Params, draws: int, generator: torch.Generator) -> Iterator[Slopes]:
        """Yield the gradients of J at `middle`, batch by batch, for every parameter that J depends on.

        Args:
            middle: the weights.
            draws: how often classes are drawn for each batch.
            generator: what draws them.
        """
        names = [name for name, _ in self.criterion.model.named_parameters(remove_duplicate=False)]
        free = map_tensors(
            {name: middle[name] for name in names if middle[name].is_floating_point()},
            lambda _, tensor: tensor.detach().clone().requires_grad_(),
        )
        with torch.enable_grad(), self.criterion.mode():
            for loss, logits in self._losses({**middle, **free}):
                classes = _drawn(logits, draws, generator) if logits is not None and draws else []
                likelihoods = [cross_entropy(logits, one) for one in classes if logits is not None]
                count = classes[0].numel() if classes else 0
                yield Slopes(_gradient(loss.mean(), free), [_gradient(one, free) for one in likelihoods], count)

    def parts(self, count: int) -> Iterator[Between]:
        """Yield the criterion of the next `count` batches, or of all if there are no more, round and round."""
        batches = list(self._numbered())
        turns = itertools.cycle(batches)
        while True:
            part, chosen = copy(self), list(itertools.islice(turns, min(count, len(batches))))
            part.criterion = replace(self.criterion, batches=[batch for _, batch in chosen])
            part._numbers = [number for number, _ in chosen]
            yield part

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        batches = self.criterion.batches
        return enumerate(batches) if self._numbers is None else zip(self._numbers, batches, strict=True)

    def _target(self, number: int, batch: Any) -> Tensor:
        """Return the ends' mean softmax on a batch, `Float[Tensor, "inputs classes ..."]`, computed at first use."""
        if number not in self._targets:
            with torch.no_grad(), self.criterion.mode():
                ends = [_classes(self._predict(params), batch) for params in (self.a, self.b)]
            self._targets[number] = (ends[0].softmax(1) + ends[1].softmax(1)) / 2
        return self._targets[number]

    def _predict(self, params: Params) -> Predict:
        return with_params(self.criterion.model, channels_last(params) if self._is_for_channels_last else params)

    def _runs_channels_last(self, batch: Any) -> bool:
        """Return whether the model may run channels last."""
        params = channels_last(self.a)
        if all(value is self.a[name] for name, value in params.items()):
            return False
        try:
            with torch.no_grad(), self.criterion.mode():
                (self.criterion.loss or _classes)(with_params(self.criterion.model, params), batch)
        except RuntimeError:  # it calls `view`, or the batch does not fit: then it is said where it is used
            return False
        return True

    def _losses(self, middle: Params) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the losses of the inputs of every batch, and the logits they are made of."""
        predict = self._predict(middle)
        for number, batch in self._numbered():
            if self.criterion.loss:
                yield loss_of(self.criterion.loss, predict, batch).reshape(1), None
            else:
                logits, target = _classes(predict, batch), self._target(number, batch)
                yield cross_entropy(logits, target, reduction="none").reshape(len(logits), -1).mean(1), logits


@dataclass(frozen=True)
class Slopes:
    """Gradients on one batch.

    Args:
        own: of J.
        drawn: of the mean negative log likelihood of classes that the network's own output was asked to draw; their
            mean is zero, and `count` times their covariance the Gauss-Newton part of the Hessian of J. None of a loss
            of one's own.
        count: how many classes that is the mean of.
    """

    own: Params
    drawn: Sequence[Params]
    count: int


def _drawn(logits: Tensor, draws: int, generator: torch.Generator) -> list[Tensor]:
    shares = logits.detach().movedim(1, -1).softmax(-1)
    classes = torch.multinomial(shares.flatten(0, -2).cpu(), draws, replacement=True, generator=generator)
    return [one.reshape(shares.shape[:-1]).to(logits.device) for one in classes.unbind(1)]


def _gradient(loss: Tensor, free: Params) -> Params:
    unique = list(dict.fromkeys(free.values()))
    found = torch.autograd.grad(loss, unique, retain_graph=True, allow_unused=True)
    slopes = dict(zip(unique, found, strict=True))
    return {name: slope for name, tensor in free.items() if (slope := slopes[tensor]) is not None}


def _classes(predict: Predict, batch: Any) -> Tensor:
    """Return the logits with the classes on axis 1."""
    args, kwargs = inputs_of(batch)
    first = next(iter((*args, *kwargs.values())), None)
    logits = logits_of(predict, batch)
    return logits.movedim(-1, 1) if isinstance(first, Tensor) and not first.is_floating_point() else logits


def value_of(losses: Sequence[Tensor]) -> float:
    """Return J, given the losses of all batches."""
    return fmean(loss.mean().item() for loss in losses)
