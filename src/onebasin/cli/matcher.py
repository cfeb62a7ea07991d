"""Which matcher a verb uses, and the inputs on which it compares two networks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from torch import Tensor, nn

from onebasin.activations import Activations
from onebasin.best import Best
from onebasin.cli.options import Architecture, Matching, ready_for
from onebasin.cli.resolve import guarded, load_batches, load_callable
from onebasin.errors import UsageError
from onebasin.functional import BatchLoss, Predict, labels_of, logits_of
from onebasin.matching import (
    ActivationMatching,
    Alignment,
    Criterion,
    Matcher,
    SinkhornRebasin,
    StraightThrough,
    WeightMatching,
)
from onebasin.matching.align import MatcherName
from onebasin.matching.criterion import criterion_of
from onebasin.matching.following import classification_loss
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec
from onebasin.synthetic import synthetic_batches

BY_WEIGHTS = ("weight", "frank-wolfe", "sinkhorn")  # those that need no data
BY_LABELS = ("straight-through", "sinkhorn")  # those that follow a loss with labels, if there are data
# Matcher that takes inputs -> from where.
TAKES: dict[MatcherName, tuple[str, ...]] = {
    "activation": ("--data", "--synthetic"),
    "straight-through": ("--data",),
    "sinkhorn": ("--data",),
    "best": ("--data", "--synthetic"),
}
SHOWN = {"--data": "--data package.module:callable", "--synthetic": "--synthetic"}


@dataclass(frozen=True)
class Choice:
    """Which matcher, and what it looks at.

    Args:
        matcher: "weight": the closest weights; "frank-wolfe": the same, all groups at once; "activation": the closest
            activations; "straight-through": the lowest loss in between, learnt from labels; "sinkhorn": the same by
            soft orders, or the closest weights if there is no --data; "best": several of these and hybrids, chosen and
            then polished by what both networks say of the inputs: the one to use if it may take minutes.
        data: Callable that returns batches of inputs, or of (inputs, labels) for methods that follow a loss.
        synthetic: Draw inputs at random, shaped as --inputs, for activation or best without data.
        statistic: What activation matching compares: "product", as published, or "correlation".
        loss: Function of (logits, labels), the mean loss of a batch, for straight-through and sinkhorn in the place of
            cross entropy, and for best in the place of what both networks say.
        epochs: Passes of straight-through or sinkhorn over the data. Default: 250 and 10.
        rate: Learning rate of straight-through or sinkhorn. Default: 0.01 and 0.1.
        rounds: Of the polish of best, at most; 0 for neither descent nor polish.
    """

    matcher: MatcherName = "weight"
    data: str | None = None
    synthetic: bool = False
    statistic: Literal["product", "correlation"] = "product"
    loss: str | None = None
    epochs: int | None = None
    rate: float | None = None
    rounds: int = 10

    @property
    def follows_a_loss(self) -> bool:
        """Whether labels are needed."""
        return self.matcher in BY_LABELS and self.data is not None

    def check(self, used: Collection[str] = ()) -> None:
        """Raise `UsageError` if the flags contradict each other; `used` are those that the verb needs for itself."""
        name, takes = f"--matcher {self.matcher}", TAKES.get(self.matcher, ())
        given = [flag for flag, value in (("--data", self.data), ("--synthetic", self.synthetic or None)) if value]
        extra = [flag for flag in given if flag not in (*takes, *used)]
        if extra:
            others = [matcher for matcher, flags in TAKES.items() if extra[0] in flags]
            do = "add one of these, or leave it out"
            raise UsageError(f"{extra[0]} with {name}", f"it with --matcher {' or '.join(others)}", do)
        if len(given) > 1 or (not given and takes and self.matcher not in BY_WEIGHTS):
            got = "both --data and --synthetic" if given else f"{name} without inputs"
            do = "name a callable that returns batches" + ", or have inputs drawn at random" * (len(takes) > 1)
            raise UsageError(got, "either " * (len(takes) > 1) + " or ".join(SHOWN[flag] for flag in takes), do)
        self._check_use()
        if self.loss is not None and not (self.follows_a_loss or self.matcher == "best" or "--loss" in used):
            expected = (
                "it with --matcher best, straight-through or sinkhorn (with --data), or in analyze with --batches"
            )
            raise UsageError(f"--loss with {name}", expected, "add one of these, or leave it out")

    def _check_use(self) -> None:
        """Raise `UsageError` if a setting was given that the matcher does not have."""
        follows, labels = self.follows_a_loss, "straight-through or sinkhorn (with --data)"
        settings = (
            ("--epochs", self.epochs is not None, follows, labels),
            ("--rate", self.rate is not None, follows, labels),
            ("--rounds", self.rounds != Choice.rounds, self.matcher == "best", "best"),
            ("--statistic", self.statistic != Choice.statistic, self.matcher == "activation", "activation"),
        )
        for flag, given, used, others in settings:
            if given and not used:
                do = "add that, or leave it out"
                raise UsageError(f"{flag} with --matcher {self.matcher}", f"it with --matcher {others}", do)
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"--rate {self.rate}", "a positive number", "leave it out for the published one")

    def _check_weight_use(self, matching: Matching) -> None:
        """Raise `UsageError` if a setting of weight matching was given that goes into nothing."""
        if matching.seed != Matching.seed and self.matcher == "activation" and not self.synthetic:
            do = "leave it out: with data there is nothing random in it"
            raise UsageError("--seed with --matcher activation", "it with --synthetic, or another matcher", do)
        projecting = self.matcher == "straight-through"
        any_solver = projecting or (self.matcher in BY_WEIGHTS and not self.follows_a_loss)
        for name in ("solver", "features", "max_sweeps", "faq_steps"):
            used = (projecting or self.matcher == "weight") if name == "solver" else any_solver
            if getattr(matching, name) != getattr(Matching, name) and not used:
                names = "weight or straight-through" if name == "solver" else "weight, frank-wolfe or straight-through"
                got = f"--{name.replace('_', '-')} with --matcher {self.matcher}{' and --data' * self.follows_a_loss}"
                raise UsageError(got, f"it with --matcher {names}", "choose one of these, or leave it out")

    def module(
        self, architecture: Architecture, *, needed: bool = False, used: Collection[str] = ()
    ) -> nn.Module | None:
        """Return the model if the matcher runs it, or if it is `needed` for something else.

        Raises:
            UsageError: the flags contradict each other, or there is no model.
        """
        self.check(used)
        return architecture.build() if needed or self.follows_a_loss or self.matcher not in BY_WEIGHTS else None

    def build(
        self, matching: Matching, architecture: Architecture, model: nn.Module | None, *, repair: bool = False
    ) -> Matcher:
        """Return the matcher; `model` is not used by those that match weights alone.

        Args:
            matching: how weights are matched.
            architecture: which architecture.
            model: the model, if it was built.
            repair: the merged network will be repaired.

        Raises:
            UsageError: the inputs cannot be had, or a setting is out of range.
        """
        weight = matching.matcher()
        self._check_weight_use(matching)
        if model is None or (self.matcher in BY_WEIGHTS and not self.follows_a_loss):
            return weight if self.matcher == "weight" else replace(weight, solver=self.matcher)  # type: ignore[arg-type]
        batches, what = self._inputs(architecture, model, matching.seed)
        return OnModel(self._on(model, batches, weight, architecture, repair=repair), model, what, batches)

    def _inputs(self, architecture: Architecture, model: nn.Module, seed: int) -> tuple[Iterable[Any], str]:
        if self.data is not None:
            return load_batches(self.data, "--data"), f"--data {self.data}"
        example = architecture.example_inputs(model)
        return guarded(lambda: synthetic_batches(model, example, seed=seed), "--synthetic"), "--synthetic"

    def _on(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        weight: WeightMatching,
        architecture: Architecture,
        *,
        repair: bool,
    ) -> Matcher:
        drawn, held, loss = self.synthetic, architecture.held(), self._loss()
        if self.matcher == "activation":
            return ActivationMatching(Activations(model, batches, batchnorm=drawn, outputs=held), self.statistic)
        if self.matcher == "best":
            return Best(
                model, batches, loss, self.rounds, batchnorm=drawn, outputs=held, seed=weight.seed, repair=repair
            )
        given = {name: value for name in ("epochs", "rate") if (value := getattr(self, name)) is not None}
        settings = {"loss": loss or classification_loss, "seed": weight.seed, **given}
        if self.matcher == "sinkhorn":
            return SinkhornRebasin(model, batches, **settings)
        return StraightThrough(model, batches, projection=weight, **settings)

    def _loss(self) -> BatchLoss | None:
        if self.loss is None:
            return None
        function = load_callable(self.loss, "--loss", ("logits", "labels"))

        def loss(predict: Predict, batch: Any) -> Tensor:
            logits = logits_of(predict, batch)
            found: Tensor = guarded(lambda: function(logits, labels_of(batch).to(logits.device)), f"--loss {self.loss}")
            return found

        return loss


@dataclass(frozen=True)
class OnModel:
    """A matcher that runs a model: params are made ready for it, and what fails is told with its place."""

    matcher: Matcher
    model: nn.Module
    what: str
    batches: Iterable[Any] = field(repr=False)

    @property
    def criterion(self) -> Criterion | None:
        """What the matcher lowers, if it is of this kind."""
        return criterion_of(self.matcher)

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Match as the matcher does."""
        a, b = (ready_for(self.model, params) for params in (params_a, params_b))
        return guarded(lambda: self.matcher.match(spec, a, b, start, progress), self.what, self.batches)


ChoiceFlags = Annotated[Choice, Parameter(name="*", group="Matcher")]
CHOICE = Choice()
