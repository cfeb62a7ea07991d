"""What is done to merged networks so that their units behave: statistics of batch norm, REPAIR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from cyclopts import Parameter
from torch import Tensor, nn

from onebasin.batchnorm import recompute_batchnorm
from onebasin.cli.options import has_batchnorm, ready_for
from onebasin.cli.resolve import guarded, load_batches
from onebasin.cli.terminal import note
from onebasin.errors import UsageError
from onebasin.interpolate import Interpolation, lerp
from onebasin.merging.repair import Repairs, repair
from onebasin.params import Params
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec


@dataclass(frozen=True)
class Mending:
    """What is done to a network between others before it is used.

    Args:
        recompute_batchnorm: Recompute its batch-norm statistics, on --batchnorm-data or --data.
        repair: Give its units the mean and deviation that they have in the models (REPAIR), on the same inputs; the
            statistics of batch norm are recomputed, too. --matcher best then finds the order that is best after it.
        batchnorm_data: Callable that returns batches of inputs for these; alone it means --recompute-batchnorm.
    """

    recompute_batchnorm: bool = False
    repair: bool = False
    batchnorm_data: str | None = None

    def used(self) -> tuple[str, ...]:
        """Return the flags of others that are used."""
        return ("--data",) if (self.recompute_batchnorm or self.repair) and self.batchnorm_data is None else ()

    def tools(self, data: str | None) -> Tools:
        """Load the inputs; `data` is what --data says.

        Raises:
            UsageError: something is to be done, but there are no inputs.
        """
        flag, name = ("--data", data) if self.used() else ("--batchnorm-data", self.batchnorm_data)
        if self.used() and name is None:
            got = f"{'--repair' if self.repair else '--recompute-batchnorm'} without inputs"
            do = "name a callable that returns batches of inputs, a few thousand examples in all"
            raise UsageError(got, "--data or --batchnorm-data package.module:callable", do)
        return Tools(self.repair, f"{flag} {name}", None if name is None else load_batches(name, flag))


@dataclass(frozen=True)
class Tools:
    """What networks are mended with.

    Args:
        repair: see `Mending`.
        what: where the inputs come from.
        batches: the inputs; None: nothing is done.
    """

    repair: bool
    what: str
    batches: Iterable[Any] | None = field(repr=False)

    def mend(
        self,
        model: nn.Module,
        spec: PermutationSpec,
        merged: Mapping[str, Tensor],
        ends: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float] | None,
        progress: Progress = silent,
    ) -> tuple[Params, dict[str, str]]:
        """Return mended params, and layer -> why it was left as it is."""
        batches = self.batches
        if batches is None:
            return dict(merged), {}
        params = ready_for(model, dict(merged))
        if not self.repair:
            return guarded(lambda: recompute_batchnorm(model, params, batches, progress), self.what, batches), {}
        return guarded(lambda: repair(model, spec, params, ends, batches, weights, progress), self.what, batches)

    def path(self, model: nn.Module, spec: PermutationSpec, left: dict[str, str]) -> Interpolation:
        """Return how networks on a straight path are made: repaired between the ends, if that is wanted.

        What is left as it is will be noted in `left`. Statistics of batch norm are left to `evaluate_path`.
        """
        batches = self.batches
        last: list[tuple[Mapping[str, Tensor], Repairs]] = []  # the end that was moved: its line has many points

        def between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], lam: float) -> Params:
            plain = lerp(a, b, lam)
            if batches is None or not 0 < lam < 1:
                return plain
            if not last or last[0][0] is not b:
                last[:] = [(b, guarded(lambda: Repairs(model, spec, [a, b], batches), self.what, batches))]
            repairs = last[0][1]
            left.update(repairs.left)
            params = ready_for(model, plain)
            return guarded(lambda: repairs.of(params, [1 - lam, lam]), self.what, batches)

        return between if self.repair else lerp

    def remark(self, spec: PermutationSpec, done: str) -> None:
        """Say what was not done, if it matters or was asked for: `done` to the statistics of batch norm instead."""
        if self.batches is None and has_batchnorm(spec):
            note(f"batch-norm statistics were {done}; give --batchnorm-data to recompute them")
        if self.batches is not None and not self.repair and not has_batchnorm(spec):
            note(f"{self.what} changed nothing: there is no batch norm whose statistics could be recomputed")


def left_alone(left: Mapping[str, str]) -> None:
    """Say which layers were not repaired, and why."""
    reasons: dict[str, list[str]] = {}
    for layer, why in left.items():
        reasons.setdefault(why, []).append(layer)
    for why, layers in reasons.items():
        note(f"not repaired: {', '.join(layers[:5])}{f' and {len(layers) - 5} more' * (len(layers) > 5)}: {why}")


MendingFlags = Annotated[Mending, Parameter(name="*")]
MENDING = Mending()
