"""What the experiments on Ito et al. (ito2025) share: networks of several seeds, ways to match them, what is measured.

`--data` names the folder that holds the folders of the data sets, `--net` one of `NETS`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from matplotlib.figure import Figure
from torch import nn

import onebasin as ob
from collection import FASHION, MNIST, Net, read
from collection import NETS as SHARED
from data import Split, batches
from networks import mlp
from running import command, keep, options
from training import Recipe, trained

MLP = Recipe(rate=1e-3, epochs=5)
NETS = {
    "ito_mnist_mlp": Net(mlp, MNIST, MLP, 5),
    "ito_fashion_mlp": Net(mlp, FASHION, MLP, 5),
    **{name: net for name, net in SHARED.items() if net.seeds <= 5},
}
GAMMAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
CALIBRATION = 2000  # training images whose statistics batch norm gets, and on which such a network's loss is measured
MEASURED = 10_000  # images of a split, at most, on which losses are measured
SCATTERED = {"R 0.3": "R of the large vectors (γ = 0.3)", "reduction %": "L2 reduction (%)"}
COLOURS = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#000000"
MARKERS = "oosD^x"
Method = Callable[["Lab", ob.Params, ob.Params], ob.Params]


@dataclass(frozen=True, eq=False)
class Lab:
    """Networks of one architecture trained from several seeds, and the means to compare them.

    Args:
        model: the architecture.
        spec: its permutations.
        params: weights, one set a seed.
        splits: "train" and "test", as they are evaluated.
        statistics: batches for the statistics of batch norm, which are recomputed before every evaluation; None without
            batch norm.
    """

    model: nn.Module
    spec: ob.PermutationSpec
    params: list[ob.Params]
    splits: Mapping[str, Split]
    statistics: list[Split] | None

    def tuples(self, size: int) -> Iterator[list[ob.Params]]:
        """Yield one tuple of networks a seed: that of the seed and of those after it, round in a circle."""
        count = len(self.params)
        for first in range(count if count > 2 else 1):
            yield [self.params[(first + step) % count] for step in range(size)]

    def evaluation(self, split: str, limit: int | None = None) -> Any:
        """Return the evaluation on a split, or on its first `limit` images."""
        return ob.classification(batches(self.splits[split], 2500, limit))

    def curve(self, a: ob.Params, b: ob.Params, split: str = "test", points: int = 3) -> ob.Curve:
        """Measure the line from a to b."""
        evaluate = self.evaluation(split, MEASURED)
        return ob.evaluate_path(self.model, a, b, evaluate, points, batchnorm_batches=self.statistics)


def lab_of(args: argparse.Namespace) -> Lab:
    """Read the data, train what is not yet there, and find the permutations."""
    net = NETS[args.net]
    data, recipe = read(args.data / net.data), replace(net.recipe, epochs=args.epochs or net.recipe.epochs)
    params = [
        trained(args.net, net.make, data["train"], recipe, seed, args.models)[0]
        for seed in range(args.seeds or net.seeds)
    ]
    model = net.make()
    normed = any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    train, test = data["train"], (data["test"][0][: args.images], data["test"][1][: args.images])
    if normed:
        train = (train[0][:CALIBRATION], train[1][:CALIBRATION])
    spec = ob.permutation_spec(model, (test[0][:2],))
    return Lab(model, spec, params, {"train": train, "test": test}, batches(train, 500) if normed else None)


def as_trained(lab: Lab, a: ob.Params, b: ob.Params) -> ob.Params:
    """Leave b as it is."""
    return b


def weight_matching(lab: Lab, a: ob.Params, b: ob.Params, seed: int = 0) -> ob.Params:
    """Move b by weight matching."""
    return ob.align(lab.spec, a, b, ob.WeightMatching(seed=seed)).permutation.apply(b)


def activation_matching(lab: Lab, a: ob.Params, b: ob.Params) -> ob.Params:
    """Move b by activation matching on the training images."""
    measure = ob.Activations(lab.model, batches(lab.splits["train"], 1000))
    return ob.align(lab.spec, a, b, ob.ActivationMatching(measure)).permutation.apply(b)


@dataclass(frozen=True)
class Elsewhere:
    """Weight matching of a free copy that begins at another network than the reference: what it lacks is added first.

    Args:
        lacking: of the copy, which begins at the reference.
    """

    lacking: ob.Params

    def match(
        self, spec: ob.PermutationSpec, params_a: ob.Params, params_b: ob.Params, start: ob.Permutation, progress: Any
    ) -> ob.Alignment:
        """Match the moved copy."""
        copy = {name: tensor + self.lacking[name] for name, tensor in params_a.items()}
        return ob.WeightMatching().match(spec, copy, params_b, start, progress)


@dataclass(frozen=True)
class StraightThrough:
    """The straight-through estimator by a recipe of later code by the paper's group; see `onebasin.StraightThrough`.

    Args:
        recipe: name of a constructor.
        size: of a batch.
        epochs: passes over the training images.
        first: where the free copy begins: at a, so that the first order is weight matching's, or at b as it is.
    """

    recipe: Literal["by_adam", "by_steep_sgd"]
    size: int
    epochs: int
    first: Literal["a", "b"] = "a"

    def __call__(self, lab: Lab, a: ob.Params, b: ob.Params) -> ob.Params:
        """Move b so that the midpoint has a low training loss."""
        settings = {} if self.first == "a" else {"projection": Elsewhere({name: b[name] - a[name] for name in a})}
        make, train = getattr(ob.StraightThrough, self.recipe), batches(lab.splits["train"], self.size)
        matcher = make(lab.model, train, epochs=self.epochs, **settings)
        return ob.align(lab.spec, a, b, matcher).permutation.apply(b)


def ste_recipes(epochs: int) -> dict[str, StraightThrough]:
    """Return both recipes from both first orders, `epochs` passes each (10 and 100 in that code)."""
    adam, sgd = StraightThrough("by_adam", 256, epochs), StraightThrough("by_steep_sgd", 500, epochs)
    return {
        "STE, Adam": adam,
        "STE, SGD": sgd,
        "STE, Adam, from b": replace(adam, first="b"),
        "STE, SGD, from b": replace(sgd, first="b"),
    }


def measured(lab: Lab, a: ob.Params, b: ob.Params, moved: ob.Params, splits: Iterable[str] = ("test", "train")) -> dict:
    """Measure one pair: barriers at the midpoint, L2 reduction in percent, R for all and for the large vectors."""
    found = ob.spectrum(lab.spec, a, moved, 0.0)
    return {
        **{f"barrier, {split}": lab.curve(a, moved, split).barrier("midpoint") for split in splits},
        "reduction %": ob.distance(lab.spec, a, b, moved).reduction,
        **{f"R {gamma:g}": found.at(gamma).alignment for gamma in (0.0, 0.3)},
    }


def compared(lab: Lab, methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """Measure every pair of seeds under every method, and print mean and deviation."""
    rows: dict[str, list[dict]] = {name: [] for name in methods}
    for a, b in lab.tuples(2):
        for name, method in methods.items():
            begin = time.perf_counter()
            rows[name].append(measured(lab, a, b, method(lab, a, b)))
            print(f"{name}: {rows[name][-1]} ({time.perf_counter() - begin:.1f} s)", flush=True)
    return show({name: gathered(found) for name, found in rows.items()})


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1) and the values."""
    values = [float(value) for value in values]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": values,
    }


