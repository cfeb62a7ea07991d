"""Which matcher a verb uses, and the inputs on which it compares two networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter
from torch import nn

from onebasin.activations import Activations
from onebasin.cli.options import Architecture, on_device_of
from onebasin.cli.resolve import guarded, load_batches
from onebasin.errors import UsageError
from onebasin.matching import ActivationMatching, Matcher, WeightMatching
from onebasin.moments import CrossStatistics
from onebasin.params import Params
from onebasin.progress import Progress
from onebasin.spec import PermutationSpec
from onebasin.synthetic import synthetic_batches


@dataclass(frozen=True)
class Choice:
    """Which matcher, and what it looks at.

    Args:
        matcher: "weight": the closest weights; "activation": the closest activations, on --data or --synthetic inputs.
        data: Callable that returns batches of inputs, for activation matching.
        synthetic: Draw inputs at random, shaped as --inputs, for activation matching without data.
        statistic: What activation matching compares: "product", as published, or "correlation".
    """

    matcher: Literal["weight", "activation"] = "weight"
    data: str | None = None
    synthetic: bool = False
    statistic: Literal["product", "correlation"] = "product"

    def check(self) -> None:
        """Raise `UsageError` if the flags contradict each other."""
        given = self.data is not None or self.synthetic
        if self.matcher == "weight" and given:
            raise UsageError("--data or --synthetic", "them with --matcher activation", "add it, or leave them out")
        if self.matcher == "activation" and (self.data is None) != self.synthetic:
            got = "both --data and --synthetic" if given else "--matcher activation without inputs"
            do = "name a callable that returns batches, or have inputs drawn at random"
            raise UsageError(got, "either --data package.module:callable or --synthetic", do)

    def module(self, architecture: Architecture, *, needed: bool = False) -> nn.Module | None:
        """Return the model if the matcher runs it, or if it is `needed` for something else.

        Raises:
            UsageError: the flags contradict each other, or there is no model.
        """
        self.check()
        return architecture.build() if needed or self.matcher == "activation" else None

    def build(self, weight: WeightMatching, architecture: Architecture, model: nn.Module | None) -> Matcher:
        """Return the matcher; `model` is not used for weight matching.

        Raises:
            UsageError: the inputs cannot be had.
        """
        if self.matcher == "weight" or model is None:
            return weight
        if self.data is not None:
            batches, what = load_batches(self.data, "--data"), f"--data {self.data}"
        else:
            example, what = architecture.example_inputs(model), "--synthetic"
            batches = guarded(lambda: synthetic_batches(model, example), what)
        activations = Activations(model, batches, batchnorm=self.synthetic, outputs=architecture.held())

        def measure(spec: PermutationSpec, a: Params, b: Params, progress: Progress) -> dict[str, CrossStatistics]:
            one, other = on_device_of(model, a), on_device_of(model, b)
            return guarded(lambda: activations(spec, one, other, progress), what)

        return ActivationMatching(measure, self.statistic)


ChoiceFlags = Annotated[Choice, Parameter(name="*", group="Matcher")]
CHOICE = Choice()
