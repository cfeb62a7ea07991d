"""Call: one operation of the graph as a rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from onebasin.errors import DiscoveryError
from onebasin.layout import NOT_UNDERSTOOD
from onebasin.symmetry.abstract import Abstract, Blocks, Labelled, Record
from onebasin.symmetry.axes import Term, freeze, leaf, split_sum
from onebasin.symmetry.export import location

Value = Any  # Abstract, Blocks, a plain Python value, or a list or tuple of these
Rule = Callable[["Call"], Value]
# (name of a view node, dimension of its output) -> offsets at which that dimension is cut later on.
Cuts = dict[tuple[str, int], set[int]]


@dataclass
class Context:
    """What a run over the graph collects besides the axes themselves."""

    cuts: Cuts
    record: Record = field(default_factory=Record)
    wanted_cuts: Cuts = field(default_factory=dict)
    taps: dict[str, tuple[Term, ...]] = field(default_factory=dict)
    unknown: dict[str, fx.Node] = field(default_factory=dict)


@dataclass
class Call:
    """One operation: its arguments by schema name with defaults filled in, and the shapes it returns.

    `call["dim"]` is a plain argument; `call.tensor("input")` an abstract tensor.
    """

    name: str
    node: fx.Node
    arguments: dict[str, Value]
    context: Context

    def __getitem__(self, key: str) -> Value:
        return self.arguments[key]

    def get(self, key: str, default: Value = None) -> Value:
        """Return a plain argument, or `default` where the overload does not have it."""
        return self.arguments.get(key, default)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all tensors returned."""
        values = [value for value in flat(self.node.meta.get("val")) if isinstance(value, Tensor)]
        if any(not isinstance(size, int) for value in values for size in value.shape):
            raise DiscoveryError(
                f"a tensor whose size depends on values ({self.where})",
                "sizes that follow from the shapes of the inputs",
                "replace the selection by a mask (torch.where), or by top-k with a fixed count",
            )
        return [tuple(value.shape) for value in values]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first tensor returned."""
        return self.shapes[0]

    @property
    def where(self) -> str:
        """The operation and its line in the user's model, for reasons."""
        line = location(self.node)
        return f"{self.name} at {line}" if line else self.name

    def tensor(self, key: str) -> Abstract:
        """Return a tensor argument, blocks collapsed, a constant fill with fresh axes."""
        return self._use(self.arguments[key])

    def optional(self, key: str) -> Abstract | None:
        """Return a tensor argument, or None if it was not passed."""
        value = self.arguments.get(key)
        return self._use(value) if isinstance(value, (Abstract, Blocks)) else None

    def tensors(self, key: str) -> list[Abstract]:
        """Return a list of tensors."""
        return [self._use(value) for value in self.arguments[key]]

    def operands(self) -> list[Abstract]:
        """Return every tensor argument, lists included."""
        return [self._use(value) for value in flat(self.arguments.values()) if isinstance(value, (Abstract, Blocks))]

    def dim(self, rank: int, key: str = "dim") -> int:
        """Return a dimension argument as a number from 0 to rank - 1."""
        return int(self.arguments[key]) % max(rank, 1)

    def join(self, operands: Sequence[Labelled], out: Sequence[Hashable]) -> tuple[Term, ...]:
        """Unify axes of equal label, as letters in an einsum; return the terms of the labels `out`."""
        return self.context.record.join(operands, out)

    def hidden(self, terms: Iterable[Term]) -> None:
        """Declare a tensor that the operation computes inside, such as the statistics of a norm."""
        self.context.record.tensors.append(tuple(terms))

    def tap(self, key: str, axes: Sequence[Term], number: int | None = None) -> None:
        """Note that units can be read where this operand (of a list, its `number`) was made, unless a parameter."""
        source: Any = next((arg for name, arg in schema_arguments(self.node) if name == key), None)
        source = source if number is None else source[number]
        if isinstance(source, fx.Node) and source.op == "call_function":
            self.context.taps[source.name] = tuple(axes)

    def freeze(self, terms: Iterable[Term], why: str) -> None:
        """Freeze `terms`, naming this operation."""
        for term in terms:
            freeze(term, f"{why} ({self.where})")

    def fixed(self, size: int, why: str) -> Term:
        """Return a new frozen axis, naming this operation."""
        return leaf(size, f"{why} ({self.where})")

    def frozen(self, why: str) -> Value:
        """Freeze every operand; return frozen tensors of the right shapes."""
        for operand in self.operands():
            self.freeze(operand.axes, why)
        found = [Abstract(tuple(self.fixed(size, why) for size in shape)) for shape in self.shapes]
        return found[0] if isinstance(self.node.meta.get("val"), Tensor) else found

    def given_up(self, why: str) -> Value:
        """Freeze everything for want of a rule that covers this use: a larger group may exist."""
        return self.frozen(NOT_UNDERSTOOD + why)

    def cut(self, term: Term, sizes: Sequence[int]) -> list[Term]:
        """Cut an axis; if a reshape made it, ask for another run in which that reshape keeps the parts apart."""
        node = term.root()
        if len(sizes) > 1:
            offset = 0
            for size in sizes[:-1]:
                offset += size
                if 0 < offset < node.size:
                    for view in node.views:
                        self.context.wanted_cuts.setdefault(view, set()).add(offset)
        return split_sum(term, sizes)

    def _use(self, value: Abstract | Blocks) -> Abstract:
        if isinstance(value, Blocks):
            return value.collapse()
        if value.meaning is not None:
            self.freeze([value.meaning.axis], "the number of a position is used")
        return Abstract(tuple(leaf(size) for size in value.shape), value.constant) if value.fill else value


def flat(value: Any) -> Iterator[Any]:
    """Yield the items of nested lists, tuples, dicts and views of dicts."""
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, (list, tuple)) or type(value).__name__ == "dict_values":
        for item in value:
            yield from flat(item)
    else:
        yield value


def schema_arguments(node: fx.Node) -> list[tuple[str, Any]]:
    """Return (name, argument) for a node that calls an operator, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return [(f"arg{number}", value) for number, value in enumerate(node.args)]
    found = []
    for number, argument in enumerate(schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        value = node.args[number] if number < len(node.args) else node.kwargs.get(argument.name, default)
        found.append((argument.name, value))
    return found
