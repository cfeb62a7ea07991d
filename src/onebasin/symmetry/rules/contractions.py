"""Sums of products: axes meet as letters in an einsum."""

from __future__ import annotations

from collections.abc import Hashable

from onebasin.symmetry.abstract import Abstract, Labelled
from onebasin.symmetry.axes import Term, leaf, product, split_product
from onebasin.symmetry.call import Call, Value
from onebasin.symmetry.rules.pointwise import pointwise


def linear(call: Call) -> Value:
    """y[..., o] = sum_i x[..., i] W[o, i] + b[o]."""
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.optional("bias")
    batch = list(range(len(x.axes) - 1))
    out = ["out"] if len(weight.axes) == 2 else []
    operands: list[Labelled] = [(x.axes, [*batch, "in"]), (weight.axes, [*out, "in"])]
    if bias is not None:
        operands.append((bias.axes, out[: len(bias.axes)]))
    axes = call.join(operands, [*batch, *out])
    call.tap("input", x.axes)
    return Abstract(axes)


def matmul(call: Call) -> Value:
    """matmul, mm, bmm, mv, dot: contract the last axis of the first with the second last (or only) of the second."""
    (left, one), (right, other) = [(key, call.tensor(key)) for key in list(call.arguments)[:2]]
    axes = call.join(*_matmul_labels(one, other))
    call.tap(left, one.axes)
    call.tap(right, other.axes)
    return Abstract(axes)


def matmul_add(call: Call) -> Value:
    """addmm, baddbmm, addbmm, addmv: a matmul plus a tensor broadcast from the right."""
    left, right = [key for key in call.arguments if key.startswith(("mat", "batch", "vec"))][:2]
    one, other = call.tensor(left), call.tensor(right)
    operands, out = _matmul_labels(one, other)
    bias = call.tensor("self")
    axes = call.join([*operands, (bias.axes, out[len(out) - len(bias.axes) :])], out)
    call.tap(left, one.axes)
    call.tap(right, other.axes)
    return Abstract(axes)


def _matmul_labels(one: Abstract, other: Abstract) -> tuple[list[Labelled], list[Hashable]]:
    count = max(len(one.axes), len(other.axes)) - 2
    rows: list[Hashable] = ["row"] if len(one.axes) > 1 else []
    columns: list[Hashable] = ["column"] if len(other.axes) > 1 else []
    batch: list[Hashable] = list(range(max(count, 0)))
    left = [*batch[len(batch) - max(len(one.axes) - 2, 0) :], *rows, "sum"]
    right = [*batch[len(batch) - max(len(other.axes) - 2, 0) :], "sum", *columns]
    return [(one.axes, left), (other.axes, right)], [*batch, *rows, *columns]


def inner(call: Call) -> Value:
    """y[..., i, ..., j] = sum_k a[..., i, k] b[..., j, k]; with a number, a product."""
    one, other = call.tensor("self"), call.tensor("other")
    left, right = [[(name, number) for number in range(len(t.axes) - 1)] for name, t in (("a", one), ("b", other))]
    if not one.axes or not other.axes:
        return pointwise(call)
    call.tap("self", one.axes)
    call.tap("other", other.axes)
    axes = call.join([(one.axes, [*left, "sum"]), (other.axes, [*right, "sum"])], [*left, *right])
    return Abstract(axes)


def outer(call: Call) -> Value:
    """y[i, j] = a[i] b[j]."""
    return Abstract(call.join([(call.tensor("self").axes, ["i"]), (call.tensor("vec2").axes, ["j"])], ["i", "j"]))


def tensordot(call: Call) -> Value:
    """Contract chosen axes of the first with chosen axes of the second."""
    operands: list[Labelled] = []
    out: list[Hashable] = []
    for name, dims in (("self", "dims_self"), ("other", "dims_other")):
        axes = call.tensor(name).axes
        summed = [dim % len(axes) for dim in call[dims]]
        labels: list[Hashable] = [summed.index(n) if n in summed else (name, n) for n in range(len(axes))]
        operands.append((axes, labels))
        call.tap(name, axes)
        out += [label for label in labels if isinstance(label, tuple)]
    return Abstract(call.join(operands, out))


def bilinear(call: Call) -> Value:
    """y[..., o] = sum_ij a[..., i] W[o, i, j] b[..., j] + bias[o]."""
    one, other, weight = (call.tensor(name) for name in ("input1", "input2", "weight"))
    bias = call.optional("bias")
    batch = list(range(len(one.axes) - 1))
    operands: list[Labelled] = [(one.axes, [*batch, "i"]), (other.axes, [*batch, "j"]), (weight.axes, ["o", "i", "j"])]
    if bias is not None:
        operands.append((bias.axes, ["o"]))
    call.tap("input1", one.axes)
    call.tap("input2", other.axes)
    return Abstract(call.join(operands, [*batch, "o"]))


