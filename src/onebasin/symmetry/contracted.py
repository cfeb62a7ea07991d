"""Where a graph multiplies its weights: which operand is one, how it lies there, and what it is multiplied with."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn.functional import pad

from onebasin.layers import Operand
from onebasin.symmetry.call import schema_arguments
from onebasin.symmetry.export import Exported
from onebasin.symmetry.graph import driven, is_view

# Operators that hand on what they get, as far as the order of its elements goes.
SAME = {"clone", "contiguous", "detach", "alias", "to", "_to_copy", "dropout"}
Labels = tuple[Hashable, ...]
KERNEL = "kernel"  # label of the offsets of a kernel, with a number


class Product(NamedTuple):
    """A product of two operands, as an einsum has it: labels of the dimensions of weight, value and result.

    `groups`, of a convolution, is the size of the label "group": its dimension and the next one are one dimension of
    the tensors, which is cut.
    """

    weight: Any
    value: Any
    labels: tuple[Labels, Labels, Labels]
    groups: int = 1
    windows: Windows | None = None


@dataclass(frozen=True)
class Place:
    """A product of a weight and a value that depends on the inputs.

    Args:
        name: of the weight.
        operand: how the weight lies in the product.
        product: the operands and their labels.
        result: the node that computes it.
        roles: labels of the matrices, the outputs and the inputs of the weight.
    """

    name: str
    operand: Operand
    product: Product
    result: fx.Node
    roles: tuple[Labels, Labels, Labels]

    @property
    def nodes(self) -> tuple[fx.Node, fx.Node]:
        """What the weight is multiplied with, and the result."""
        return self.product.value, self.result

    @property
    def key(self) -> Hashable:
        """Equal keys for places that read the same rows."""
        matrices, _, inputs = self.roles
        return self.product.value.name, self.product.labels[1], matrices, inputs, self.product.groups

    @property
    def windows(self) -> Windows | None:
        """What the kernel of a convolution sees of a value."""
        return self.product.windows

    def input_rows(self, x: Tensor) -> Tensor:
        """Return `Float[Tensor, "matrices samples in"]`."""
        matrices, _, inputs = self.roles
        return self._rows(x, 1, matrices, inputs)

    def output_channels(self, y: Tensor) -> Tensor:
        """Return `Float[Tensor, "samples channels"]`."""
        matrices, outs, _ = self.roles
        return self._rows(y, 2, (), (*matrices, *outs))[0]

    def _rows(self, value: Tensor, which: int, first: Labels, last: Labels) -> Tensor:
        """Permute a value to three dimensions: `first`, all others, `last`."""
        labels = self.product.labels[which]
        if self.product.groups > 1:
            value = value.unflatten(labels.index("group"), (self.product.groups, -1))
        others = [label for label in labels if label not in first + last]
        parts = [[labels.index(label) for label in part] for part in (first, others, last)]
        counts = [torch.Size([value.shape[dim] for dim in dims]).numel() for dims in parts]
        return value.permute([dim for dims in parts for dim in dims]).reshape(counts)


@dataclass(frozen=True)
class Windows:
    """Cuts out what the kernel of a convolution sees.

    Args:
        kernel: its sizes.
        stride: in every direction.
        padding: before and after in every direction, the last one first, as `pad` takes them.
        dilation: in every direction.
        groups: of channels.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return `Float[Tensor, "groups samples in*k"]` of `"batch in *positions"`; the batch may be missing."""
        rank = len(self.kernel)
        x = pad(x if x.dim() == rank + 2 else x[None], self.padding).contiguous()
        x = x.unflatten(1, (self.groups, -1))
        shape, strides = list(x.shape[:3]), list(x.stride()[:3])
        for n in range(rank):
            shape.append((x.shape[3 + n] - self.dilation[n] * (self.kernel[n] - 1) - 1) // self.stride[n] + 1)
            strides.append(x.stride(3 + n) * self.stride[n])
        shape += self.kernel
        strides += [x.stride(3 + n) * self.dilation[n] for n in range(rank)]
        seen = x.as_strided(shape, strides)  # batch groups in *positions *kernel
        order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
        return seen.permute(order).reshape(self.groups, -1, shape[2] * torch.Size(self.kernel).numel())


def places_of(exported: Exported) -> list[Place]:
    """Return where parameters, or views of them, are multiplied with what depends on the inputs.

    Parameters that are used in ways that differ are left out.
    """
    live = driven(exported)
    nodes = [node for node in exported.graph.nodes if node.op == "call_function" and node.name in live]
    found = [place for node in nodes for place in _places(exported, node, live)]
    ways: dict[str, set[Operand]] = {}
    for place in found:
        ways.setdefault(place.name, set()).add(place.operand)
    return [place for place in found if len(ways[place.name]) == 1]


def _places(exported: Exported, node: fx.Node, live: dict[str, fx.Node]) -> Iterator[Place]:
    for product in _products(node):
        if not isinstance(product.weight, fx.Node) or getattr(product.value, "name", "") not in live:
            continue
        read = _viewed(exported, product.weight)
        place = None if read is None or not isinstance(read[1], Tensor) else _place(*read, product, node)
        if place is not None:
            yield place


def _place(name: str, view: Tensor, product: Product, result: fx.Node) -> Place | None:
    """Sort the labels of a product by what they are to the weight; None where it is no plain stack of matrices."""
    weight, value, out = product.labels
    x = product.value.meta["val"]
    if product.groups > 1:
        view, x = view.unflatten(0, (product.groups, -1)), x.unflatten(value.index("group"), (product.groups, -1))
    sizes = dict(zip(weight, view.shape, strict=True))
    if len(sizes) < len(weight) or any(sizes.get(n, size) != size for n, size in zip(value, x.shape, strict=True)):
        return None  # a trace, or broadcast
    matrices = tuple(label for label in weight if label in value and label in out)
    inputs = tuple(label for label in weight if label in value and label not in out)
    outs = tuple(label for label in weight if label in out and label not in value)
    offsets = tuple(label for label in weight if label not in (*matrices, *inputs, *outs))
    if not inputs or any(not str(label).startswith(KERNEL) for label in offsets):
        return None
    lying = view.permute([weight.index(label) for label in (*matrices, *outs, *inputs, *offsets)])
    counts = (len(matrices), len(outs), len(inputs))
    operand = Operand(tuple(lying.shape), tuple(lying.stride()), int(lying.storage_offset()), counts)
    return Place(name, operand, product, result, (matrices, outs, inputs))


def _viewed(exported: Exported, node: fx.Node) -> tuple[str, Any] | None:
    """Return the parameter that `node` is a view of, and that view of a contiguous tensor without values."""
    if node.op == "placeholder":
        name = exported.sources.get(node.name)
        own = name is not None and name not in exported.buffers
        return (str(name), torch.empty(node.meta["val"].shape, device="meta")) if own else None
    first = node.args[0] if node.args else None
    before = _viewed(exported, first) if isinstance(first, fx.Node) and node.op == "call_function" else None
    if before is None or any(isinstance(arg, fx.Node) for arg in (*node.args[1:], *node.kwargs.values())):
        return None
    name, value = before
    if node.target is operator.getitem:
        return name, value[node.args[1]]
    if getattr(node.target, "__name__", "").split(".")[0] in SAME:
        return before
    result = node.target(value, *node.args[1:], **node.kwargs) if is_view(node) else None  # type: ignore[operator]
    parts = list(result) if isinstance(result, list | tuple) else [result]
    root = value if value._base is None else value._base
    shared = all(isinstance(part, Tensor) and (part is value or part._base is root) for part in parts)
    return (name, result) if shared else None  # a reshape may copy


def _products(node: fx.Node) -> Iterator[Product]:
    """Yield the products that a node computes, each with either operand as the weight."""
    schema = getattr(node.target, "_schema", None)
    name = "" if schema is None else schema.name.removeprefix("aten::")
    if not isinstance(node.meta.get("val"), Tensor):
        return
    given = dict(schema_arguments(node))
    if name.startswith("conv") or name == "convolution":
        yield from _convolution(name, given)
    elif name == "linear":
        yield from _einsum([given["input"], given["weight"]], *_linear_labels(given))
    elif name in ("matmul", "mm", "bmm", "mv", "dot"):
        pair = [given[key] for key in list(given)[:2]]
        yield from _einsum(pair, *_matmul_labels(*map(_rank, pair)))
    elif name in ("addmm", "baddbmm", "addmv"):
        pair = [given[key] for key in list(given)[1:3]]
        yield from _einsum(pair, *_matmul_labels(*map(_rank, pair)))
    elif name == "einsum" and len(given["tensors"]) == 2:
        labels, out = _letters(given["equation"], list(map(_rank, given["tensors"])))
        yield from _einsum(list(given["tensors"]), labels, out)


def _einsum(pair: Sequence[Any], labels: Sequence[Labels], out: Labels) -> Iterator[Product]:
    for weight, value in ((0, 1), (1, 0)):
        yield Product(pair[weight], pair[value], (labels[weight], labels[value], out))


def _rank(node: Any) -> int:
    return int(node.meta["val"].dim())


def _linear_labels(given: dict[str, Any]) -> tuple[list[Labels], Labels]:
    samples: Labels = tuple(range(_rank(given["input"]) - 1))
    out: Labels = ("out",) if _rank(given["weight"]) == 2 else ()
    return [(*samples, "in"), (*out, "in")], (*samples, *out)


def _matmul_labels(one: int, other: int) -> tuple[list[Labels], Labels]:
    batch: Labels = tuple(range(max(one, other) - 2))
    rows: Labels = ("row",) if one > 1 else ()
    columns: Labels = ("column",) if other > 1 else ()
    left, right = (batch[len(batch) - max(rank - 2, 0) :] for rank in (one, other))
    return [(*left, *rows, "sum"), (*right, "sum", *columns)], (*batch, *rows, *columns)


def _letters(equation: str, ranks: list[int]) -> tuple[list[Labels], Labels]:
    """Return the labels of an einsum; without an arrow, letters that stand once are kept in alphabetical order."""
    given, arrow, kept = equation.replace(" ", "").partition("->")
    texts = given.split(",")
    dots = max(rank - len(text.replace("...", "")) for rank, text in zip(ranks, texts, strict=True))
    if not arrow:
        letters = given.replace("...", "").replace(",", "")
        kept = ("..." if "..." in given else "") + "".join(sorted({x for x in letters if letters.count(x) == 1}))

    def read(text: str, count: int) -> Labels:
        before, _, after = text.partition("...")
        return (*before, *(range(-count, 0) if "..." in text else ()), *after)

    counts = [rank - len(text.replace("...", "")) for rank, text in zip(ranks, texts, strict=True)]
    return [read(text, count) for text, count in zip(texts, counts, strict=True)], read(kept, dots)


def _convolution(name: str, given: dict[str, Any]) -> Iterator[Product]:
    rank, groups = _rank(given["weight"]) - 2, int(given["groups"])
    transposed = bool(given.get("transposed", "transpose" in name))
    samples: Labels = ("batch",) if _rank(given["input"]) == rank + 2 else ()
    group: Labels = ("group",) if groups > 1 else ()
    kernel: Labels = tuple(f"{KERNEL}{n}" for n in range(rank))
    before: Labels = tuple(f"in position {n}" for n in range(rank))
    after: Labels = tuple(f"out position {n}" for n in range(rank))
    channels = ("in", "out") if transposed else ("out", "in")
    labels = ((*group, *channels, *kernel), (*samples, *group, "in", *before), (*samples, *group, "out", *after))
    windows = None if transposed else _windows(given, rank, groups)
    yield Product(given["weight"], given["input"], labels, groups, windows)


def _windows(given: dict[str, Any], rank: int, groups: int) -> Windows:
    kernel = tuple(given["weight"].meta["val"].shape[2:])
    stride, dilation = (_each(given[key], rank) for key in ("stride", "dilation"))
    padding = given["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        sides = [(n // 2, n - n // 2) for n in total]
    else:
        sides = [(n, n) for n in _each(padding, rank)]
    return Windows(kernel, stride, tuple(n for pair in reversed(sides) for n in pair), dilation, groups)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values
