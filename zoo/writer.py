"""Writes a random program line by line, as Python source that runs as it is."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, ...]
# Widths with many divisors, and few of them: axes that could be mistaken for each other are the dangerous ones.
WIDTHS = (2, 3, 4, 6, 6, 8, 12)
MAX_ELEMENTS = 3000
VOCABULARY = 7

TEMPLATE = """\
import torch
from torch import nn
from torch.nn import functional as F


class Program(nn.Module):
    def __init__(self):
        super().__init__()
{layers}

    def forward(self, x):
{lines}


def inputs():
    return ({inputs},)


if __name__ == "__main__":
    import onebasin as ob

    print(ob.permutation_spec(Program(), inputs()))
"""


@dataclass(frozen=True)
class Value:
    """A tensor that the program has computed."""

    name: str
    shape: Shape

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


class Stuck(Exception):
    """The operation drawn does not fit the values at hand: draw another."""


Operation = Callable[["Writer", Value], str]
OPERATIONS: dict[Operation, int] = {}


@dataclass
class Writer:
    """Writes a program line by line; each line is run as it is written, so that all shapes are known."""

    random: random.Random
    module: nn.Module = field(default_factory=nn.Module)
    layers: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    scope: dict[str, Any] = field(default_factory=dict)
    inputs: str = ""

    def __post_init__(self) -> None:
        self.scope = {"torch": torch, "nn": nn, "F": F, "self": self.module}

    def start(self, source: str) -> Value:
        """Begin with the input that `source` draws."""
        self.inputs = source
        return self._keep("x", eval(source, self.scope))

    def layer(self, source: str) -> str:
        """Write a layer or parameter; return the expression that stands for it."""
        name = f"self.a{len(self.layers)}"
        if hasattr(self.module, f"a{len(self.layers)}"):  # left from an operation that did not fit
            delattr(self.module, f"a{len(self.layers)}")
        exec(f"{name} = {source}", self.scope)
        self.layers.append(f"{name} = {source}")
        return name

    def parameter(self, *shape: int) -> str:
        """Write a parameter of this shape."""
        return self.layer(f"nn.Parameter(torch.randn({', '.join(map(str, shape))}))")

    def line(self, expression: str) -> Value:
        """Write `v = expression`; raise `Stuck` if it cannot be run, or gives no tensor of moderate size."""
        name = f"v{len(self.lines)}"
        try:
            value = eval(expression, self.scope)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, NotImplementedError) as error:
            raise Stuck(expression) from error
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.dim():
            raise Stuck(expression)
        if not 0 < value.numel() <= MAX_ELEMENTS:
            raise Stuck(expression)
        self.lines.append(f"{name} = {expression}")
        self.used |= set(re.findall(r"\w+", expression))
        return self._keep(name, value)

    def apply(self, operation: Operation, x: Value) -> bool:
        """Write one operation on `x`; if it does not fit, leave the program as it was and return False."""
        before = len(self.layers), len(self.lines), len(self.values)
        try:
            self.line(operation(self, x))
        except Stuck:
            for written, length in zip((self.layers, self.lines, self.values), before, strict=True):
                del written[length:]
            return False
        return True

    def pick(self) -> Value:
        """Choose a value, a late one more often."""
        return self.values[-1] if self.random.random() < 0.6 else self.random.choice(self.values[-5:])

    def dim(self, x: Value, least: int = 2) -> int:
        """Choose an axis of `x` that is not short."""
        fitting = [number for number, size in enumerate(x.shape) if size >= least]
        if not fitting:
            raise Stuck("all axes are short")
        return self.random.choice(fitting)

    def width(self) -> int:
        """Choose a number of units."""
        return self.random.choice(WIDTHS)

    def cuts(self, size: int) -> list[int]:
        """Cut `size` into two or three parts."""
        count = self.random.choice((2, 2, 3))
        if size < count:
            raise Stuck("too short to cut")
        at = sorted(self.random.sample(range(1, size), count - 1))
        return [end - begin for begin, end in zip([0, *at], [*at, size], strict=True)]

    def divisor(self, size: int) -> int:
        """Choose a proper divisor of `size`."""
        found = [number for number in range(2, size) if size % number == 0]
        if not found:
            raise Stuck("a prime axis")
        return self.random.choice(found)

    def source(self, result: str) -> str:
        """Return the whole program, which returns `result`."""
        lines = [*self.lines, f"return {result}"]
        return TEMPLATE.format(
            layers="\n".join(" " * 8 + line for line in self.layers) or " " * 8 + "pass",
            lines="\n".join(" " * 8 + line for line in lines),
            inputs=self.inputs,
        )

    def _keep(self, name: str, value: Tensor) -> Value:
        self.scope[name] = value
        kept = Value(name, tuple(value.shape))
        self.values.append(kept)
        return kept


def often(weight: int) -> object:
    """Register an operation that is drawn `weight` times as often as the rarest."""

    def register(function: Operation) -> Operation:
        OPERATIONS[function] = weight
        return function

    return register


def ranked(x: Value, *ranks: int) -> None:
    """Refuse values of another number of axes."""
    if x.rank not in ranks:
        raise Stuck(f"{x.rank} axes")


def even(w: Writer, x: Value) -> int:
    """Choose an axis of even length."""
    found = [number for number, size in enumerate(x.shape) if size % 2 == 0]
    if not found:
        raise Stuck("no even axis")
    return w.random.choice(found)


def listed(sizes: object) -> str:
    """Write sizes as arguments."""
    return ", ".join(map(str, sizes))  # type: ignore[call-overload]


def fits(small: tuple[int, ...], big: tuple[int, ...]) -> bool:
    """Say whether `small` broadcasts to `big`."""
    return all(a in (b, 1) for a, b in zip(small, big, strict=True))
