"""Figures of why networks merge: singular vectors, what layers see, and the plane through three networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from onebasin.analysis.calibration import Calibration
from onebasin.analysis.inputs import InputAlignment
from onebasin.analysis.plane import Plane
from onebasin.analysis.spectrum import Spectrum
from onebasin.report.figures import STYLES, tidy

# Panels of a figure at most; of deeper networks, layers are drawn at equal distances from first to last.
PANELS, COLUMNS = 12, 4
COLOURS = tuple(colour for colour, _ in STYLES)
GAMMAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)


def alignment_figure(
    rows: Mapping[str, Mapping[str, Spectrum | Sequence[Spectrum]]], gammas: Sequence[float] = (0.0, 0.3)
) -> Figure:
    """Return bars of R, the agreement of singular vectors: a panel per network, a bar per label and threshold.

    Args:
        rows: title of the panel (which may be empty) -> label -> comparison, or one per trial, of which mean and
            standard deviation are drawn; as `{"MLP": {"as trained": naive, "weight matching": [one, other]}}`.
        gammas: thresholds.
    """
    most = max(map(len, rows.values()))
    figure, panels = _panels(len(rows), 1.8 + 0.55 * most * len(gammas), 3.7)
    for ax, (title, labelled) in zip(panels, rows.items(), strict=True):
        width = 0.8 / len(labelled)
        for number, (label, spectra) in enumerate(labelled.items()):
            trials = [spectra] if isinstance(spectra, Spectrum) else list(spectra)
            values = [[trial.at(gamma).alignment for trial in trials] for gamma in gammas]
            places = [place + (number - (len(labelled) - 1) / 2) * width for place in range(len(gammas))]
            spread = [stdev(one) for one in values] if len(trials) > 1 else None
            means = list(map(fmean, values))
            bars = ax.bar(places, means, 0.92 * width, yerr=spread, capsize=3, color=_colour(number), label=label)
            ax.bar_label(bars, list(map(_two_digits, means)), fontsize="small", padding=2)
        ax.set_xticks(range(len(gammas)), [_kept_words(gamma, trials[0].absolute) for gamma in gammas])
        ax.axhline(0, color="black", linewidth=0.8)
        ax.sharey(panels[0])
        ax.margins(y=0.15)
        _title(ax, title)
        tidy(ax)
        ax.grid(visible=False, axis="x")
    _shared(figure, panels, "agreement R of singular vectors\n(1: the same, 0: unrelated)", 0)
    return figure


def spectrum_figure(spectrum: Spectrum, labels: tuple[str, str] = ("model A", "model B")) -> Figure:
    """Return the singular values of both models against their rank, a panel per weight.

    Args:
        spectrum: any comparison of the two; permutations leave singular values alone.
        labels: names of the reference and the other model.
    """
    names, left_out = _chosen(spectrum.layers)
    figure, panels = _panels(len(names), 3.1, 2.7)
    for ax, name in zip(panels, names, strict=True):
        layer = spectrum.layers[name]
        for number, values in enumerate((layer.values_a, layer.values_b)):
            colour, dashes = COLOURS[1 - number], ("-", "--")[number]
            ax.plot(range(1, len(values) + 1), values, dashes, color=colour, linewidth=2, label=labels[number])
        _scale(ax, [*layer.values_a.tolist(), *layer.values_b.tolist()])
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlabel("rank of the singular value")
        _title(ax, f"{name}\n{100 * layer.difference:.0f} % apart, {labels[1]} is {layer.ratio:.2f} × {labels[0]}")
        tidy(ax)
    _shared(figure, panels, "singular value", left_out)
    return figure


def input_figure(inputs: InputAlignment, gamma: float = 0.3) -> Figure:
    """Return what each layer's inputs hold along each right singular vector of its weight, against singular value.

    Args:
        inputs: from `input_alignment`.
        gamma: threshold of a large singular value, drawn as a line.
    """
    names, left_out = _chosen(inputs.layers)
    figure, panels = _panels(len(names), 3.1, 2.9)
    for ax, name in zip(panels, names, strict=True):
        layer = inputs.layers[name]
        large = layer.values >= gamma * layer.values[:1]
        relative = layer.values / layer.values[:1]
        words = f"at least {gamma:g} × the largest"
        for chosen, colour, label in (
            (~large, COLOURS[1], "other vectors"),
            (large, COLOURS[0], f"large vectors: {words}"),
        ):
            ax.plot(relative[chosen], layer.moments[chosen], ".", color=colour, markersize=5, label=label)
        ax.axvline(gamma, color="black", linewidth=0.8, linestyle=":")
        _scale(ax, layer.moments.tolist())
        ax.set_xlim(0, 1.05)
        ax.set_xlabel("singular value / largest")
        kept, share = layer.kept(gamma), layer.share(gamma)
        _title(ax, f"{name}\n{kept} of {layer.directions} directions hold {share:.0%}")
        tidy(ax)
    _shared(figure, panels, "mean square of the layer's input\nalong the singular vector", left_out)
    return figure


def heat_figure(spectra: Mapping[str, Spectrum], gammas: Sequence[float] = GAMMAS) -> Figure:
    """Return R of each layer by itself for each threshold, as a map per comparison, with the numbers in it.

    Args:
        spectra: title -> comparison of the same layers, as `{"as trained": naive, "matched": matched}`.
        gammas: thresholds, one per column.
    """
    layers = list(next(iter(spectra.values())).layers)
    height = 1.4 + 0.3 * (len(layers) + 1)
    figure = Figure(figsize=(1.6 + (0.55 * len(gammas) + 0.4) * len(spectra), height), layout="constrained")
    panels = figure.subplots(1, len(spectra), squeeze=False, sharey=True)[0]
    for ax, (title, spectrum) in zip(panels, spectra.items(), strict=True):
        found = [spectrum.at(gamma) for gamma in gammas]
        rows = [[one.layer_alignment[name] for one in found] for name in layers] + [[one.alignment for one in found]]
        image = ax.imshow(rows, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
        for row, values in enumerate(rows):
            for column, value in enumerate(values):
                colour = "white" if abs(value) > 0.6 else "black"
                ax.text(column, row, _two_digits(value), ha="center", va="center", fontsize="small", color=colour)
        ax.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
        ax.set_yticks(range(len(layers) + 1), [*layers, "all layers"])
        ax.axhline(len(layers) - 0.5, color="black", linewidth=1)
        ax.set_xlabel(f"threshold γ: vectors with a singular\nvalue of at least γ{_times(spectrum.absolute)}")
        _title(ax, title)
    figure.colorbar(image, ax=list(panels), label="agreement R of\nsingular vectors", shrink=0.9)
    return figure


def plane_figure(
    planes: Plane | Mapping[str, Plane],
    labels: Sequence[str] = ("A", "B", "C"),
    *,
    metric: str = "loss",
    levels: int = 14,
) -> Figure:
    """Return a contour map of one metric on the plane through three networks, a panel per plane on one colour scale.

    Args:
        planes: one, or title -> plane, as one per matcher.
        labels: names of the three networks.
        metric: any name of `Plane.metrics`.
        levels: number of contours, at equal steps of the logarithm of a loss and of other metrics themselves.
    """
    given = {"": planes} if isinstance(planes, Plane) else dict(planes)
    figure, panels = _panels(len(given), 4.9, 4.2)
    grids = [np.array(plane.metrics[metric]) for plane in given.values()]
    low, high = min(grid.min() for grid in grids), max(grid.max() for grid in grids)
    spaced = np.geomspace if metric == "loss" and low > 0 else np.linspace
    edges = spaced(low, high if high > low else low + 1, levels)
    edges[-1] *= 1 + 1e-9 * (edges[-1] > 0)  # the highest point lies within the last band, not on its edge
    for ax, (title, plane), grid in zip(panels, given.items(), grids, strict=True):
        filled = ax.contourf(plane.x, plane.y, grid, edges, cmap="viridis")
        ax.contour(plane.x, plane.y, grid, edges, colors="white", linewidths=0.4)
        ax.plot(*zip(*plane.corners, plane.corners[0], strict=True), ":", color="white", linewidth=1)
        for (x, y), label, value in zip(plane.corners, labels, plane.corner_metrics[metric], strict=True):
            ax.plot([x], [y], "o", color="white", markeredgecolor="black", markersize=7)
            ax.annotate(
                f"{label}: {value:.3f}",
                (x, y),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                fontsize="small",
                bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.85, "linewidth": 0},
            )
        ax.set_aspect("equal")
        ax.set_xlabel(f"distance from {labels[0]} towards {labels[1]}")
        ax.set_ylabel(f"distance from their line\ntowards {labels[2]}")
        _title(ax, title)
    unit = {"loss": "loss (nats per example)"}.get(metric, metric)
    bar = figure.colorbar(filled, ax=list(panels), label=unit, shrink=0.9)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1) if metric.endswith("accuracy") else "{x:.2g}")
    return figure


def reliability_figure(calibrations: Mapping[str, Calibration]) -> Figure:
    """Return how often predictions came true against the probability they had, a line per label; below, how many.

    Args:
        calibrations: label -> what `calibration` found.
    """
    figure = Figure(figsize=(5.4, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], ":", color="black", linewidth=1, label="perfect")
    for (label, found), (colour, dashes) in zip(calibrations.items(), STYLES * len(calibrations), strict=False):
        full = [(s, o, c) for s, o, c in zip(found.predicted, found.observed, found.counts, strict=True) if c]
        said, true, counts = zip(*full, strict=True)
        above.plot(said, true, dashes, marker="o", markersize=4, color=colour, label=f"{label}: {found.error:.4f}")
        below.plot(said, counts, dashes, marker="o", markersize=3, color=colour, linewidth=1)
    above.set_ylabel("share that came true")
    above.legend(title="expected calibration error", frameon=False, fontsize="small", title_fontsize="small")
    above.set_aspect("equal")
    below.set_yscale("log")
    below.set_ylabel("predictions")
    below.set_xlabel("predicted probability")
    for ax in (above, below):
        tidy(ax)
    return figure


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels in rows of at most `COLUMNS`."""
    rows = -(-count // COLUMNS)
    columns = -(-count // rows)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in grid[count:]:
        ax.set_axis_off()
    return figure, list(grid[:count])


def _chosen(layers: Mapping[str, object]) -> tuple[list[str], int]:
    """Return the layers to draw, at equal distances from first to last, and how many are left out."""
    names = list(layers)
    if len(names) <= PANELS:
        return names, 0
    places = [round(number * (len(names) - 1) / (PANELS - 1)) for number in range(PANELS)]
    return [names[place] for place in places], len(names) - PANELS


def _shared(figure: Figure, panels: Sequence[Axes], quantity: str, left_out: int) -> None:
    """Put one name on the vertical axes and one legend below all panels."""
    figure.supylabel(quantity, fontsize="medium")
    handles, labels = panels[0].get_legend_handles_labels()
    title = f"{left_out} layers in between are not drawn" if left_out else None
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, title=title)


def _scale(ax: Axes, values: Sequence[float]) -> None:
    """Draw values that span a decade or more on a logarithmic axis, down to 10^-4 of the largest."""
    high = max(values, default=1.0)
    low = max(min((value for value in values if value > 0), default=high), 1e-4 * high)
    if high > 10 * low:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(low / 1.5, high * 1.5)
    else:
        ax.set_ylim(0, 1.1 * high)


def _kept_words(gamma: float, absolute: bool) -> str:
    return "all singular\nvectors" if gamma == 0 else f"large ones: at least\n{gamma:g}{_times(absolute)}"


def _times(absolute: bool) -> str:
    return "" if absolute else " × the largest"


def _two_digits(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no "-0.00"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _title(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize="medium", loc="left")
