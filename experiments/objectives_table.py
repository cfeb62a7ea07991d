"""Every way of matching on several networks: the loss the midpoint adds to the mean of its ends.

Three seeds give three pairs per network (not independent of each other). Numbers are midpoint test loss minus the mean
test loss of the ends, in nats, on 4,000 test images (MNIST: 10,000); the statistics of batch norm are recomputed before
each measurement, of the ends as well, from 1,024 training images other than those that matching sees: 1,024 of them,
and 23,552 more where "best" chooses, descends and polishes, or "all inputs" is written. Only straight-through matching
and Sinkhorn re-basin see labels, of 5,000 images, and run on the first pair alone. FW is Frank-Wolfe; what is not
marked is solved by coordinate descent. Hybrids are covariance-weighted weights and mu times the correlations of
activations, by Frank-Wolfe; "from activations": mu is 3, and coordinate descent begins where correlations lead. "Unit"
weights are divided by their norms, and may stand in the place of those weighted.

    python experiments/objectives_table.py --data DIR --only NETWORK [--columns METHOD ...] [--pairs 0-1 ...]

DIR holds the folders of `collection.py`. Each network has a record of its own, written anew after every pair; columns
and pairs that were measured before and are not asked for stay in it. Table and figure are made of all records in
`--out`. Expected: matching by weights alone leaves a high barrier on narrow networks with batch norm, where activations
do far better; "best", which chooses and then polishes by the label-free loss of the midpoint, is at or below activation
matching on every network, and at half of it or less on the narrow ResNet20.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import onebasin as ob
from collection import MNIST, NETS, TITLES, measured, params_of, read
from data import Split, batches
from running import ADDED, bars, command, judged, keep, options

NAME = "objectives_table"
NETWORKS = list(TITLES)
PAIRS = ["0-1", "0-2", "1-2"]
INPUTS, STATISTICS = 1024, 1024  # unlabelled training images for matching; the next ones for batch-norm statistics
MORE = 23552  # unlabelled training images after those, which "best" sees too
TEST = 4000  # test images of CIFAR-10 and Fashion-MNIST; all 10,000 of MNIST, whose networks are cheap
LABELLED, BATCH = 5000, 250  # training images with labels, for the methods that follow them, one pass


@dataclass(frozen=True)
class Known:
    """A matcher that returns what was found before."""

    alignment: ob.Alignment
    matcher: Any = None

    def match(self, *_: object) -> ob.Alignment:
        """Return it."""
        return self.alignment

    def objective(self, *given: Any) -> Any:
        """Return what the matcher maximises."""
        return self.matcher.objective(*given)


@dataclass(frozen=True, eq=False)
class BestOfKnown(ob.Best):
    """`Best`, with candidates that were solved before."""

    known: Mapping[str, Known] = field(default_factory=dict)

    def candidates(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Return them."""
        return dict(self.known)


@dataclass
class Pair:
    """Two networks to match, and what the methods may look at. What several columns need is computed once."""

    model: nn.Module
    spec: ob.PermutationSpec
    a: ob.Params
    b: ob.Params
    inputs: list[Tensor]
    more: list[Tensor]
    labelled: list[Split]
    found: dict[str, ob.Alignment] = field(default_factory=dict)

    @cached_property
    def synthetic(self) -> ob.ActivationMatching:
        """Activations on drawn inputs, where each network's batch norm is recomputed on them."""
        drawn = ob.synthetic_batches(self.model, (self.inputs[0][:2],), samples=INPUTS)
        made = ob.Activations(self.model, drawn, batchnorm=True)(self.spec, self.a, self.b)
        return ob.ActivationMatching(lambda *_: made, statistic="correlation")

    @cached_property
    def candidates(self) -> dict[str, Any]:
        """The matchers that `Best` chooses from, with the statistics they need."""
        return dict(ob.Best(self.model, self.inputs).candidates(self.spec, self.a, self.b))

    def covariance(self, solver: Any) -> ob.WeightMatching:
        """Return matching by the covariance-weighted weights of the candidates."""
        return replace(self.candidates["hybrid, mu 3"].weights, solver=solver)

    def best(self, **settings: Any) -> ob.Best:
        """Return `Best`, which chooses among what its candidates found."""
        columns = {"weights": "weights, unit"}  # what a candidate is called here, if not by its name
        found = {name: self.align(columns.get(name, name)) for name in self.candidates}
        known = {name: Known(found[name], matcher) for name, matcher in self.candidates.items()}
        return BestOfKnown(self.model, self.more, known=known, **settings)

    def align(self, method: str) -> ob.Alignment:
        """Return what a column finds."""
        if method not in self.found:
            matcher = METHODS[method](self) if method in METHODS else self.candidates[method]
            self.found[method] = ob.align(self.spec, self.a, self.b, matcher)
        return self.found[method]


def weights(solver: Any = "coordinate-descent", **settings: Any) -> ob.WeightMatching:
    """Return weight matching by a solver."""
    return ob.WeightMatching(solver=solver, **settings)


