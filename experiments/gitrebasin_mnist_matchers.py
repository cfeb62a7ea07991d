"""Git Re-Basin's three ways of matching, on two MNIST networks, and the loss on each line.

ainsworth2023, section 5.1, figure 2: the networks of `gitrebasin_mnist_mlp.py` (784-512-512-512-10, Adam 1e-3, batches
of 500, 100 epochs). Weight matching and straight-through matching are expected to give a test loss that is convex along
the line, with the midpoint below both ends; activation matching to be near zero too, a little worse.

    python experiments/gitrebasin_mnist_matchers.py --data DIR

DIR holds the four idx files. Straight-through matching makes `--epochs` passes over the 60,000 images in batches of
1,000 (the paper's code: 250), each batch with a weight matching of its own. It begins with what weight matching finds,
and at the paper's rate of 0.01 the gradients of networks whose loss is zero may never move it; the record says how many
units it places elsewhere. A later recipe has a rate of 0.5, batches of 500 and weight decay.
"""

import time
from dataclasses import asdict

import torch

import onebasin as ob
from collection import NETS
from data import batches, mnist
from running import command, judged, keep, options
from training import trained

NAME = "gitrebasin_mnist_matchers"
SEEDS, POINTS, BATCH = (0, 1), 25, 1000


def dent(curve: ob.Curve) -> float:
    """Return the lowest second difference of the loss along the path: not negative where the curve is convex."""
    return torch.tensor(curve.loss, dtype=torch.float64).diff(n=2).min().item()


def elsewhere(one: ob.Permutation, other: ob.Permutation) -> float:
    """Return the share of units that two permutations place differently."""
    different = [(one.indices[name] != index).double() for name, index in other.indices.items()]
    return torch.cat(different).mean().item()


def main(arguments: list[str] | None = None) -> None:
    """Train, match in three ways, evaluate all paths on both sets, write record and figure."""
    parser = options(__doc__, data="folder of the MNIST idx files")
    parser.add_argument("--epochs", type=int, default=10, help="of straight-through matching; default: 10")
    args = parser.parse_args(arguments)
    net, data = NETS["mnist_mlp"], mnist(args.data)
    (a, _), (b, _) = (trained("mnist_mlp", net.make, data["train"], net.recipe, seed, args.models) for seed in SEEDS)

    begin = time.perf_counter()
    model = net.make()
    spec = ob.permutation_spec(model, (data["test"][0][:2],))
    train = batches(data["train"], BATCH)
    matchers = {
        "weight": ob.WeightMatching(),
        "activation": ob.ActivationMatching(ob.Activations(model, train)),
        "straight-through": ob.StraightThrough(model, train, epochs=args.epochs),
        "straight-through, rate 0.5": ob.StraightThrough(
            model, batches(data["train"], 500), epochs=args.epochs, rate=0.5, weight_decay=1e-4
        ),
    }
    found = {name: ob.align(spec, a, b, matcher) for name, matcher in matchers.items()}
    ends = {"naive": b, **{name: one.permutation.apply(b) for name, one in found.items()}}
    curves: dict[str, dict[str, ob.Curve]] = {}
    for name, split in data.items():
        evaluate = ob.classification(batches(split, 5000))
        curves[name] = {path: ob.evaluate_path(model, a, end, evaluate, POINTS) for path, end in ends.items()}
    for name, one in found.items():
        print(f"{name}\n{one}\n{curves['test'][name]}\nlowest second difference {dent(curves['test'][name]):.5f}\n")

    test, train_curves = curves["test"], curves["train"]
    expected = {
        f"{name}: test loss is convex, midpoint below both ends": dent(test[name]) >= 0
        and test[name].loss[POINTS // 2] < min(test[name].loss[0], test[name].loss[-1])
        for name in ("weight", "straight-through")
    }
    expected |= {
        "all: train loss barrier below 0.02 nats": max(train_curves[name].barrier() for name in found) < 0.02,
        "activation matching is a little worse at the midpoint of the test loss": test["activation"].barrier("midpoint")
        > max(test[name].barrier("midpoint") for name in ("weight", "straight-through")),
        "naive: test loss has a barrier": test["naive"].barrier("chord") > 0.1,
    }
    settings = {
        "seeds": SEEDS,
        "points": POINTS,
        "straight_through_epochs": args.epochs,
        "training": asdict(net.recipe),
    }
    results = {
        "expected": judged(expected),
        "units_placed_other_than_by_weights": {
            name: elsewhere(one.permutation, found["weight"].permutation) for name, one in found.items()
        },
        "alignments": {name: one.to_json() for name, one in found.items()},
        "lowest_second_difference": {name: dent(curve) for name, curve in test.items()},
        "curves": {name: {path: curve.to_json() for path, curve in rows.items()} for name, rows in curves.items()},
    }
    keep(args.out, NAME, command(NAME, parser, args), settings, results, time.perf_counter() - begin)
    # Near the naive curve's height the matched ones cannot be told apart: a row for them alone.
    curves["test, matched"] = {name: curve for name, curve in test.items() if name != "naive"}
    ob.barrier_figure(curves).savefig(args.out / f"{NAME}.png", dpi=110)


if __name__ == "__main__":
    main()
