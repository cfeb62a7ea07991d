"""What happens to the barrier when only some singular directions are matched, or some are broken at equal L2.

    python experiments/ito_interventions.py --data DIR [--net NAME] [--models DIR]

ito2025 shows that weight matching aligns large singular vectors and lowers the barrier; its reviewers asked for cause.

1. Matching on other spectra: each weight W = sum_i s_i u_i v_i^T is replaced, for the search alone, by
   sum_i f(s_i) u_i v_i^T, which moves as W does. f(s) = s^p counts small and large ones more alike (p < 1; p = 0
   maximises R itself) or less (p > 1); or only singular values above, or below, gamma times the largest are kept.
2. Broken at equal L2: from the matched permutation, pairs of units are swapped until the L2 distance has lost half of
   what matching had gained. Swaps are chosen at random; so that the large vectors lose the least; or the most.
3. Barrier against R over all permutations met here, and against the sweeps of weight matching.
"""

import argparse
import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import onebasin as ob
from ito import Lab, gathered, parser_of, run, scatter, show, spread
from running import judged

NAME = "ito_interventions"
LARGE = 0.3
ZERO = 1e-6  # of the largest: smaller singular values have vectors made of rounding
# name -> power; smallest ratio to the largest singular value that is kept, and first one that is not.
SPECTRA = {
    **{f"s^{power:g}": (power, 0.0) for power in (0.0, 0.5, 1.0, 2.0)},
    **{f"s >= {gamma:g}": (1.0, gamma) for gamma in (0.1, 0.2, 0.3, 0.5, 0.7)},
    **{f"s^0, s >= {gamma:g}": (0.0, gamma) for gamma in (0.1, 0.2, 0.3, 0.5)},
    "s < 0.3": (1.0, 0.0, LARGE),
}
SWAPS, LOSS = 16, 0.5  # made in one group before gains are computed again; and share of the gain that is given up
NEAR, MISSES = 1e-3, 50  # share of what is to be given up that may be left; draws in a row of which no swap fits
TITLE = "permutations by what was varied: spectra matched on, swaps at one L2, sweeps of weight matching"