def candidate(name: str) -> Callable[[Pair], Any]:
    """Return one of the matchers that `Best` chooses from."""
    return lambda pair: pair.candidates[name]


# Name of a column -> the matcher.
METHODS: dict[str, Callable[[Pair], Any]] = {
    "weights": lambda _: weights(),
    "weights, unit": lambda _: weights(features="unit"),
    "weights, FW": lambda _: weights("frank-wolfe"),
    "weights, unit, FW": lambda _: weights("frank-wolfe", features="unit"),
    "weights, Sinkhorn": lambda _: weights("sinkhorn"),
    "covariance": lambda pair: pair.covariance(weights().solver),
    "covariance, FW": lambda pair: pair.covariance("frank-wolfe"),
    "synthetic correlation": lambda pair: pair.synthetic,
    "synthetic, unit hybrid, FW": lambda pair: ob.Hybrid(pair.synthetic, weights("frank-wolfe", features="unit")),
    "activations, product": candidate("activations, product"),
    "activations, correlation": candidate("activations, correlation"),
    "activations, product, all inputs": lambda pair: ob.ActivationMatching(ob.Activations(pair.model, pair.more)),
    "hybrid, mu 1": candidate("hybrid, mu 1"),
    "hybrid, mu 3": candidate("hybrid, mu 3"),
    "hybrid, mu 10": candidate("hybrid, mu 10"),
    "hybrid from activations": candidate("hybrid from activations"),
    "unit hybrid": lambda pair: replace(
        pair.candidates["hybrid, mu 3"], weights=weights("frank-wolfe", features="unit")
    ),
    "unit hybrid from activations": candidate("unit hybrid from activations"),
    "straight-through (labels)": lambda pair: ob.StraightThrough(pair.model, pair.labelled, epochs=1),
    "Sinkhorn re-basin (labels)": lambda pair: ob.SinkhornRebasin(pair.model, pair.labelled, epochs=1, rate=1.0),
    "best, not polished": lambda pair: pair.best(rounds=0),
    "best": lambda pair: pair.best(),
}
FIRST_PAIR_ONLY = {"straight-through (labels)", "Sinkhorn re-basin (labels)"}


@dataclass
class Midpoints:
    """Measures midpoints of one pair; what two columns both find is measured once."""

    pair: Pair
    measure: Callable[[ob.Params], dict[str, float]]
    known: list[tuple[ob.Permutation, dict[str, float]]] = field(default_factory=list)

    def of(self, method: str) -> dict[str, Any]:
        """Return loss and accuracy of the midpoint that a column finds, and how it was found."""
        begin = time.perf_counter()
        found = self.pair.align(method) if method != "naive" else None
        seconds = time.perf_counter() - begin
        permutation = found.permutation if found else ob.Permutation.identity(self.pair.spec)
        values = next((values for other, values in self.known if permutation == other), None)
        if values is None:
            values = self.measure(ob.lerp(self.pair.a, permutation.apply(self.pair.b), 0.5))
            self.known.append((permutation, values))
        objective = [found.objective[0], found.objective[-1]] if found else []
        return {**values, "seconds": seconds, "objective": objective, "note": found.note if found else ""}


