"""Width, rate, decay, length and start of training: which networks are easy to match, and what their spectra are.

    python experiments/ito_trends.py --data DIR [--net NAME] [--models DIR]

Appendices H.3 and H.4 of ito2025, and its remark on width. Expected: wider networks are easier; a larger rate or a
stronger weight decay makes spectra fall faster (fewer dominant singular values), barriers smaller and R higher. The
decay is an L2 penalty, since the networks are trained by Adam. Length of training and initialisation (PyTorch's, or
Flax's: normal weights of variance 1 / inputs, no biases) show how far R depends on what a paper may not mention.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from matplotlib.figure import Figure

import onebasin as ob
from collection import read
from ito import NETS, Lab, gathered, measured, parser_of, run, show, weight_matching
from networks import mlp
from running import judged
from training import Recipe, trained

NAME = "ito_trends"
WIDTHS, RATES, DECAYS, EPOCHS = (64, 128, 256, 512, 1024), (3e-4, 1e-3, 3e-3), (0.0, 1e-4, 1e-3), (1, 5, 20)
CLAIMED = "width", "rate", "decay"
# What is drawn: name of the axis -> quantity -> label.
DRAWN = {
    "barrier as trained\n(test loss, nats)": {"as trained": ""},
    "barrier after matching\n(test loss, nats)": {"barrier, test": ""},
    "agreement R of singular\nvectors after matching": {"R 0.3": "large vectors (γ = 0.3)", "R 0": "all vectors"},
    "share of vectors that\nγ = 0.3 keeps": {"share kept": ""},
}
AXES = {
    "width": "width of hidden layers",
    "rate": "learning rate",
    "decay": "weight decay",
    "epochs": "epochs of training",
    "start": "initialisation as in",
}
WIDTH = 512  # where it is not what is varied


def experiment(lab: Lab, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Train small sets of networks that differ in one setting, and match the pairs of each."""
    recipe = replace(NETS[args.net].recipe, epochs=args.epochs or NETS[args.net].recipe.epochs)
    studies: dict[str, dict[str, tuple[int, Recipe]]] = {
        "width": {f"{width}": (width, recipe) for width in args.widths},
        "rate": {f"{rate:g}": (WIDTH, replace(recipe, rate=rate)) for rate in RATES},
        "decay": {f"{decay:g}": (WIDTH, replace(recipe, decay=decay)) for decay in DECAYS},
        "epochs": {f"{epochs}": (WIDTH, replace(recipe, epochs=epochs)) for epochs in EPOCHS},
        "start": {name: (WIDTH, replace(recipe, flax=name == "Flax")) for name in ("PyTorch", "Flax")},
    }
    done: dict[tuple[int, Recipe], dict[str, Any]] = {}
    tables = {}
    for study, rows in studies.items():
        for name, (width, how) in rows.items():
            if (width, how) not in done:
                done[width, how] = row_of(lab, args, width, how)
            print(study, name, flush=True)
        tables[study] = show({f"{study} {name}": done[key] for name, key in rows.items()})
    expected = {}
    for study in CLAIMED:
        first, *_, last = tables[study].values()
        change = {key: last[key]["mean"] - first[key]["mean"] for key in first}
        expected |= {
            f"{study}: the matched barrier falls from the first to the last": change["barrier, test"] < 0,
            f"{study}: R of the large vectors rises": change["R 0.3"] > 0,
            f"{study}: the share of dominant singular values falls": change["share kept"] < 0,
        }
    return {"expected": judged(expected), "tables": tables}, {"": figure_of(tables)}


def figure_of(tables: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw every quantity, one a row, against what was varied, one a column; bars are standard deviations."""
    figure = Figure(figsize=(12.5, 9), layout="constrained")
    grid = figure.subplots(len(DRAWN), len(tables), sharey="row", sharex="col")
    for column, (study, table) in zip(grid.T, tables.items(), strict=True):
        for ax, (label, keys) in zip(column, DRAWN.items(), strict=True):
            for key, style in zip(keys, ("o-", "s--"), strict=False):
                means, deviations = ([row[key][part] for row in table.values()] for part in ("mean", "std"))
                ax.errorbar(range(len(table)), means, deviations, fmt=style, capsize=3, label=keys[key])
            ax.set_xticks(range(len(table)), [name.removeprefix(f"{study} ") for name in table])
            ax.margins(0.15, 0.12)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=0.25)
            if ax in grid[:, 0]:
                ax.set_ylabel(label)
                if len(keys) > 1:
                    place = {"loc": "outside lower center", "ncols": len(keys), "title": "R of"}
                    figure.legend(handles=ax.containers, frameon=False, **place)
        column[-1].set_xlabel(AXES[study])
    return figure


def row_of(lab: Lab, args: argparse.Namespace, width: int, recipe: Recipe) -> dict[str, Any]:
    """Train the seeds of one setting, and measure their pairs."""
    make, split = partial(mlp, widths=(width,) * 3), read(args.data / NETS[args.net].data)["train"]
    name = f"{args.net}_w{width}_r{recipe.rate:g}_d{recipe.decay:g}{'_flax' if recipe.flax else ''}"
    params = [trained(name, make, split, recipe, seed, args.models)[0] for seed in range(len(lab.params))]
    model = make()
    own = replace(lab, model=model, spec=ob.permutation_spec(model, (split[0][:2],)), params=params)
    found = []
    for a, b in own.tuples(2):
        naive = own.curve(a, b).barrier("midpoint")
        large = ob.spectrum(own.spec, a, b, 0.3)
        total = sum(len(layer.values_a) for layer in large.layers.values())
        row = measured(own, a, b, weight_matching(own, a, b), ["test"])
        found.append({"as trained": naive, **row, "share kept": sum(large.counts.values()) / total})
    return gathered(found)


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment on one net."""
    parser = parser_of(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), help="of the hidden layers")
    run(NAME, parser, experiment, arguments)


if __name__ == "__main__":
    main()
