"""LSTM, GRU and RNN, which torch.export keeps whole."""

from __future__ import annotations

from collections.abc import Sequence

from onebasin.symmetry.abstract import Abstract, Blocks
from onebasin.symmetry.axes import Term, concat, leaf, split_product, unify
from onebasin.symmetry.call import Call, Value

GATES = {"lstm": 4, "gru": 3}  # all others have one


def recurrent(call: Call) -> Value:
    """Each layer and direction has units of its own; all gates share them.

    The recurrent weight carries them on both axes (with a projection, its columns carry the projected units).
    """
    if "batch_sizes" in call.arguments:
        return call.given_up("packed sequences")
    x, params = call.tensor("input"), call.tensors("params")
    batch, time = x.axes[:2] if call["batch_first"] else x.axes[1::-1]
    call.freeze([time], "steps follow each other")
    directions = 2 if call["bidirectional"] else 1
    per_cell = len(params) // (int(call["num_layers"]) * directions)
    cells = [params[n : n + per_cell] for n in range(0, len(params), per_cell)]
    layer_input, outs, states = x.axes, [], []
    for first in range(0, len(cells), directions):
        pairs = [_cell(call, layer_input, cell) for cell in cells[first : first + directions]]
        outs += [out for out, _ in pairs]
        states += [state for _, state in pairs]
        layer_input = (*x.axes[:-1], concat(out for out, _ in pairs))
        call.hidden(layer_input)
    initial = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    for value, terms in zip(initial, (outs, states), strict=False):
        _start(call, value, batch, terms)
    finals = [Blocks(0, tuple(Abstract((leaf(1), batch, term)) for term in terms)) for terms in (outs, states)]
    return [Abstract(layer_input), *finals[: len(call.shapes) - 1]]


def one_step(call: Call) -> Value:
    """LSTMCell, GRUCell and RNNCell: one layer, one direction, one step."""
    x = call.tensor("input")
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    out, _ = _cell(call, x.axes, [value for value in map(call.optional, names) if value is not None])
    labels = ["batch", "unit"]
    for state in call.tensors("hx") if isinstance(call["hx"], (list, tuple)) else [call.tensor("hx")]:
        call.join([(state.axes, labels), ((*x.axes[:-1], out), labels)], labels)
    found = [Abstract((*x.axes[:-1], out)) for _ in call.shapes]
    return found if isinstance(call.node.meta.get("val"), (list, tuple)) else found[0]


def _cell(call: Call, x: Sequence[Term], cell: Sequence[Abstract]) -> tuple[Term, Term]:
    """Return the terms of the output and of the cell state."""
    gates = GATES.get(call.name.removesuffix("_cell"), 1)
    rows = cell[0].axes[0].size
    projection = cell[-1] if cell[-1].axes[0].size != rows else None
    stacked = [t for t in cell if t.axes[0].size == rows]
    grids = [(*split_product(t.axes[0], gates, rows // gates), *t.axes[1:]) for t in stacked]
    call.freeze((grid[0] for grid in grids), "the gates of a cell differ")
    places = range(len(x) - 1)
    labels = [["gate", "unit", "in"], ["gate", "unit", "out"], *[["gate", "unit"]] * (len(grids) - 2)]
    gate, state, out = call.join([(x, [*places, "in"]), *zip(grids, labels, strict=True)], ["gate", "unit", "out"])
    call.hidden([*x[:-1], gate, state])
    call.hidden([*x[:-1], state])
    if projection is None:
        return unify(out, state), state
    out, state = call.join([(projection.axes, ["out", "unit"]), ([out], ["out"]), ([state], ["unit"])], ["out", "unit"])
    return out, state


def _start(call: Call, value: Value, batch: Term, terms: Sequence[Term]) -> None:
    """The initial state of each layer and direction meets its units, example by example; zeros meet anything."""
    if isinstance(value, Abstract) and value.fill:
        return
    apart = isinstance(value, Blocks) and value.dim == 0 and len(value.parts) == len(terms)
    whole = None if apart else value.collapse() if isinstance(value, Blocks) else value
    if whole is not None:
        call.freeze(whole.axes[:1], "layers and directions differ")
    for number, term in enumerate(terms):
        axes = (whole or value.parts[number]).axes
        call.join([(axes[1:], ["batch", "unit"]), ((batch, term), ["batch", "unit"])], ["batch", "unit"])
