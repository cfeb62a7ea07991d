"""What Frank-Wolfe reaches beyond coordinate descent, and at what cost, where the best order is unknown.

Two independent networks 784-256-256-256-10 without biases, weights normal with variance 1 / (3 fan-in): a network's
inner product with itself is 260. Published code reaches 34.16 +- 0.49 here by coordinate descent (0.04 s on two cores)
and 35.97 by Frank-Wolfe (228 s, one run). One JSON line per seed, then means; seconds are wall time.

    python benchmarks/frank_wolfe.py [--seeds 6] [--width 256]
"""

import argparse
import itertools
import json
import statistics

import torch

import onebasin as ob


def chain(sizes: tuple[int, ...]) -> ob.PermutationSpec:
    names = [None, *(f"hidden{number}" for number in range(1, len(sizes) - 1)), None]
    layers = dict(enumerate(itertools.pairwise(sizes)))
    axes = {f"fc{number}": (names[number + 1], names[number]) for number in layers}
    return ob.PermutationSpec.from_axes(axes, {f"fc{number}": (out, inp) for number, (inp, out) in layers.items()})


def draw(spec: ob.PermutationSpec, generator: torch.Generator) -> ob.Params:
    return {
        name: torch.randn(shape, generator=generator) / (3 * shape[-1]) ** 0.5 for name, shape in spec.shapes.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    spec, runs = chain((784, *3 * (options.width,), 10)), []
    solvers = {
        "coordinate descent": ob.CoordinateDescent,
        "frank-wolfe": lambda s: ob.FrankWolfe(descent=ob.CoordinateDescent(s)),
    }
    for seed in range(-1, options.seeds):  # the first run warms up, and is not counted
        generator = torch.Generator().manual_seed(max(seed, 0))
        a, b = draw(spec, generator), draw(spec, generator)
        found = {name: ob.align(spec, a, b, ob.WeightMatching(solver=make(seed))) for name, make in solvers.items()}
        runs.append({name: (one.objective[-1], one.seconds) for name, one in found.items()})
        print(json.dumps({"seed": seed, **{name: [round(x, 3) for x in pair] for name, pair in runs[-1].items()}}))
    for name in solvers:
        reached, seconds = zip(*(run[name] for run in runs[1:]), strict=True)
        spread = statistics.stdev(reached) if len(reached) > 1 else 0.0
        print(f"{name}: {statistics.mean(reached):.2f} +- {spread:.2f} in {statistics.median(seconds):.2f} s (median)")


if __name__ == "__main__":
    main()
