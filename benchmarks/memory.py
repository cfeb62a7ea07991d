"""Peak memory of weight matching beyond the two models, as a multiple of the size of one. Bar: 2.2 at most.

Every measurement has a process of its own, which begins with the two models and then matches them. What it holds at
most is the kernel's figure; large models only, for which a few fixed buffers do not count.

    python -m benchmarks --only memory [--large]
"""

import multiprocessing
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import onebasin as ob
from benchmarks.timing import Row


def chain(width: int, depth: int) -> ob.PermutationSpec:
    """Describe `depth` square layers in a row."""
    axes = {str(n): (f"P{n}" if n < depth - 1 else None, f"P{n - 1}" if n else None) for n in range(depth)}
    return ob.PermutationSpec.from_axes(axes, dict.fromkeys(axes, (width, width)))


def decoder(width: int, depth: int, heads: int) -> ob.PermutationSpec:
    """Describe the layers of a decoder whose residual stream is fixed: attention heads with their units, and an MLP."""
    axes: dict[str, tuple[ob.Product | str | None, ...]] = {}
    for n in range(depth):
        qk, vo = (
            ob.Product((ob.Leaf(heads, f"head{n}"), ob.Leaf(width // heads, f"{kind}{n}"))) for kind in ("qk", "vo")
        )
        axes |= {f"{n}.q": (qk, None), f"{n}.k": (qk, None), f"{n}.v": (vo, None), f"{n}.o": (None, vo)}
        axes |= {f"{n}.up": (f"ffn{n}", None), f"{n}.down": (None, f"ffn{n}")}
    parents = {f"{kind}{n}": (f"head{n}",) for n in range(depth) for kind in ("qk", "vo")}
    return replace(ob.PermutationSpec.from_axes(axes, dict.fromkeys(axes, (width, width))), parents=parents)


SPECS: dict[str, Callable[[], ob.PermutationSpec]] = {
    "chain, 64 layers of 1024": lambda: chain(1024, 64),
    "decoder, 12 layers of 1024": lambda: decoder(1024, 12, heads=16),
    "chain, 12 layers of 4096": lambda: chain(4096, 12),
    "decoder, 2 layers of 4096": lambda: decoder(4096, 2, heads=32),
}
# What runs by default, and what takes minutes.
SMALL = (("chain, 64 layers of 1024", torch.float32), ("decoder, 12 layers of 1024", torch.float32))
LARGE = (("chain, 12 layers of 4096", torch.bfloat16), ("decoder, 2 layers of 4096", torch.bfloat16))


def resident() -> int:
    """Return what this process holds now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def child(name: str, dtype: torch.dtype, answer: Connection) -> None:
    torch.set_num_threads(1)
    spec, random = SPECS[name](), torch.Generator().manual_seed(0)
    # One tensor after the other: what is drawn in float32 is soon let go.
    a, b = (
        {tensor: torch.randn(shape, generator=random).to(dtype) for tensor, shape in spec.shapes.items()} for _ in "ab"
    )
    before = resident()
    found = ob.align(spec, a, b, ob.WeightMatching(max_sweeps=2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    answer.send((peak, sum(tensor.nbytes for tensor in a.values()), found.certificate.gap))


def measure(name: str, dtype: torch.dtype) -> Row:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=child, args=(name, dtype, there))
    process.start()
    there.close()
    peak, one, _ = here.recv()
    process.join()
    return Row(f"{name}, {str(dtype)[6:]}: memory beyond the two", peak / 1e9, "one model", peak / one, "GB")


def run(large: bool = False) -> Iterator[Row]:
    for name, dtype in SMALL + (LARGE if large else ()):
        yield measure(name, dtype)
