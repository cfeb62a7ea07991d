"""Two MLPs trained on MNIST from different seeds, and the loss on the line between them.

Git Re-Basin's first experiment (ainsworth2023, section 5.1, figure 2): a 784-512-512-512-10 ReLU network, Adam with
rate 1e-3, batches of 500, 100 epochs, pixels divided by 255, no augmentation; the seeds differ in initialisation and in
batch order. Expected: interpolated as they are, the networks meet a barrier; after weight matching the test loss at
the midpoint lies at or below the mean of the two ends.

    python experiments/gitrebasin_mnist_mlp.py --data DIR

DIR holds the four standard idx files, gzipped or not. On a free CPU core a network takes two to seven minutes to train
(two where the core multiplies in bfloat16), the four curves together three; `--models DIR` keeps the trained weights
there, and starts from them when they exist.
"""

import time
from dataclasses import asdict, replace

import onebasin as ob
from data import batches, mnist
from networks import mlp
from running import command, judged, keep, options
from training import Recipe, trained

NAME = "gitrebasin_mnist_mlp"
SEEDS = (0, 1)  # lam = 0, the reference, and lam = 1
RECIPE = Recipe(rate=1e-3, epochs=100, flax=True)
POINTS = 25


def main(arguments: list[str] | None = None) -> None:
    """Train, match, evaluate both paths on both sets, write record and figure."""
    parser = options(__doc__, data="folder of the MNIST idx files")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs, help="default: 100, as in the paper")
    args = parser.parse_args(arguments)

    # Two networks that differ in nothing but their seed.
    data, recipe = mnist(args.data), replace(RECIPE, epochs=args.epochs)
    (params_a, seconds_a), (params_b, seconds_b) = (
        trained("mnist_mlp", mlp, data["train"], recipe, seed, args.models) for seed in SEEDS
    )

    # Which units may be permuted, and the order of B's units that fits A's. The record counts its seconds from here;
    # those of training are told apart, since weights may have been trained by an earlier run.
    begin = time.perf_counter()
    model = mlp()
    spec = ob.permutation_spec(model, (data["test"][0][:2],))
    found = ob.align(spec, params_a, params_b, ob.WeightMatching(seed=0))
    print(spec, found, sep="\n")
    ends = {"naive": params_b, "matched": found.permutation.apply(params_b)}

    # Loss and accuracy along both lines, over the whole of both sets.
    curves: dict[str, dict[str, ob.Curve]] = {}
    for name, split in data.items():
        evaluate = ob.classification(batches(split, 5000))
        curves[name] = {path: ob.evaluate_path(model, params_a, end, evaluate, POINTS) for path, end in ends.items()}
        for path, curve in curves[name].items():
            print(f"\n{name} set, {path}\n{curve}", flush=True)

    # What the paper found, beside what was found here.
    matched, naive = curves["test"]["matched"], curves["test"]["naive"]
    expected = {
        "matched test loss at the midpoint is at or below the mean of the ends": matched.barrier("midpoint") <= 0,
        "naive test loss has a barrier": naive.barrier("chord") > 0.1,
    }
    settings = {"seeds": SEEDS, "points": POINTS, **asdict(recipe)}
    results = {
        "expected": judged(expected),
        "alignment": found.to_json(),
        "curves": {name: {path: curve.to_json() for path, curve in both.items()} for name, both in curves.items()},
        "training_cpu_seconds": [seconds_a, seconds_b],
    }
    keep(args.out, NAME, command(NAME, parser, args), settings, results, time.perf_counter() - begin)
    ob.barrier_figure(curves).savefig(args.out / f"{NAME}.png", dpi=110)


if __name__ == "__main__":
    main()
