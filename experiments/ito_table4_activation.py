"""Activation matching beside weight matching: barrier, L2 reduction, R (Table 4).

    python experiments/ito_table4_activation.py --data DIR [--net NAME] [--models DIR]

Expected (ito2025): all three are close to those of weight matching.
"""

import argparse
from typing import Any

from matplotlib.figure import Figure

from ito import Lab, activation_matching, as_trained, compared, parser_of, run, weight_matching
from running import judged

NAME = "ito_table4_activation"


def experiment(lab: Lab, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Measure every pair of seeds under both methods."""
    methods = {"as trained": as_trained, "weight matching": weight_matching, "activation matching": activation_matching}
    table = compared(lab, methods)
    naive, weight, activation = ({key: value["mean"] for key, value in row.items()} for row in table.values())
    apart = abs(activation["barrier, test"] - weight["barrier, test"])
    expected = {
        "barriers differ by less than a tenth of the one as trained": apart < 0.1 * naive["barrier, test"],
        "the L2 reduction is at least two thirds of weight matching's": (
            activation["reduction %"] > 2 / 3 * weight["reduction %"]
        ),
        "R of the large vectors is at least two thirds of weight matching's": (
            activation["R 0.3"] > 2 / 3 * weight["R 0.3"]
        ),
    }
    return {"expected": judged(expected), "table": table}, {}


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment on one net."""
    run(NAME, parser_of(__doc__), experiment, arguments)


if __name__ == "__main__":
    main()
