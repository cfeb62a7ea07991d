"""What layers see along the singular vectors of their weights (Fig. 4).

    python experiments/ito_fig4_inputs.py --data DIR [--net NAME] [--models DIR]

Expected (ito2025): the inputs of a layer are largest along the right singular vectors of large singular values; so
aligning those keeps most of what the layer computes.
"""

import argparse
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import spearmanr

import onebasin as ob
from data import batches
from ito import Lab, gathered, parser_of, run, show
from running import judged

NAME = "ito_fig4_inputs"
LARGE, IMAGES = 0.3, 10_000


def experiment(lab: Lab, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Measure every seed's inputs over training images."""
    measure = ob.LayerInputs(lab.model, batches(lab.splits["train"], 500, IMAGES), patches=True)
    found = [ob.input_alignment(params, measure(params)) for params in lab.params]
    print(found[0])
    rows = {name: gathered([summary(one.layers[name]) for one in found]) for name in found[0].layers}
    table = show(rows)
    expected = {
        f"{name}: large vectors hold more than three times their share of the inputs": (
            row["share of inputs"]["mean"] > 3 * row["share of directions"]["mean"]
        )
        for name, row in table.items()
    }
    return {"expected": judged(expected), "layers": table}, {"": ob.input_figure(found[0], LARGE)}


def summary(layer: Any) -> dict[str, float]:
    """Return what share of directions, inputs and outputs is that of the large vectors, and how ranks agree."""
    return {
        "share of directions": layer.kept(LARGE) / layer.directions,
        "share of inputs": layer.share(LARGE),
        "share of outputs": layer.output_share(LARGE),
        "rank correlation": float(spearmanr(layer.values, layer.moments).statistic),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment on one net."""
    run(NAME, parser_of(__doc__), experiment, arguments)


if __name__ == "__main__":
    main()