def experiment(lab: Lab, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Intervene on every pair of seeds."""
    rows: dict[str, dict[str, list[dict[str, float]]]] = {kind: {} for kind in args.kinds}
    for pair in lab.tuples(2):
        a, b = (Parts(params) for params in pair)
        for kind in args.kinds:
            for name, permutation in KINDS[kind](lab, a, b).items():
                row = measured(lab, a, b, permutation)
                rows[kind].setdefault(name, []).append(row)
                print(f"{kind}, {name}: {row}", flush=True)
    tables = {kind: show({name: gathered(part) for name, part in named.items()}) for kind, named in rows.items()}
    expected, saved = {}, {}
    if "swaps" in tables:
        swaps = {name: row["barrier, test"]["mean"] for name, row in tables["swaps"].items()}
        ordered = swaps["large vectors kept"] < swaps["at random"] < swaps["large vectors broken"]
        expected["at equal L2, the barrier is lower the better large vectors are kept"] = ordered
    if "spectra" in tables:
        barriers = {name: row["barrier, test"]["values"] for name, row in tables["spectra"].items()}
        saved = {
            name: spread(x - y for x, y in zip(barriers["s^1"], found, strict=True)) for name, found in barriers.items()
        }
    return {"expected": judged(expected), "tables": tables, "barrier_saved": saved}, {"": figure_of(tables)}


class Parts:
    """A network, with its matrices (unfolded to out x rest) decomposed once.

    Args:
        params: the network.
    """

    def __init__(self, params: ob.Params) -> None:
        self.params = params
        matrices = {name: tensor for name, tensor in params.items() if tensor.dim() > 1 and tensor.is_floating_point()}
        self.parts = {
            name: torch.linalg.svd(tensor.flatten(1).double(), full_matrices=False) for name, tensor in matrices.items()
        }

    def reweighted(self, power: float, low: float = 0.0, high: float = math.inf) -> ob.Params:
        """Return the network with singular values s^power where low <= s / largest < high, and else 0."""
        return {name: self._spectral(name, power, low, high) for name in self.params}

    def kept(self, gamma: float) -> list[int]:
        """Return how many singular values of each matrix are at least `gamma` times its largest."""
        return [int((values >= max(gamma, ZERO) * values[0]).sum()) for _, values, _ in self.parts.values()]

    def _spectral(self, name: str, power: float, low: float, high: float) -> Tensor:
        tensor = self.params[name]
        if name not in self.parts:
            return tensor
        u, values, v = self.parts[name]
        ratio = values / values[0]
        kept = (ratio >= max(low, ZERO)) & (ratio < high)
        new = torch.where(kept, values**power, torch.zeros_like(values))
        return ((u * new) @ v).reshape(tensor.shape).to(tensor.dtype)


def measured(lab: Lab, a: Parts, b: Parts, permutation: ob.Permutation) -> dict[str, float]:
    """Measure one permutation. R is the inner product of the polar factors of the matrices, truncated at gamma."""
    moved = permutation.apply(b.params)
    return {
        "barrier, test": lab.curve(a.params, moved).barrier("midpoint"),
        "reduction %": ob.distance(lab.spec, a.params, b.params, moved).reduction,
        **{f"R {gamma:g}": overlap(a, b, permutation, gamma) for gamma in (0.0, LARGE)},
    }


def overlap(a: Parts, b: Parts, permutation: ob.Permutation, gamma: float) -> float:
    """Return R as `ob.spectrum` does, without decomposing the moved matrices again."""
    one, other = a.reweighted(0.0, gamma), permutation.apply(b.reweighted(0.0, gamma))
    total = sum((one[name].double() * other[name]).sum().item() for name in a.parts)
    return total / sum(map(min, a.kept(gamma), b.kept(gamma)))


def on_spectra(lab: Lab, a: Parts, b: Parts) -> dict[str, ob.Permutation]:
    """Match on every spectrum."""
    return {
        name: ob.align(lab.spec, a.reweighted(*how), b.reweighted(*how), ob.WeightMatching()).permutation
        for name, how in SPECTRA.items()
    }


def by_sweeps(lab: Lab, a: Parts, b: Parts) -> dict[str, ob.Permutation]:
    """Stop weight matching after some sweeps."""
    return {
        f"{count} sweeps": ob.align(lab.spec, a.params, b.params, ob.WeightMatching(max_sweeps=count)).permutation
        for count in (1, 2, 3, 5, 100)
    }


def by_swaps(lab: Lab, a: Parts, b: Parts) -> dict[str, ob.Permutation]:
    """Swap units from the matched permutation on, to one L2 distance, in three ways."""
    objective = ob.WeightMatching().objective
    whole = objective(lab.spec, a.params, b.params)
    large = objective(lab.spec, a.reweighted(1.0, LARGE), b.reweighted(1.0, LARGE))
    matched = ob.align(lab.spec, a.params, b.params, ob.WeightMatching()).permutation
    top = whole.value(matched)
    least = top - LOSS * (top - whole.value(ob.Permutation.identity(lab.spec)))
    signs = {"large vectors kept": 1.0, "at random": 0.0, "large vectors broken": -1.0}
    return {name: swapped(lab.spec, whole, large, matched, least, sign) for name, sign in signs.items()}


def swapped(
    spec: ob.PermutationSpec, whole: Any, large: Any, start: ob.Permutation, least: float, sign: float
) -> ob.Permutation:
    """Swap pairs of units until `whole` has fallen to `least`.

    Of random disjoint pairs in a random group, those are taken first that cost `large` the least (sign 1) or the most
    (-1) for what they cost `whole`; with sign 0 in the order drawn. The costs of disjoint pairs of one group add up.
    """
    random = torch.Generator().manual_seed(0)
    now, value, missed = start, whole.value(start), 0
    enough = least + NEAR * (value - least)
    names = [name for name in spec.sizes if not spec.parents.get(name)]
    while value > enough and missed < MISSES:
        name = names[int(torch.randint(len(names), (), generator=random))]
        index = now.indices[name]
        one, other = torch.randperm(len(index), generator=random)[: len(index) // 2 * 2].view(2, -1)
        costs, of_large = (cost(objective.gain(now, name), index, one, other) for objective in (whole, large))
        order = (sign * of_large / costs.clamp(min=1e-9)).argsort(stable=True) if sign else torch.arange(len(one))
        order = order[(costs[order] > 0) & (costs[order] <= value - least)][:SWAPS]
        order = order[costs[order].cumsum(0) <= value - least]
        now = exchange(now, name, one[order], other[order])
        value, missed = whole.value(now), 0 if len(order) else missed + 1
    return now


def cost(gain: Tensor, index: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return how much the objective falls when the units at `one` and `other` change places."""
    return gain[one, index[one]] + gain[other, index[other]] - gain[one, index[other]] - gain[other, index[one]]


def exchange(permutation: ob.Permutation, name: str, one: Tensor, other: Tensor) -> ob.Permutation:
    """Return the permutation with the units at `one` and `other` exchanged in one group."""
    index = permutation.indices[name].clone()
    index[one], index[other] = permutation.indices[name][other], permutation.indices[name][one]
    return ob.Permutation(permutation.spec, {**permutation.indices, name: index})


KINDS = {"spectra": on_spectra, "swaps": by_swaps, "sweeps": by_sweeps}


def figure_of(tables: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the barrier of every trial against R, and against the L2 reduction."""
    groups = {
        f"{kind} ({sum(len(row['R 0']['values']) for row in table.values())})": table for kind, table in tables.items()
    }
    return scatter({label: list(table.values()) for label, table in groups.items()}, TITLE)


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment on one net."""
    parser = parser_of(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="of interventions")
    run(NAME, parser, experiment, arguments)


if __name__ == "__main__":
    main()
