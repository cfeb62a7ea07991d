"""Three and more networks, each matched to the first by itself: do they share one basin? (Table 3, Fig. 5).

    python experiments/ito_table3_three_models.py --data DIR [--net NAME] [--models DIR] [--ste-epochs N]

b and c are matched to a, never to each other. Expected (ito2025): the barrier between the matched b and c is lower with
weight matching than with the straight-through estimator, which knows nothing but the path to a. With more than three
seeds, also the lines between all of 4 and 5 networks and the loss of their means.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

import onebasin as ob
from ito import (
    Lab,
    Method,
    activation_matching,
    as_trained,
    gathered,
    parser_of,
    run,
    show,
    ste_recipes,
    weight_matching,
)
from running import judged

NAME = "ito_table3_three_models"
POINTS, IMAGES = 13, 2500  # of the plane, along an axis; and test images it is measured on
TRIALS = 3  # of the straight-through estimator, at most
LETTERS = "abcde"


def experiment(lab: Lab, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Match every seed to a first one in turn; measure the lines between three and more, and draw the planes."""
    straight = {name: how for name, how in ste_recipes(args.ste_epochs).items() if "SGD" in name}
    matching = {"weight matching": weight_matching, "activation matching": activation_matching}
    methods: dict[str, Method] = {"as trained": as_trained, **matching, **straight}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    pairs: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    planes: dict[str, ob.Plane] = {}
    for trial, (a, *others) in enumerate(lab.tuples(min(len(lab.params), len(LETTERS)))):
        for name, method in methods.items():
            if name in straight and trial >= TRIALS:
                continue
            moved = others[:2] if name in straight else others  # those cost minutes each
            models = {"a": a} | {letter: method(lab, a, b) for letter, b in zip(LETTERS[1:], moved, strict=False)}
            row, lines = between(lab, models)
            rows[name].append(row)
            pairs[name].append(lines)
            print(f"{name}: {row}", flush=True)
            if name not in planes:
                planes[name] = plane_of(lab, models)
    table = show({name: gathered(found) for name, found in rows.items()})
    barriers = {name: row["barrier b-c"]["mean"] for name, row in table.items()}
    expected = {
        f"between the matched b and c, weight matching has a lower barrier than {name}": (
            barriers["weight matching"] < barriers[name]
        )
        for name in straight
    }
    expected |= {
        "and it is below a tenth of the one as trained": barriers["weight matching"] < 0.1 * barriers["as trained"]
    }
    lines = show({name: gathered(found) for name, found in pairs.items()})
    results = {"table": table, "pairs": lines, "planes": {name: plane.to_json() for name, plane in planes.items()}}
    figure = ob.plane_figure(planes, tuple("abc"))
    return {"expected": judged(expected), **results, "recipes": straight}, {"": figure}


def plane_of(lab: Lab, models: Mapping[str, ob.Params]) -> ob.Plane:
    """Measure the plane through the first three on some test images."""
    three, statistics = [models[letter] for letter in "abc"], lab.statistics and lab.statistics[:4]
    return ob.evaluate_plane(lab.model, three, lab.evaluation("test", IMAGES), POINTS, batchnorm_batches=statistics)


def between(lab: Lab, models: Mapping[str, ob.Params]) -> tuple[dict[str, float], dict[str, float]]:
    """Return barriers between three networks and of the means of 3, 4, ... of them; and those of all pairs."""
    evaluate = lab.evaluation("test")
    curves = ob.pairwise_curves(lab.model, models, evaluate, batchnorm_batches=lab.statistics)
    barriers = {pair: curve.barrier("midpoint") for pair, curve in curves.items()}
    row = {"barrier a-b": barriers["a", "b"], "barrier b-c": barriers["b", "c"]}
    found = list(models.values())
    for count in range(3, len(found) + 1):
        names = list(models)[:count]
        alike = [barriers[x, y] for x, y in barriers if {x, y} <= set(names) and x != "a"]
        row[f"mean barrier of {count}, without a"] = sum(alike) / len(alike)
        row[f"barrier of the mean of {count}"] = of_mean(lab, found[:count], curves)
    return row, {f"{one}-{other}": barrier for (one, other), barrier in barriers.items()}


def of_mean(lab: Lab, models: list[ob.Params], curves: Mapping[tuple[str, str], ob.Curve]) -> float:
    """Return the test loss of the mean of networks minus the mean of their losses."""
    mean = {name: sum(params[name].float() for params in models) / len(models) for name in models[0]}
    point = ob.evaluate_path(lab.model, mean, mean, lab.evaluation("test"), 2, batchnorm_batches=lab.statistics)
    first = curves["a", "b"].loss[0]
    others = [curves["a", letter].loss[-1] for letter in LETTERS[1 : len(models)]]
    return point.loss[0] - (first + sum(others)) / len(models)


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment on one net."""
    run(NAME, parser_of(__doc__, ste=True), experiment, arguments)


if __name__ == "__main__":
    main()
