"""Every way of matching on several networks: the loss the midpoint adds to the mean of its ends.

Three seeds give three pairs per network (not independent of each other). Numbers are midpoint test loss minus the mean
test loss of the ends, in nats; the statistics of batch norm are recomputed before each measurement, of the ends as
well. Matching sees 1,024 training images without labels, or none; only straight-through matching and Sinkhorn re-basin
see labels, of 5,000 images. FW is Frank-Wolfe; what is not marked is solved by coordinate descent. Hybrids are
covariance-weighted weights and mu times the correlations of activations, by Frank-Wolfe; "from activations": mu is 3,
and coordinate descent begins where correlations lead.

    python experiments/objectives_table.py --data DIR --only NETWORK

DIR holds the folders of `collection.py`. Each network has a record of its own; the table and the figure are made of all
records in `--out`. Expected: matching by weights alone leaves a high barrier on narrow networks with batch norm, where
activations do far better; "best", which chooses and then polishes by the label-free loss of the midpoint, is at or
below activation matching on every network, and at half of it or less on the narrow ResNet20.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

import onebasin as ob
from collection import NETS, TITLES, measured, params_of, read
from data import Split, batches
from running import ADDED, bars, command, judged, keep, options

NAME = "objectives_table"
NETWORKS = list(TITLES)
INPUTS, STATISTICS = 1024, 2048  # unlabelled training images for matching; those of the batch-norm statistics
LABELLED, EPOCHS = 5000, 2  # training images with labels, for straight-through matching alone, and passes over them


@dataclass
class Pair:
    """Two networks to match, and what the methods may look at. Statistics are measured once and used by all columns."""

    model: nn.Module
    spec: ob.PermutationSpec
    a: ob.Params
    b: ob.Params
    inputs: list[Tensor]
    labelled: list[Split]

    def __post_init__(self) -> None:
        drawn = ob.synthetic_batches(self.model, (self.inputs[0][:2],), samples=INPUTS)
        made = ob.Activations(self.model, drawn, batchnorm=True)(self.spec, self.a, self.b)
        self.synthetic = ob.ActivationMatching(lambda *_: made, statistic="correlation")
        self.seen = ob.Covariance(ob.LayerInputs(self.model, self.inputs))
        self.candidates = ob.Best(self.model, self.inputs).candidates(self.spec, self.a, self.b)


def weights(solver: Any = "coordinate-descent", **settings: Any) -> ob.WeightMatching:
    """Return weight matching by a solver."""
    return ob.WeightMatching(solver=solver, **settings)


def candidate(name: str) -> Callable[[Pair], Any]:
    """Return one of the matchers that `Best` chooses from."""
    return lambda pair: pair.candidates[name]


# Name of a column -> the matcher.
METHODS: dict[str, Callable[[Pair], Any]] = {
    "weights": lambda _: weights(),
    "weights, unit": candidate("weights"),
    "weights, FW": lambda _: weights("frank-wolfe"),
    "weights, unit, FW": lambda _: weights("frank-wolfe", features="unit"),
    "weights, Sinkhorn": lambda _: weights("sinkhorn"),
    "covariance": lambda pair: weights(features=pair.seen),
    "covariance, FW": lambda pair: weights("frank-wolfe", features=pair.seen),
    "synthetic correlation": lambda pair: pair.synthetic,
    "synthetic, unit hybrid, FW": lambda pair: ob.Hybrid(pair.synthetic, weights("frank-wolfe", features="unit")),
    "activations, product": candidate("activations, product"),
    "activations, correlation": candidate("activations, correlation"),
    "hybrid, mu 1": candidate("hybrid, mu 1"),
    "hybrid, mu 3": candidate("hybrid, mu 3"),
    "hybrid, mu 10": candidate("hybrid, mu 10"),
    "hybrid from activations": candidate("hybrid from activations"),
    "unit hybrid from activations": candidate("unit hybrid from activations"),
    "straight-through (labels)": lambda pair: ob.StraightThrough(pair.model, pair.labelled, epochs=EPOCHS),
    "Sinkhorn re-basin (labels)": lambda pair: ob.SinkhornRebasin(pair.model, pair.labelled, epochs=EPOCHS),
    "best, not polished": lambda pair: ob.Best(pair.model, pair.inputs, rounds=0),
    "best": lambda pair: ob.Best(pair.model, pair.inputs),
}


def measure(name: str, methods: Sequence[str], data: Path, models: Path | None) -> dict[str, Any]:
    """Run `methods` on every pair of one network."""
    net, splits = NETS[name], read(data / NETS[name].data)
    trained = [params_of(name, data, models, seed) for seed in range(min(3, net.seeds))]
    ends, model = [params for params, _ in trained], net.make()
    evaluate, images = ob.classification(batches(splits["test"])), batches(splits["train"], 256, STATISTICS)
    inputs = [x for x, _ in batches(splits["train"], 256, INPUTS)]
    spec = ob.permutation_spec(model.eval(), (splits["test"][0][:2],))
    alone = [measured(model, params, evaluate, images) for params in ends]
    print(name, *alone, sep="\n", flush=True)
    cells: dict[str, list[dict[str, Any]]] = {}
    for i, j in combinations(range(len(ends)), 2):
        pair = Pair(model, spec, ends[i], ends[j], inputs, batches(splits["train"], 250, LABELLED))
        base = {metric: (alone[i][metric] + alone[j][metric]) / 2 for metric in ("loss", "accuracy")}
        for method in ("naive", *methods):
            begin = time.perf_counter()
            found = ob.align(spec, ends[i], ends[j], METHODS[method](pair)) if method != "naive" else None
            seconds, moved = time.perf_counter() - begin, found.permutation.apply(ends[j]) if found else ends[j]
            middle = measured(model, ob.lerp(ends[i], moved, 0.5), evaluate, images)
            cell = {"pair": (i, j), "barrier": middle["loss"] - base["loss"], "accuracy": middle["accuracy"]}
            cell |= {"seconds": seconds, "note": found.note if found else ""}
            cells.setdefault(method, []).append(cell)
            print(f"{name} {i}-{j} {method:26} {cell['barrier']:8.4f} {seconds:7.1f} s {cell['note']}", flush=True)
    return {"ends": alone, "training_cpu_seconds": [seconds for _, seconds in trained], "cells": cells}


def barriers(cells: Mapping[str, list[dict[str, Any]]], method: str) -> list[float]:
    """Return the barrier of every pair."""
    return [cell["barrier"] for cell in cells[method]]


def expectations(name: str, cells: Mapping[str, list[dict[str, Any]]]) -> dict[str, bool]:
    """Return what was expected of the means."""
    if "best" not in cells:
        return {}
    best, product, correlation = (
        fmean(barriers(cells, method)) for method in ("best", "activations, product", "activations, correlation")
    )
    found = {"best is at or below both kinds of activation matching": best <= min(product, correlation)}
    if name == "cifar_resnet20_half":
        found["best is at half of activation matching or less"] = best <= min(product, correlation) / 2
    return found


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of all records in `folder`."""
    files = {name: folder / f"{NAME}_{name}.json" for name in NETWORKS}
    return {
        name: json.loads(file.read_text(encoding="utf-8"))["results"] for name, file in files.items() if file.exists()
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table: a line per method, a column per network, mean [lowest..highest]."""
    methods = list(dict.fromkeys(method for found in results.values() for method in found["cells"]))
    lines = ["| | " + " | ".join(TITLES[name] for name in results) + " |", "|---" * (len(results) + 1) + "|"]
    for method in methods:
        row = []
        for found in results.values():
            values = barriers(found["cells"], method) if method in found["cells"] else []
            row.append(f"{fmean(values):.3f} [{min(values):.3f}..{max(values):.3f}]" if values else "")
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    ends = (fmean(end["accuracy"] for end in found["ends"]) for found in results.values())
    return "\n".join([*lines, "| accuracy of the ends | " + " | ".join(f"{100 * one:.1f} %" for one in ends) + " |"])


def figure(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return a panel per network with a line per method."""
    panels = {
        TITLES[name]: {method: barriers(found["cells"], method) for method in found["cells"]}
        for name, found in results.items()
    }
    return bars(panels, ADDED)


def main(arguments: list[str] | None = None) -> None:
    """Train and measure, write a record per network, and table and figure of all."""
    parser = options(__doc__, data="folder of the folders of the data sets")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help="which")
    parser.add_argument("--skip", nargs="+", choices=list(METHODS), default=[], metavar="METHOD", help="leave out")
    args = parser.parse_args(arguments)
    methods = [method for method in METHODS if method not in args.skip]
    settings = {"inputs": INPUTS, "statistics": STATISTICS, "labelled": LABELLED, "straight_through_epochs": EPOCHS}
    for name in args.only:
        begin, found = time.perf_counter(), measure(name, methods, args.data, args.models)
        print(name)
        found["expected"] = judged(expectations(name, found["cells"]))
        recipe = {"training": asdict(NETS[name].recipe)}
        call = command(NAME, parser, argparse.Namespace(**vars(args) | {"only": [name]}))
        keep(args.out, f"{NAME}_{name}", call, settings | recipe, found, time.perf_counter() - begin)
    results = kept(args.out)
    print(table(results))
    figure(results).savefig(args.out / f"{NAME}.png", dpi=110)


if __name__ == "__main__":
    main()