def gathered(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Turn one row a trial into the spread of every quantity."""
    return {key: spread(row[key] for row in rows) for key in rows[0]}


def show(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Print spreads as a table, one row a name; return them."""
    keys = list(dict.fromkeys(key for row in table.values() for key in row))
    width = max(map(len, table))
    print(f"{'':{width}}  " + "  ".join(f"{key:>17}" for key in keys))
    for name, row in table.items():
        cells = [f"{row[key]['mean']:8.4f} ± {row[key]['std']:.4f}" if key in row else "" for key in keys]
        print(f"{name:{width}}  " + "  ".join(f"{cell:>17}" for cell in cells), flush=True)
    return {name: dict(row) for name, row in table.items()}


def scatter(groups: Mapping[str, Iterable[Mapping[str, Any]]], title: str) -> Figure:
    """Draw the test barrier of every trial against R of the large vectors, and against the L2 reduction.

    Args:
        groups: label -> rows of spreads, as `gathered` makes them.
        title: of the legend.
    """
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    for ax, (key, label) in zip(figure.subplots(1, 2, sharey=True), SCATTERED.items(), strict=True):
        for (name, rows), colour, marker in zip(groups.items(), COLOURS, MARKERS, strict=False):
            x, y = ([v for row in rows for v in row[which]["values"]] for which in (key, "barrier, test"))
            ax.plot(x, y, marker, color=colour, alpha=0.6, markersize=6, label=name)
        ax.set_xlabel(label)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    figure.axes[0].set_ylabel("test loss barrier at the midpoint (nats)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, title=title)
    return figure


# An experiment returns its results, and figures by the name that is added to the file's.
Experiment = Callable[[Lab, argparse.Namespace], tuple[dict[str, Any], dict[str, Figure]]]


def parser_of(about: str | None, ste: bool = False) -> argparse.ArgumentParser:
    """Return the options that all of these scripts have; `ste` adds that of the straight-through estimator."""
    parser = options(about, data="folder of the folders of the data sets")
    parser.add_argument("--net", choices=list(NETS), default="ito_mnist_mlp", help="which networks")
    parser.add_argument("--seeds", type=int, help="how many; default: all that the net is trained with")
    parser.add_argument("--epochs", type=int, help="of training; default: the net's recipe")
    parser.add_argument("--images", type=int, help="how many test images; default: all")
    if ste:
        parser.add_argument(
            "--ste-epochs", type=int, default=2, help="passes of the estimator over the training images"
        )
    return parser


def run(name: str, parser: argparse.ArgumentParser, experiment: Experiment, arguments: list[str] | None = None) -> None:
    """Do an experiment on one net, and keep its record and figures under the name of both."""
    args = parser.parse_args(arguments)
    lab = lab_of(args)
    begin, name_of_net = time.perf_counter(), args.net.removeprefix("ito_")
    results, figures = experiment(lab, args)
    settings = {"net": args.net, "seeds": len(lab.params), **asdict(NETS[args.net].recipe)}
    settings |= {"epochs": args.epochs} if args.epochs else {}
    keep(args.out, f"{name}_{name_of_net}", command(name, parser, args), settings, results, time.perf_counter() - begin)
    for suffix, figure in figures.items():
        figure.savefig(args.out / f"{name}_{name_of_net}{suffix}.png", dpi=100)
