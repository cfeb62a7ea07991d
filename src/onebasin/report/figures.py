"""Figures, drawn with matplotlib; no window is opened and no global state is touched."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from onebasin.analysis.path import KIND_MEANINGS, Curve, Kind
from onebasin.matching import Alignment

# What a barrier of an accuracy is, for which more is better; of a loss see KIND_MEANINGS.
DROPS: dict[Kind, str] = {
    "mean": "mean of the ends minus the lowest",
    "chord": "largest drop below the chord",
    "midpoint": "mean of the ends minus the midpoint",
}
# Colours that stay apart for colour-blind readers (Okabe and Ito), and line styles for print without colour.
STYLES = (("#D55E00", "--"), ("#0072B2", "-"), ("#009E73", "-."), ("#CC79A7", ":"), ("#E69F00", "--"))


def plot_barrier(
    curves: Mapping[str, Curve], ax: Axes | None = None, *, metric: str = "loss", kind: Kind = "mean"
) -> Axes:
    """Draw one metric along the paths, ends marked, the barrier of each in the legend.

    Args:
        curves: label -> curve, as `{"naive": ..., "matched": ...}`; curves that lack the metric are left out.
        ax: where to draw; default: a new figure, reached by `.figure` of the result.
        metric: "loss" (nats per example), "accuracy" (in [0, 1]), or any other name of `Curve.metrics`.
        kind: definition of the barrier, see `Curve.barrier`.
    """
    ax = _new_axes() if ax is None else ax
    share = metric.endswith("accuracy")
    for (label, curve), (colour, dashes) in zip(curves.items(), STYLES * len(curves), strict=False):
        if metric not in curve.metrics:
            continue
        values = curve.metrics[metric]
        barrier = curve.barrier(kind, metric)
        text = f"{100 * barrier:.1f} points" if share else f"{barrier:.3f}" + (" nats" if metric == "loss" else "")
        ax.plot(curve.lams, values, dashes, color=colour, label=f"{label}: {text}", linewidth=2)
        ax.plot([0, 1], [values[0], values[-1]], "o", color=colour, markersize=6, clip_on=False, zorder=5)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0\nmodel A", "0.25", "0.5", "0.75", "1\nmodel B"])
    ax.set_xlim(0, 1)
    ax.set_xlabel("position λ on the line from A to B")
    ax.set_ylabel({"loss": "loss (nats per example)"}.get(metric, metric))
    if share:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(ax, f"barrier: {(DROPS if share else KIND_MEANINGS)[kind]}", len(curves))
    tidy(ax)
    return ax


def barrier_figure(rows: Mapping[str, Mapping[str, Curve]], *, kind: Kind = "mean") -> Figure:
    """Return a figure with one row per title (which may be empty) and one panel per metric; see `plot_barrier`."""
    metrics = list(dict.fromkeys(m for curves in rows.values() for curve in curves.values() for m in curve.metrics))
    figure = Figure(figsize=(4.8 * len(metrics), 3.9 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(metrics), squeeze=False)
    for (title, curves), panels in zip(rows.items(), grid, strict=True):
        for metric, ax in zip(metrics, panels, strict=True):
            plot_barrier(curves, ax, metric=metric, kind=kind)
            ax.set_title(f"{title}: {metric}" if title else metric, fontsize="medium", loc="left")
    figure.draw_without_rendering()  # settles the ticks, whose labels decide how wide the margins must be
    return figure


def plot_history(alignment: Alignment, ax: Axes | None = None) -> Axes:
    """Draw the matching objective at the start and after every sweep.

    Args:
        alignment: what `align` returned.
        ax: where to draw; default: a new figure, reached by `.figure` of the result.
    """
    ax = _new_axes() if ax is None else ax
    values = alignment.objective
    ax.plot(range(len(values)), values, "o-", color=STYLES[1][0], linewidth=2, markersize=5)
    ax.set_xlabel("sweep over all groups")
    ax.set_ylabel("objective  Σ ⟨A, π(B)⟩")
    ax.set_title(f"{type(alignment.matcher).__name__}: {alignment.stop.name.lower()}", fontsize="medium", loc="left")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(ax)
    return ax


def _new_axes() -> Axes:
    return Figure(figsize=(4.8, 3.9), layout="constrained").subplots()


def _legend(ax: Axes, title: str, columns: int) -> None:
    # Below the axes: inside, a curve that is high in the middle and one that is low leave no place free.
    columns = columns if columns < 4 else 2  # more do not fit beside each other
    small = {"fontsize": "small", "title_fontsize": "small"}
    ax.legend(title=title, ncols=columns, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.24), **small)


def tidy(ax: Axes) -> None:
    """Take away what frames the panel above and to the right, and draw a light grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