def distances(call: Call) -> Value:
    """y[..., i, j] = distance of a[..., i, :] and b[..., j, :]."""
    one, other = call.tensor("x1"), call.tensor("x2")
    batch = list(range(len(call.shape) - 2))
    pairs = ((one, "row"), (other, "column"))
    operands = [(t.axes, [*batch[len(batch) - len(t.axes) + 2 :], name, "sum"]) for t, name in pairs]
    return Abstract(call.join(operands, [*batch, "row", "column"]))


def einsum(call: Call) -> Value:
    """Letters are labels; an ellipsis stands for axes counted from the right."""
    inputs, _, output = call["equation"].replace(" ", "").partition("->")
    tensors = call.tensors("tensors")
    for number, tensor in enumerate(tensors):
        call.tap("tensors", tensor.axes, number)
    labels = [_letters(text, len(t.axes)) for text, t in zip(inputs.split(","), tensors, strict=True)]
    if "->" in call["equation"]:
        rank = len(call.shape) - len(output.replace("...", "")) if "..." in output else 0
        out = _letters(output, len(output.replace("...", "")) + rank)
    else:
        letters = [label for row in labels for label in row]
        dots = sorted({label for label in letters if isinstance(label, int)})
        out = [*dots, *sorted({str(x) for x in letters if not isinstance(x, int) and letters.count(x) == 1})]
    return Abstract(call.join([(t.axes, row) for t, row in zip(tensors, labels, strict=True)], out))


def _letters(text: str, rank: int) -> list[Hashable]:
    before, dots, after = text.partition("...")
    missing = rank - len(before) - len(after) if dots else 0
    return [*before, *range(-missing, 0), *after]


def attention(call: Call) -> Value:
    """Scaled dot-product attention: two contractions through a score tensor that nobody sees."""
    given = [call.tensor(name) for name in ("query", "key", "value")]
    query, key, value = _of_equal_rank(given)
    rank = len(query.axes)
    batch: list[Hashable] = list(range(rank - 3))
    heads, copies = _shared_heads(query, key)
    q_axes = (*query.axes[: rank - 3], heads, copies, *query.axes[rank - 2 :])
    grid: list[Hashable] = [*batch, "head", "copy", "row", "column"]
    score = call.join(
        [(q_axes, [*batch, "head", "copy", "row", "unit"]), (key.axes, [*batch, "head", "column", "unit"])], grid
    )
    mask = call.optional("attn_mask")
    if mask is not None:
        score = call.join([(score, grid), _mask_labels(mask, heads, copies, batch)], grid)
    if call.get("is_causal"):
        call.freeze(score[-2:], "causal attention")
    call.hidden(score)
    call.hidden(score[:-1])
    for name, tensor in zip(("query", "key", "value"), given, strict=True):
        call.tap(name, tensor.axes)
    out = [*batch, "head", "copy", "row", "out"]
    axes = call.join([(score, grid), (value.axes, [*batch, "head", "column", "out"])], out)
    all_axes = (*axes[: rank - 3], product(axes[rank - 3 : rank - 1]), *axes[rank - 1 :])
    return Abstract(all_axes[len(all_axes) - len(call.shape) :])


def _of_equal_rank(tensors: list[Abstract]) -> list[Abstract]:
    """Put axes of size 1 before the shorter ones; one is for the heads."""
    rank = max(3, *(len(t.axes) for t in tensors))
    return [Abstract((*(leaf(1) for _ in range(rank - len(t.axes))), *t.axes)) for t in tensors]


def _shared_heads(query: Abstract, key: Abstract) -> tuple[Term, Term]:
    heads, shared = query.axes[-3], key.axes[-3]
    if heads.size == shared.size:
        return heads, leaf(1)
    return split_product(heads, shared.size, heads.size // shared.size)


def _mask_labels(mask: Abstract, heads: Term, copies: Term, batch: list[Hashable]) -> Labelled:
    if len(mask.axes) < 3:
        return mask.axes, ["row", "column"][2 - len(mask.axes) :]
    pair = split_product(mask.axes[-3], heads.size, copies.size) if mask.axes[-3].size > 1 else (leaf(1), leaf(1))
    outer_axes = mask.axes[:-3]
    return (*outer_axes, *pair, *mask.axes[-2:]), [
        *batch[len(batch) - len(outer_axes) :],
        "head",
        "copy",
        "row",
        "column",
    ]


def embedding(call: Call) -> Value:
    """Rows looked up by number: the vocabulary keeps its order."""
    weight, indices = call.tensor("weight"), call.tensor("indices")
    call.freeze(weight.axes[:1], "looked up by number")
    return Abstract((*indices.axes, *weight.axes[1:]))
