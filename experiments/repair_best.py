"""What `Best` is to look at where the merged network will be repaired: a network without norm, matched three ways.

Between networks without norm units of the midpoint lose their variance, and no order of units makes up for that: REPAIR
does. So an order that is good before REPAIR need not be good after it. Matched are VGG11s without norm by activations
(correlation, 1,024 images), by `Best`, and by `Best(repair=True)`, which lowers J of the repaired midpoint; both see
24,576 images, and no labels. Each midpoint is measured as it is and after REPAIR (5,000 training images).

    python experiments/repair_best.py --data DIR [--pairs 0-1 ...]

DIR holds the folders of `collection.py`. Record and figure are written anew after every pair. Expected: after REPAIR,
`Best(repair=True)` leaves half of what activations leave, or less, on every pair, and `Best` on none.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import combinations
from typing import Any

from matplotlib.figure import Figure

import onebasin as ob
from collection import NETS, TITLES, measured, params_of, read
from data import batches
from running import ADDED, bars, command, judged, keep, lost, means, options

NAME, NETWORK = "repair_best", "fashion_vgg11_plain"
MATCHING, MORE, STATISTICS = 1024, 24576, 5000  # training images for activations, for `Best`, and for REPAIR
WAYS = ("activations", "best", "best for REPAIR")


def matchers(model: Any, inputs: Any) -> dict[str, Callable[[], Any]]:
    """Return what makes the matcher of every way."""
    activations = ob.Activations(model, inputs[:MATCHING].split(256))
    best = partial(ob.Best, model, list(inputs[:MORE].split(128)))
    made = (partial(ob.ActivationMatching, activations, "correlation"), best, partial(best, repair=True))
    return dict(zip(WAYS, made, strict=True))


def expectations(pairs: list[dict[str, Any]]) -> dict[str, bool]:
    """Return what was expected of the pairs."""
    left = {way: [pair["barriers"][f"{way}, REPAIR"]["loss"] for pair in pairs] for way in WAYS}
    halved = {way: [a <= b / 2 for a, b in zip(left[way], left["activations"], strict=True)] for way in WAYS[1:]}
    return {
        "after REPAIR, best for REPAIR leaves half of what activations leave, or less, on every pair": all(
            halved["best for REPAIR"]
        ),
        "after REPAIR, best does so on no pair": not any(halved["best"]),
    }


def figure(pairs: list[dict[str, Any]]) -> Figure:
    """Draw a line for every way, as it is and after REPAIR."""
    lines = {way: [pair["barriers"][way]["loss"] for pair in pairs] for way in pairs[0]["barriers"]}
    return bars({TITLES[NETWORK]: lines}, ADDED)


def main(arguments: list[str] | None = None) -> None:
    """Match and measure every pair; write record and figure after each."""
    parser = options(__doc__, data="folder of the folders of the data sets")
    every = [f"{i}-{j}" for i, j in combinations(range(NETS[NETWORK].seeds), 2)]
    parser.add_argument("--pairs", nargs="+", choices=every, default=every, metavar="PAIR", help=" ".join(every))
    args = parser.parse_args(arguments)
    begin, pairs = time.perf_counter(), list[dict[str, Any]]()
    net, data = NETS[NETWORK], read(args.data / NETS[NETWORK].data)
    model, evaluate = net.make().eval(), ob.classification(batches(data["test"]))
    spec, images = ob.permutation_spec(model, (data["test"][0][:2],)), batches(data["train"], 500, STATISTICS)

    for pair in args.pairs:
        a, b = (params_of(NETWORK, args.data, args.models, int(seed))[0] for seed in pair.split("-"))
        alone = [measured(model, params, evaluate) for params in (a, b)]
        row, seconds = {}, {}
        for way, make in matchers(model, data["train"][0]).items():
            found = ob.align(spec, a, b, make())
            moved, seconds[way] = found.permutation.apply(b), round(found.seconds)
            middle = ob.lerp(a, moved, 0.5)
            repaired = ob.repair(model, spec, middle, [a, moved], images)[0]
            for name, params in ((way, middle), (f"{way}, REPAIR", repaired)):
                row[name] = lost(measured(model, params, evaluate), alone)
                told = f"{row[name]['loss']:7.3f} nats {100 * row[name]['accuracy']:6.2f} points"
                print(f"{pair} {name:24} {told} {seconds[way]:5} s {found.note}", flush=True)
        pairs.append({"pair": pair, "ends": alone, "barriers": row, "seconds": seconds})
        results = {"pairs": pairs, "mean": means(pairs), "expected": judged(expectations(pairs))}
        settings = {"matching": MATCHING, "best": MORE, "statistics": STATISTICS, "training": asdict(net.recipe)}
        keep(args.out, NAME, command(NAME, parser, args), settings, results, time.perf_counter() - begin)
        figure(pairs).savefig(args.out / f"{NAME}.png", dpi=110)


if __name__ == "__main__":
    main()
