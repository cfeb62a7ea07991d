"""Singular values of two seeds, and how far weight matching aligns their singular vectors (Figs 1, 2 and 3).

    python experiments/ito_fig1_fig2_r.py --data DIR [--net NAME] [--models DIR]

Expected (ito2025): seeds have nearly the same singular values; R is about 0 as trained, higher after weight matching,
and higher for the large vectors (gamma 0.3) than for all; the merged network agrees with both originals better when
they were matched. R of the MLP was about 0.8 there, so several readings of the formula are reported beside it.
"""

import argparse
from typing import Any

from matplotlib.figure import Figure

import onebasin as ob
from ito import GAMMAS, Lab, gathered, parser_of, run, show, weight_matching
from running import judged

NAME = "ito_fig1_fig2_r"
SEARCHES = 5
LARGE = 0.3


def experiment(lab: Lab, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Compare the first pair under five searches, and every pair of seeds under one."""
    a, b = next(lab.tuples(2))
    naive = ob.spectrum(lab.spec, a, b, LARGE)
    print(naive)
    ends = [weight_matching(lab, a, b, seed) for seed in range(SEARCHES)]
    searches = [ob.spectrum(lab.spec, a, end, LARGE) for end in ends]
    print(searches[0])
    pairs = {"as trained": [naive], "weight matching": [searches[0]]}
    for one, other in list(lab.tuples(2))[1:]:
        pairs["as trained"].append(ob.spectrum(lab.spec, one, other, LARGE))
        pairs["weight matching"].append(ob.spectrum(lab.spec, one, weight_matching(lab, one, other), LARGE))
    merged = {
        f"{name}, against {which}": ob.spectrum(lab.spec, original, ob.lerp(a, end, 0.5), LARGE)
        for name, end in (("as trained", b), ("weight matching", ends[0]))
        for which, original in (("a", a), ("b", end))
    }
    every = {**{f"pairs, {name}": found for name, found in pairs.items()}, "searches, weight matching": searches}
    every |= {f"merged, {name}": [found] for name, found in merged.items()}
    table = show({name: gathered([sweep(one) for one in found]) for name, found in every.items()})
    readings = show({name: gathered([read_as(one) for one in found]) for name, found in pairs.items()})
    r = {name: {key: value["mean"] for key, value in row.items()} for name, row in table.items()}
    apart = [layer.shape_difference for found in pairs["as trained"] for layer in hidden(found).values()]
    matched, at = r["pairs, weight matching"], f"R {LARGE:g}"
    expected = {
        "R as trained is within 0.05 of 0": all(abs(r["pairs, as trained"][key]) < 0.05 for key in ("R 0", at)),
        "R after weight matching is above 0.1 for the large vectors": matched[at] > 0.1,
        "and higher for the large vectors than for all": matched[at] > matched["R 0"],
        "the merged network agrees with both better if they were matched": all(
            r[f"merged, weight matching, against {x}"][at] > r[f"merged, as trained, against {x}"][at] for x in "ab"
        ),
        "hidden layers of two seeds have the same spectrum within a tenth, up to a factor": max(apart) < 0.1,
    }
    panels = {"between seeds": pairs}
    panels |= {
        f"merged network and {which}": {name: [merged[f"{name}, against {which}"]] for name in pairs} for which in "ab"
    }
    figures = {
        "": ob.alignment_figure(panels, (0.0, LARGE)),
        "_spectra": ob.spectrum_figure(naive, ("seed 0", "seed 1")),
        "_layers": ob.heat_figure({"as trained": naive, "weight matching": searches[0]}, GAMMAS),
    }
    kept = {f"{gamma:g}": naive.at(gamma).kept for gamma in GAMMAS}
    spectra = {
        name: {"difference": layer.difference, "ratio": layer.ratio, "shape_difference": layer.shape_difference}
        for name, layer in naive.layers.items()
    }
    results = {"table": table, "readings": readings, "vectors_kept": kept, "spectra": spectra}
    return {"expected": judged(expected), **results}, figures


def sweep(found: ob.Spectrum) -> dict[str, float]:
    """Return R for every threshold."""
    return {f"R {gamma:g}": found.at(gamma).alignment for gamma in GAMMAS}


def hidden(found: ob.Spectrum) -> dict[str, Any]:
    """Return the layers between the first and the last."""
    return {name: found.layers[name] for name in list(found.layers)[1:-1]}


def read_as(found: ob.Spectrum) -> dict[str, float]:
    """Return R for the large vectors under other readings of its definition."""
    large = found.at(LARGE)
    inner = [large.layer_alignment[name] for name in hidden(found)]
    alone = list(large.layer_alignment.values())
    one_sided, weighted, norm = 0.0, 0.0, 0.0
    for layer in large.layers.values():
        kept, other = layer.kept(LARGE)
        one_sided += float(layer.products[:kept].sum())
        values_a, values_b = layer.values_a[:kept], layer.values_b[:other]
        weighted += float(values_a @ layer.products[:kept, :other] @ values_b)
        norm += float(values_a.norm() * values_b.norm())
    matched = sum(layer.products.diagonal().abs()[: large.counts[name]].sum() for name, layer in large.layers.items())
    return {
        "as here": large.alignment,
        "mean of layers": sum(alone) / len(alone),
        "hidden layers": sum(inner) / len(inner),
        "best layer": max(alone),
        "gamma absolute": found.at(LARGE, absolute=True).alignment,
        "gamma on a alone": one_sided / sum(kept for kept, _ in large.kept.values()),
        "weighted by s_i s_j": weighted / norm,
        "i = j, no signs": float(matched) / sum(large.counts.values()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment on one net."""
    run(NAME, parser_of(__doc__), experiment, arguments)


if __name__ == "__main__":
    main()
