"""The straight-through estimator: a low barrier without aligned singular vectors (Table 2, section 6.2).

    python experiments/ito_table2_ste.py --data DIR [--net NAME] [--models DIR] [--ste-epochs N]

Expected (ito2025): the barrier is as low as that of weight matching, or lower, yet R is about 0. Which recipe the paper
used is not known here; both recipes of later code by the same group are run (10 and 100 epochs there). Their free copy
begins at a, so that the first order is that of weight matching, whose R is not 0; so the estimator also begins from the
order in which b was trained.
"""

import argparse
from typing import Any

from matplotlib.figure import Figure

from ito import Lab, as_trained, compared, parser_of, run, scatter, ste_recipes, weight_matching
from running import judged

NAME = "ito_table2_ste"


def experiment(lab: Lab, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Measure every pair of seeds under both recipes, beside weight matching."""
    recipes = ste_recipes(args.ste_epochs)
    table = compared(lab, {"as trained": as_trained, "weight matching": weight_matching, **recipes})
    naive, weight = (table[name] for name in ("as trained", "weight matching"))
    expected = {}
    for name in recipes:
        row = {key: value["mean"] for key, value in table[name].items()}
        low = 0.1 * naive["barrier, train"]["mean"]
        expected |= {
            f"{name}: the training barrier is below a tenth of the one as trained": row["barrier, train"] < low,
            f"{name}: R of the large vectors is below a quarter of weight matching's": (
                row["R 0.3"] < weight["R 0.3"]["mean"] / 4
            ),
        }
    figure = scatter({name: [row] for name, row in table.items()}, "how the second network of each pair was permuted")
    return {"expected": judged(expected), "table": table, "recipes": recipes}, {"": figure}


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment on one net."""
    run(NAME, parser_of(__doc__, ste=True), experiment, arguments)


if __name__ == "__main__":
    main()
