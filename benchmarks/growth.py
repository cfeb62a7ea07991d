"""How the time of weight matching grows with width and depth, on weights whose singular values fall as i^-0.5.

Twice the width: matrix products grow eightfold. Twice the depth: twofold, if it took no more sweeps.

    python -m benchmarks --only growth [--large]
"""

import itertools
import time
from collections.abc import Iterator

import torch

import onebasin as ob
from benchmarks.timing import Row

SWEEPS = 5  # a fixed number, so that what is compared is work and not luck


def chain(width: int, depth: int) -> ob.PermutationSpec:
    """Describe an MLP of `depth` hidden layers on as many inputs as each of them has units."""
    names = [None, *(f"P{number}" for number in range(depth)), None]
    axes = {str(number): (out, inp) for number, (inp, out) in enumerate(itertools.pairwise(names))}
    shapes = {name: (width if out else 10, width) for name, (out, _) in axes.items()}
    return ob.PermutationSpec.from_axes(axes, shapes)


def power_law(spec: ob.PermutationSpec, seed: int) -> ob.Params:
    """Draw matrices U diag(i^-0.5) V with normal U, V."""
    random, params = torch.Generator().manual_seed(seed), {}
    for name, (rows, columns) in spec.shapes.items():
        rank = min(rows, columns)
        left, right = torch.randn(rows, rank, generator=random), torch.randn(rank, columns, generator=random)
        params[name] = (left * torch.arange(1, rank + 1) ** -0.5) @ right / rank
    return params


def seconds(width: int, depth: int) -> float:
    spec = chain(width, depth)
    a, b = power_law(spec, 0), power_law(spec, 1)
    start = time.process_time()
    ob.align(spec, a, b, ob.WeightMatching(seed=0, max_sweeps=SWEEPS))
    return time.process_time() - start


def run(large: bool = False) -> Iterator[Row]:
    seconds(64, 2)
    for width in (512, 1024) + ((2048,) if large else ()):
        taken = seconds(width, 3)
        yield Row(f"MLP 3x{width}: {SWEEPS} sweeps", taken, "half as wide", taken / seconds(width // 2, 3))
    for depth in (6, 12) + ((24,) if large else ()):
        taken = seconds(256, depth)
        yield Row(f"MLP {depth}x256: {SWEEPS} sweeps", taken, "half as deep", taken / seconds(256, depth // 2))
