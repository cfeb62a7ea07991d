"""LSTM, GRU and RNN, which torch.export keeps whole."""

from __future__ import annotations

from collections.abc import Sequence

from onebasin.symmetry.abstract import Abstract, Blocks
from onebasin.symmetry.axes import Term, concat, leaf, split_product, unify
from onebasin.symmetry.call import Call, Value

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(call: Call) -> Value:
    """Each layer and direction has units of its own; all gates share them.

    The recurrent weight carries them on both axes (with a projection, its columns carry the projected units).
    """
    if "batch_sizes" in call.arguments:
        return call.frozen("packed sequences")
    x, params = call.tensor("input"), call.tensors("params")
    directions = 2 if call["bidirectional"] else 1
    per_cell = len(params) // (int(call["num_layers"]) * directions)
    cells = [params[n : n + per_cell] for n in range(0, len(params), per_cell)]
    feature, outs, states = x.axes[-1], [], []
    for layer in range(int(call["num_layers"])):
        pairs = [_cell(call, feature, cell) for cell in cells[layer * directions : (layer + 1) * directions]]
        outs += [out for out, _ in pairs]
        states += [state for _, state in pairs]
        feature = concat(out for out, _ in pairs)
        call.hidden([*x.axes[:-1], feature])
    initial = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    for value, terms in zip(initial, (outs, states), strict=False):
        _start(call, value, terms)
    batch = x.axes[:-1][0 if call["batch_first"] and len(x.axes) == 3 else 1 :][:1] if len(x.axes) == 3 else ()
    finals = [Blocks(0, tuple(Abstract((leaf(1), *batch, term)) for term in terms)) for terms in (outs, states)]
    return [Abstract((*x.axes[:-1], feature)), *finals[: len(call.shapes) - 1]]


def _cell(call: Call, feature: Term, cell: Sequence[Abstract]) -> tuple[Term, Term]:
    """Return the terms of the output and of the cell state."""
    gates = GATES[call.name]
    units = cell[0].axes[0].size // gates
    pairs = [split_product(t.axes[0], gates, units) for t in cell if t.axes[0].size == gates * units]
    for gate, unit in pairs:
        call.freeze([gate], "the gates of a cell differ")
        unify(pairs[0][1], unit)
    unify(feature, cell[0].axes[1])
    state = pairs[0][1]
    projected = len(cell) > 2 and cell[-1].axes[0].size != gates * units
    if not projected:
        return unify(state, cell[1].axes[1]), state
    unify(state, cell[-1].axes[1])
    return unify(cell[-1].axes[0], cell[1].axes[1]), state


def _start(call: Call, value: Value, terms: Sequence[Term]) -> None:
    """The initial state meets each layer's units; zeros meet anything."""
    if isinstance(value, Abstract) and value.fill:
        return
    if isinstance(value, Blocks) and len(value.parts) == len(terms):
        for part, term in zip(value.parts, terms, strict=True):
            unify(part.axes[-1], term)
        return
    axes = value.collapse().axes if isinstance(value, Blocks) else value.axes
    for term in terms:
        unify(axes[-1], term)
