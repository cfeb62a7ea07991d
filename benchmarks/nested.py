"""Attention heads, each with orders of its own inside: 32 heads of 128 units, all pairs of heads compared.

Every pair of heads is two assignments of 128 units; those that bounds rule out are not solved. Independent heads
(singular values fall as i^-0.5) leave little to rule out; heads that are each other's up to noise next to everything.

    python -m benchmarks --only nested
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

import onebasin as ob
from benchmarks.growth import power_law
from benchmarks.timing import Phases, Row
from benchmarks.weight_matching import PHASES

HEADS, UNITS, STREAM = 32, 128, 512


def heads() -> ob.PermutationSpec:
    """Describe queries, keys, values and outputs on a residual stream that stays as it is."""
    inside = {name: ob.Product((ob.Leaf(HEADS, "head"), ob.Leaf(UNITS, name))) for name in ("qk", "vo")}
    axes = {"q": (inside["qk"], None), "k": (inside["qk"], None), "v": (inside["vo"], None), "o": (None, inside["vo"])}
    shapes = {name: (STREAM, HEADS * UNITS) if name == "o" else (HEADS * UNITS, STREAM) for name in axes}
    return replace(ob.PermutationSpec.from_axes(axes, shapes), parents={name: ("head",) for name in inside})


def noisy(params: ob.Params, seed: int) -> ob.Params:
    """Add noise of half the size of the weights."""
    random = torch.Generator().manual_seed(seed)
    return {name: x + 0.5 * x.std() * torch.randn(x.shape, generator=random) for name, x in params.items()}


def run(large: bool = False) -> Iterator[Row]:
    spec = heads()
    a = power_law(spec, 0)
    planted = ob.Permutation.random(spec, torch.Generator().manual_seed(2)).apply(noisy(a, 3))
    for name, b in (("independent", power_law(spec, 1)), ("planted", planted)):
        phases = Phases()
        with phases.phase("other"), phases.watching(PHASES):
            found = ob.align(spec, a, b)
        everything = 2 * HEADS**2 + 1
        count, title = found.certificate.assignments, f"{HEADS} heads of {UNITS}, {name}"
        yield Row(f"{title}: assignments solved", count, "all pairs of heads", count / everything, "")
        spent = phases.spent
        yield Row(f"{title}: assignment", spent["assignment"], "products", spent["assignment"] / spent["products"])
        yield Row(f"{title}: weight matching", phases.total, "products", phases.total / spent["products"])
