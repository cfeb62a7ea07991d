"""Tables of why networks merge: distances, agreement of singular vectors, inputs, barriers between several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from onebasin.analysis.distance import Distance
from onebasin.analysis.inputs import InputAlignment
from onebasin.analysis.path import Curve
from onebasin.analysis.spectrum import Spectrum
from onebasin.analysis.taylor import FORMS, Taylor
from onebasin.report.tables import MOST_ROWS, NAME, add, new_table, tail

LARGE = 0.3  # the threshold besides 0 that ito2025 reports


def distance_table(found: Distance) -> Table:
    """Return one row per layer: L2 distance to the reference before and after matching, and how much closer."""
    shown = new_table("layer", ">distance as trained", ">matched", ">closer by")
    layers = dict(list(found.layers.items())[:MOST_ROWS])
    for name, layer in (layers | {_rest(len(found.layers) - len(layers), "layers"): found}).items():
        add(shown, tail(name, NAME), f"{layer.before:.4g}", f"{layer.after:.4g}", f"{layer.reduction:.1f} %")
    return shown


def legend(*, absolute: bool = False) -> str:
    """Return what the tables of singular vectors show; `absolute` is how thresholds are read."""
    read = "which count, by singular value" + ("" if absolute else " over the largest of the weight")
    apart = "Values apart: |s_B - s_A| / |s_A|."
    return f"R: agreement of singular vectors, 1 the same, 0 unrelated; γ: {read}. {apart}"


def vectors_table(naive: Spectrum, matched: Spectrum, gammas: Sequence[float] = (0.0, LARGE)) -> Table:
    """Return one row per weight: how alike singular values are, R before and after, how many vectors count.

    Args:
        naive: as trained.
        matched: with one network moved.
        gammas: thresholds: how many vectors the last one keeps is shown beside how many the first one does.
    """
    columns = [f">R {label}\nγ = {gamma:g}" for label in ("as trained", "matched") for gamma in gammas]
    shown = new_table("weight", ">values apart", *columns, ">large, of")
    sides = [spectrum.at(gamma) for spectrum in (naive, matched) for gamma in gammas]
    alone, counts = [side.layer_alignment for side in sides], sides[-1].counts
    names = list(naive.layers)[:MOST_ROWS]
    for name in names:
        layer = naive.layers[name]
        rs = [_r(layers[name]) for layers in alone]
        kept = f"{counts[name]} of {sides[0].counts[name]}"
        add(shown, tail(name, NAME), f"{layer.difference:.1%}", *rs, kept)
    total = [_r(side.alignment) for side in sides]
    whole = f"{sum(counts.values())} of {sum(sides[0].counts.values())}"
    add(shown, _rest(len(naive.layers) - len(names), "weights"), "", *total, whole)
    return shown


def sweep_table(spectra: Mapping[str, Spectrum], gammas: Sequence[float]) -> Table:
    """Return one row per threshold: R of each comparison over all weights, and how many vectors the first one keeps."""
    shown = new_table(">γ", *(f">R {label}" for label in spectra), ">vectors")
    for gamma in gammas:
        found = [spectrum.at(gamma) for spectrum in spectra.values()]
        add(shown, f"{gamma:g}", *(_r(one.alignment) for one in found), str(sum(found[0].counts.values())))
    return shown


def taylor_table(estimates: Mapping[str, Taylor], barriers: Mapping[str, float]) -> Table:
    """Return one row per model: both forms of the estimate at the midpoint, and the barrier where it was measured."""
    shown = new_table("at the midpoint", *(f">Taylor, {form}" for form in FORMS), ">measured by --eval")
    for name, found in estimates.items():
        truth = f"{barriers[name]:.4f}" if name in barriers else "-"
        add(shown, tail(name, NAME), *(f"{found.barrier(form):.4f}" for form in FORMS), truth)
    return shown


def inputs_table(found: InputAlignment) -> Table:
    """Return one row per weight: what part of its inputs lies along the singular vectors of large values."""
    shown = new_table("weight", ">large vectors", ">of directions", ">share of inputs", ">share of outputs")
    for name, layer in list(found.layers.items())[:MOST_ROWS]:
        shares = (f"{layer.share(LARGE):.1%}", f"{layer.output_share(LARGE):.1%}")
        add(shown, tail(name, NAME), str(layer.kept(LARGE)), str(layer.directions), *shares)
    return shown


def pairs_table(lines: Mapping[tuple[str, str], Curve], metric: str = "loss") -> Table:
    """Return one row per pair of models: one metric at both ends and the midpoint, and the barrier there."""
    shown = new_table("between matched models", ">first", ">midpoint", ">second", ">barrier at midpoint")
    for (one, other), line in lines.items():
        values = line.metrics[metric]
        numbers = (values[0], values[len(values) // 2], values[-1], line.barrier("midpoint", metric))
        add(shown, f"{tail(one, NAME // 2)} - {tail(other, NAME // 2)}", *(f"{number:.4f}" for number in numbers))
    return shown


def _r(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # no "-0.000"


def _rest(left_out: int, things: str) -> str:
    return f"all ({left_out} more {things} not shown)" if left_out else "all"
