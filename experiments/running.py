"""What every script does alike: its common options, its record, and bars for what was measured more than once."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

import onebasin as ob

ADDED = "midpoint test loss minus the mean of the ends (nats)\nbar: mean, dots: pairs"


def options(about: str | None, data: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with `--out`, `--models` and, with `data` as its help, a required `--data`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--out", type=Path, default=Path("experiments/results"), help="where record and figure go")
    parser.add_argument("--models", type=Path, help="keep trained weights here, and use those that are there")
    return parser


def command(name: str, parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """Return the command of a run; folders are left out, for they are the reader's own."""
    words = [f"python experiments/{name}.py"]
    for key, value in vars(args).items():
        if isinstance(value, Path):
            words += [f"--{key} DIR"] if key != "out" else []
        elif value != parser.get_default(key):
            values = value if isinstance(value, list) else [value]
            words += [f"--{key.replace('_', '-')}", *(shlex.quote(str(one)) for one in values)]
    return " ".join(words)


def lost(found: Mapping[str, float], ends: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the loss that a network between `ends` adds to their mean, and the accuracy that it lacks."""
    loss, accuracy = (fmean(end[metric] for end in ends) for metric in ("loss", "accuracy"))
    return {"loss": found["loss"] - loss, "accuracy": accuracy - found["accuracy"]}


def means(pairs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean barrier of every way over the pairs."""
    return {
        way: {metric: fmean(pair["barriers"][way][metric] for pair in pairs) for metric in barrier}
        for way, barrier in pairs[0]["barriers"].items()
    }


def judged(expected: Mapping[str, bool]) -> Mapping[str, bool]:
    """Print what was expected and whether it came so; return it."""
    for statement, holds in expected.items():
        print(f"{'as expected' if holds else 'NOT AS EXPECTED'}: {statement}")
    return expected


def keep(
    out: Path, name: str, command: str, settings: Mapping[str, Any], results: Mapping[str, Any], seconds: float
) -> None:
    """Write the record of a run to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    record = ob.record(command, settings, results, seconds)
    (out / f"{name}.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def bars(panels: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> Figure:
    """Draw a panel per title with a line per name: every value as a dot, their mean as a bar.

    Args:
        panels: title -> name -> values, or none; all panels have the lines of all, in one order.
        label: what the values are.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure = Figure(figsize=(3 + 2.9 * columns, 0.3 + rows * (0.9 + 0.21 * len(names))), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for ax, (title, lines) in zip(axes, panels.items(), strict=False):
        ax.barh(names, [fmean(lines[name]) if lines.get(name) else 0.0 for name in names], color="#56B4E9", height=0.7)
        for name, values in lines.items():
            ax.plot(values, [name] * len(values), "o", color="black", markersize=3)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_title(title, fontsize="medium", loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, axis="x")
        ax.locator_params(axis="x", nbins=4)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    axes[0].invert_yaxis()
    figure.supxlabel(label, fontsize="medium")
    return figure