def measure(
    name: str,
    methods: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    data: Path,
    models: Path | None,
    before: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield the results of one network after every pair: those of `before`, with `methods` on `pairs` measured anew."""
    net, splits = NETS[name], read(data / NETS[name].data)
    trained = [params_of(name, data, models, seed) for seed in range(1 + max(j for _, j in pairs))]
    ends, model = [params for params, _ in trained], net.make()
    test = batches(splits["test"], BATCH, None if net.data == MNIST else TEST)
    x, y = splits["train"]
    evaluate, images = ob.classification(test), batches((x[INPUTS:], y[INPUTS:]), 256, STATISTICS)
    inputs, labelled = list(x[:INPUTS].split(256)), batches((x, y), BATCH, LABELLED)
    more = list(torch.cat([x[:INPUTS], x[INPUTS + STATISTICS :][:MORE]]).split(128))
    spec = ob.permutation_spec(model.eval(), (splits["test"][0][:2],))

    def at(params: ob.Params) -> dict[str, float]:
        return measured(model, params, evaluate, images)

    alone = [at(params) for params in ends]
    print(name, *alone, sep="\n", flush=True)
    every_end = {
        "ends": [*alone, *before.get("ends", [])[len(alone) :]],
        "training_cpu_seconds": [s for _, s in trained] + before.get("training_cpu_seconds", [])[len(alone) :],
    }
    cells: dict[str, list[dict[str, Any]]] = {**before.get("cells", {})}
    for i, j in pairs:
        midpoints = Midpoints(Pair(model, spec, ends[i], ends[j], inputs, more, labelled), at)
        for method in methods:
            if method in FIRST_PAIR_ONLY and (i, j) != (0, 1):
                continue
            cell = {"pair": [i, j], **midpoints.of(method)}
            cell["barrier"] = cell.pop("loss") - (alone[i]["loss"] + alone[j]["loss"]) / 2
            others = [one for one in cells.get(method, []) if one["pair"] != cell["pair"]]
            cells[method] = sorted([*others, cell], key=lambda one: one["pair"])
            figures = f"{cell['barrier']:8.4f} {cell['seconds']:7.1f} s"
            print(f"{name} {i}-{j} {method:28} {figures} {cell['note']}", flush=True)
        ordered = {method: cells[method] for method in ("naive", *METHODS) if method in cells}
        yield {**every_end, "cells": ordered}


def pairs_of(name: str, named: Sequence[str]) -> list[tuple[int, int]]:
    """Return those of the named pairs, "0-1", that a network has."""
    return [(i, j) for i, j in combinations(range(NETS[name].seeds), 2) if f"{i}-{j}" in named]


def means(cells: Mapping[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Return the mean barrier of every column."""
    return {method: fmean(cell["barrier"] for cell in found) for method, found in cells.items()}


def expectations(name: str, cells: Mapping[str, list[dict[str, Any]]]) -> dict[str, bool]:
    """Return what was expected of the means."""
    mean = means(cells)
    kinds = ("activations, product", "activations, correlation")
    if not all(len(cells.get(kind, [])) == len(cells.get("best", [])) > 0 for kind in kinds):
        return {}  # not of the same pairs
    activations = min(mean[kind] for kind in kinds)
    found = {"best is at or below both kinds of activation matching": mean["best"] <= activations}
    if name in ("cifar_resnet20_half", "fashion_resnet20_half"):
        found["best is at half of activation matching or less"] = mean["best"] <= activations / 2
    return found


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of all records in `folder`."""
    files = {name: folder / f"{NAME}_{name}.json" for name in NETWORKS}
    return {
        name: json.loads(file.read_text(encoding="utf-8"))["results"] for name, file in files.items() if file.exists()
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table: a line per method, a column per network, mean [lowest..highest]."""
    lines = ["| | " + " | ".join(TITLES[name] for name in results) + " |", "|---" * (len(results) + 1) + "|"]
    for method in ("naive", *METHODS):
        row = []
        for found in results.values():
            values = [cell["barrier"] for cell in found["cells"].get(method, [])]
            spread = f" [{min(values):.3f}..{max(values):.3f}]" if len(values) > 1 else ""
            row.append(f"{fmean(values):.3f}{spread}" if values else "")
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    ends = (fmean(end["accuracy"] for end in found["ends"]) for found in results.values())
    return "\n".join([*lines, "| accuracy of the ends | " + " | ".join(f"{100 * one:.1f} %" for one in ends) + " |"])


def figure(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return a panel per network with a line per method; what is there without matching would hide the rest."""
    methods = [method for method in METHODS if any(method in found["cells"] for found in results.values())]
    panels = {}
    for name, found in results.items():
        barriers = {method: [cell["barrier"] for cell in cells] for method, cells in found["cells"].items()}
        naive = f"\n(naive: {fmean(barriers['naive']):.2f})" if "naive" in barriers else "\n"
        panels[TITLES[name] + naive] = {method: barriers.get(method, []) for method in methods}
    return bars(panels, ADDED)


def main(arguments: list[str] | None = None) -> None:
    """Train and measure, write a record per network, and table and figure of all."""
    parser = options(__doc__, data="folder of the folders of the data sets")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help="which")
    columns = ["naive", *METHODS]
    parser.add_argument("--columns", nargs="+", choices=columns, default=columns, metavar="METHOD", help="which")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=PAIRS, metavar="PAIR", help=" ".join(PAIRS))
    args = parser.parse_args(arguments)
    seen = {"inputs": INPUTS, "more_inputs_of_best": MORE, "labelled": LABELLED, "labelled_batch": BATCH}
    settings = {**seen, "statistics": STATISTICS, "test": TEST}
    of_network = {name: pairs_of(name, args.pairs) for name in args.only}
    if few := [name for name, pairs in of_network.items() if not pairs]:
        parser.error(f"no pair {' or '.join(args.pairs)} of {', '.join(few)}: {NETS[few[0]].seeds} are trained")
    for name, pairs in of_network.items():
        begin, before = time.perf_counter(), kept(args.out).get(name, {})
        call = command(NAME, parser, argparse.Namespace(**vars(args) | {"only": [name]}))
        for results in measure(name, args.columns, pairs, args.data, args.models, before):
            seconds = time.perf_counter() - begin
            results["runs"] = [*before.get("runs", []), {"command": call, "seconds": round(seconds)}]
            results["expected"] = judged(expectations(name, results["cells"]))
            recipe = {"training": asdict(NETS[name].recipe)}
            keep(args.out, f"{NAME}_{name}", call, settings | recipe, results, seconds)
    everything = kept(args.out)
    print(table(everything))
    figure(everything).savefig(args.out / f"{NAME}.png", dpi=110)


if __name__ == "__main__":
    main()
