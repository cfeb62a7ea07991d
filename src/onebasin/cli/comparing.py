"""What `onebasin analyze` finds out about each model and its reference, and about all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from onebasin.analysis import (
    Curve,
    Distance,
    InputAlignment,
    Plane,
    Spectrum,
    Taylor,
    distance,
    evaluate_plane,
    input_alignment,
    pairwise_curves,
    spectrum,
    taylor_barrier,
)
from onebasin.analysis.evaluation import Loss
from onebasin.cli.measuring import Line
from onebasin.cli.resolve import guarded
from onebasin.interpolate import mean
from onebasin.layer_inputs import LayerInputs
from onebasin.matching import Alignment
from onebasin.params import Params
from onebasin.progress import Progress
from onebasin.report.tables_analysis import LARGE
from onebasin.spec import PermutationSpec
from onebasin.symmetry.export import Outputs

TRAINED, MATCHED = "as trained", "matched"
GAMMAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Pair:
    """One model and the reference.

    Args:
        moved: its weights in the order of the reference.
        alignment: how they were brought there.
        distance: L2 distances before and after.
        spectra: label -> comparison: with the model as trained and matched, and of the merged network with both.
        curves: label -> loss on the line from the reference, if that was measured.
        taylor: the estimate of the barrier, likewise.
    """

    moved: Params
    alignment: Alignment
    distance: Distance
    spectra: Mapping[str, Spectrum]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    taylor: Taylor | None = None

    @property
    def midpoint(self) -> float | None:
        """The barrier of the matched loss at the midpoint, if it was measured there."""
        curve = self.curves.get(MATCHED)
        return curve.barrier("midpoint") if curve and "loss" in curve.metrics and len(curve.lams) % 2 else None

    def to_json(self, gammas: Sequence[float]) -> dict[str, Any]:
        """Return plain values; R of every comparison at every threshold."""
        sweep = {
            label: {f"{gamma:g}": _agreement(found.at(gamma)) for gamma in gammas}
            for label, found in self.spectra.items()
        }
        found: dict[str, Any] = {"alignment": self.alignment.to_json(), "distance": self.distance.to_json()}
        found |= {"spectrum": self.spectra[TRAINED].to_json(), "agreement": sweep}
        found |= {"curves": {label: curve.to_json() for label, curve in self.curves.items()}} if self.curves else {}
        return found | ({"taylor": self.taylor.to_json()} if self.taylor else {})


@dataclass(frozen=True)
class Together:
    """What was measured of all models, or of the reference alone.

    Args:
        inputs: of every layer of the reference, along its singular vectors.
        lines: between every two matched models, of three or more.
        plane: through the first three of them.
    """

    inputs: InputAlignment | None = None
    lines: Mapping[tuple[str, str], Curve] = field(default_factory=dict)
    plane: Plane | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values of what there is."""
        found: dict[str, Any] = {} if self.inputs is None else {"inputs": self.inputs.to_json()}
        found |= {"lines": {" - ".join(two): line.to_json() for two, line in self.lines.items()}} if self.lines else {}
        return found | ({"plane": self.plane.to_json()} if self.plane else {})


@dataclass(frozen=True)
class Derivatives:
    """What is asked of data beside an evaluation.

    Args:
        model: the architecture.
        batches: of inputs and labels.
        loss: mean over a batch.
        doing: how errors in the user's code are introduced.
        outputs: as for the spec.
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: Loss = cross_entropy
    doing: str = "--batches"
    outputs: Outputs = None

    def taylor(self, reference: Params, moved: Params, progress: Progress) -> Taylor:
        """Estimate the barrier between two networks."""
        return guarded(
            lambda: taylor_barrier(self.model, reference, moved, self.batches, self.loss, progress=progress),
            self.doing,
            self.batches,
        )

    def inputs(self, reference: Params, progress: Progress) -> InputAlignment:
        """Lay the inputs of every layer along the singular vectors of its weight."""
        measure = LayerInputs(self.model, self.batches, patches=True, outputs=self.outputs)
        statistics = guarded(lambda: measure(reference, progress), self.doing, self.batches)
        return input_alignment(reference, statistics, progress=progress)


@dataclass(frozen=True)
class Vectors:
    """Which singular vectors count.

    Args:
        gamma: Thresholds: vectors count whose singular value is at least this share of the largest of the same weight;
            may be given several times.
        absolute: Read thresholds as singular values instead of shares.
        rank: Compute this many vectors of a weight at most, those of wide ones by a randomised method, whose residual
            the record has; thresholds must not ask for more. Default: all, exactly.
    """

    gamma: tuple[float, ...] = GAMMAS
    absolute: bool = False
    rank: int | None = None

    def check(self) -> None:
        """Raise `UsageError` if a threshold is out of range, before any work is done."""
        for one in self.gamma:
            Spectrum({}, one, self.absolute)

    @property
    def shown(self) -> tuple[float, ...]:
        """Thresholds shown layer by layer: all and the large ones of ito2025, where they can be had."""
        return (
            (0.0, LARGE) if self.rank is None and not self.absolute else tuple(sorted({self.gamma[0], self.gamma[-1]}))
        )

    def compare(self, spec: PermutationSpec, one: Params, other: Params, progress: Progress) -> Spectrum:
        """Compare two networks; whether `rank` is enough is told at the first weight."""
        least = min(self.gamma)
        return spectrum(spec, one, other, least, absolute=self.absolute, rank=self.rank, progress=progress)


def compare(
    spec: PermutationSpec, reference: Params, model: Params, alignment: Alignment, vectors: Vectors, progress: Progress
) -> Pair:
    """Compare two networks by their weights alone."""
    moved = alignment.permutation.apply(model)
    merged = mean([reference, moved])
    ends = {
        TRAINED: (reference, model),
        MATCHED: (reference, moved),
        "merged and A": (reference, merged),
        "merged and other": (moved, merged),
    }
    spectra = {label: vectors.compare(spec, one, other, progress) for label, (one, other) in ends.items()}
    return Pair(moved, alignment, distance(spec, reference, model, moved), spectra)


def measure_together(line: Line, models: Mapping[str, Params], grid: int, progress: Progress) -> Together:
    """Measure the lines between every two of three or more matched models, and the plane through the first three."""
    if len(models) < 3:
        return Together()
    batches = line.batches
    lines = guarded(
        lambda: pairwise_curves(line.model, models, line.evaluate, batchnorm_batches=batches, progress=progress),
        "a line between matched models",
    )
    three = list(models.values())[:3]
    plane = guarded(
        lambda: evaluate_plane(line.model, three, line.evaluate, grid, batchnorm_batches=batches, progress=progress),
        "the plane",
    )
    return Together(lines=lines, plane=plane)


def _agreement(found: Spectrum) -> dict[str, Any]:
    kept = {name: list(pair) for name, pair in found.kept.items()}
    return {"alignment": found.alignment, "layers": found.layer_alignment, "kept": kept}
