"""Three and more networks, each matched to the first by itself: do they share one basin? (Table 3, Fig. 5).

    python experiments/ito_table3_three_models.py --data DIR [--net NAME] [--models DIR] [--ste-epochs N]

b and c are matched to a, never to each other. Expected (ito2025): the barrier between the matched b and c is lower with
weight matching than with the straight-through estimator, which knows nothing but the path to a.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

import onebasin as ob
from ito import Lab, activation_matching, as_trained, gathered, parser_of, run, show, ste_recipes, weight_matching
from running import judged

NAME = "ito_table3_three_models"
POINTS, IMAGES = 13, 2500  # of the plane, along an axis; and test images it is measured on
LETTERS = "abcde"


def experiment(lab: Lab, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Match every seed to a first one in turn; measure the lines between three and more, and draw the planes."""
    straight, *_ = ste_recipes(args.ste_epochs).items()
    methods = {
        "as trained": as_trained,
        "weight matching": weight_matching,
        "activation matching": activation_matching,
        straight[0]: straight[1],
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    planes: dict[str, ob.Plane] = {}
    for a, *others in lab.tuples(min(len(lab.params), len(LETTERS))):
        for name, method in methods.items():
            models = {"a": a} | {
                letter: method(lab, a, b) for letter, b in zip(LETTERS[1:], others[: most(name, others)], strict=False)
            }
            rows[name].append(between(lab, models))
            print(f"{name}: {rows[name][-1]}", flush=True)
            if name not in planes:
                three = [models[letter] for letter in "abc"]
                evaluate = lab.evaluation("test", IMAGES)
                planes[name] = ob.evaluate_plane(
                    lab.model, three, evaluate, POINTS, batchnorm_batches=lab.statistics and lab.statistics[:4]
                )
    table = show({name: gathered(found) for name, found in rows.items()})
    weight, ste = (table[name]["barrier b-c"]["mean"] for name in ("weight matching", straight[0]))
    expected = {
        "between the matched b and c, weight matching has the lower barrier": weight < ste,
        "and it is below a tenth of the one as trained": weight < 0.1 * table["as trained"]["barrier b-c"]["mean"],
    }
    kept = {name: plane.to_json() for name, plane in planes.items()}
    figure = ob.plane_figure(planes, ("a", "b, moved", "c, moved"))
    return {"expected": judged(expected), "table": table, "planes": kept, "recipe": straight[1]}, {"": figure}


def most(name: str, others: list[ob.Params]) -> int:
    """Return how many networks to match beside the first: two where each costs minutes."""
    return min(2, len(others)) if name.startswith("STE") else len(others)


def between(lab: Lab, models: Mapping[str, ob.Params]) -> dict[str, float]:
    """Return barriers at the midpoints between three networks, and of the mean of all of 3, 4, ... networks."""
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
    return row


def of_mean(lab: Lab, models: list[ob.Params], curves: Mapping[tuple[str, str], ob.Curve]) -> float:
    """Return the test loss of the mean of networks minus the mean of their losses."""
    mean = {name: sum(params[name].float() for params in models) / len(models) for name in models[0]}
    middle = ob.evaluate_path(lab.model, mean, mean, lab.evaluation("test"), 2, batchnorm_batches=lab.statistics).loss[
        0
    ]
    first = curves["a", "b"].loss[0]
    others = [curves["a", letter].loss[-1] for letter in LETTERS[1 : len(models)]]
    return middle - (first + sum(others)) / len(models)


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment on one net."""
    run(NAME, parser_of(__doc__, ste=True), experiment, arguments)


if __name__ == "__main__":
    main()
