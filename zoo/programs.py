"""Random programs: a beginning, some operations drawn by weight, and linear heads at the end."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from onebasin.symmetry.export import ExampleInputs
from zoo import moves, operations  # noqa: F401  # importing them fills OPERATIONS
from zoo.writer import OPERATIONS, VOCABULARY, Stuck, Value, Writer

LENGTHS = (3, 12)


def program(seed: int, length: int | None = None) -> str:
    """Write the program of `seed`: Python source with a module `Program` and its `inputs`.

    Args:
        seed: what is drawn; the same seed gives the same text.
        length: number of operations; default: drawn. A shorter program of the same seed begins in the same way.
    """
    count = random.Random(f"length {seed}").randint(*LENGTHS) if length is None else length
    writer = Writer(random.Random(seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _begin(writer)
        for operation in writer.random.choices(list(OPERATIONS), list(OPERATIONS.values()), k=3 * LENGTHS[1]):
            if count and writer.apply(operation, writer.pick()):
                count -= 1
        return writer.source(_end(writer))


def load(source: str, seed: int = 0) -> tuple[nn.Module, ExampleInputs]:
    """Run the source of a program; return its module and example inputs."""
    scope: dict[str, Any] = {"__name__": "program"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        exec(compile(source, "program.py", "exec"), scope)
        return scope["Program"]().eval(), scope["inputs"]()


def _begin(w: Writer) -> None:
    kind, width = w.random.choice(("tokens", "vectors", "sequence", "sequence", "image", "image")), w.width()
    length, places = w.random.choice((3, 4, 6)), w.random.choice((3, 4))
    if kind == "tokens":
        x = w.start(f"torch.randint(0, {VOCABULARY}, (2, {length}))")
        w.line(f"{w.layer(f'nn.Embedding({VOCABULARY}, {width})')}({x.name})")
    elif kind == "image":
        x = w.start(f"torch.randn(2, 3, {places}, {places})")
        w.line(f"{w.layer(f'nn.Conv2d(3, {width}, 3, padding=1)')}({x.name})")
    else:
        x = w.start("torch.randn(2, 3)" if kind == "vectors" else f"torch.randn(2, {length}, 3)")
        w.line(f"{w.layer(f'nn.Linear(3, {width})')}({x.name})")
    w.values.remove(x)


def _end(w: Writer) -> str:
    unused = [value for value in w.values[:-1] if value.name not in w.used]
    ends = [w.values[-1], *w.random.sample(unused, min(len(unused), w.random.choice((0, 1, 2))))]
    return ", ".join(_head(w, value) for value in ends) + ","


def _head(w: Writer, x: Value) -> str:
    """An output: linear in the last axis, or in all but the first, or in the mean over an axis."""
    kind = w.random.random()
    try:
        if x.rank > 2 and kind < 0.3:
            x = w.line(f"{x.name}.mean({w.random.randrange(1, x.rank - 1)})")
        elif x.rank > 2 and kind < 0.7:
            x = w.line(f"{x.name}.flatten(1)")
        return w.line(f"{w.layer(f'nn.Linear({x.shape[-1]}, 2)')}({x.name})").name
    except Stuck:
        return x.name
