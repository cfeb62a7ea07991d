"""Convolutions of one to three dimensions: plain, grouped, depthwise, transposed."""

from __future__ import annotations

from onebasin.symmetry.abstract import Abstract
from onebasin.symmetry.axes import Term, product, split_product
from onebasin.symmetry.call import Call, Value


def convolution(call: Call) -> Value:
    """Contract input channels within each group; spatial axes keep their order.

    A 1 x 1 kernel of stride 1 leaves its spatial axis free, as a linear layer would.
    """
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.optional("bias")
    transposed, groups = call.get("transposed", "transpose" in call.name), int(call["groups"])
    rank = len(weight.axes) - 2
    batch, (channels, *places) = x.axes[: -rank - 1], x.axes[-rank - 1 :]
    first, second, *kernel = weight.axes
    out_places = [_place(call, number - rank, places[number], kernel[number]) for number in range(rank)]

    group, inner = split_product(channels, groups, channels.size // groups)
    many = split_product(first, groups, first.size // groups)
    w_in, w_out = (many[1], second) if transposed else (second, many[1])
    operands: list[tuple[list[Term], list[str]]] = [([group, inner], ["group", "in"])]
    operands.append(([many[0], w_out, w_in], ["group", "out", "in"]))
    if bias is not None:
        operands.append((list(split_product(bias.axes[0], groups, w_out.size)), ["group", "out"]))
    out = call.join(operands, ["group", "out"])
    call.tap("input", x.axes)
    return Abstract((*batch, product(out), *out_places))


def _place(call: Call, number: int, place: Term, kernel: Term) -> Term:
    passes = kernel.size == 1 and _is(call, "stride", number, 1) and _is(call, "padding", number, 0)
    if passes and call.shape[number] == place.size:
        return place
    call.freeze([place, kernel], "spatial axis of a convolution")
    return call.fixed(call.shape[number], "spatial axis of a convolution")


def _is(call: Call, key: str, number: int, value: int) -> bool:
    given = call[key]
    if isinstance(given, str):
        return True  # "same" and "valid" add nothing to a kernel of size 1
    return int(given if isinstance(given, int) else given[max(number, -len(given))]) == value
