"""Tables for the terminal, drawn with rich; 100 columns suffice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from onebasin import layout
from onebasin.analysis.path import KIND_MEANINGS, KINDS, Curve
from onebasin.layout import NOT_UNDERSTOOD
from onebasin.matching import Alignment
from onebasin.spec import PermutationSpec

MOST_ROWS = 40  # of groups one by one; beyond, like ones share a row
COLUMNS, GAPS = 100, 8  # of a terminal, and what lies between and beside the columns of a table
NAME = 36  # columns for the name of a group
PLACE = re.compile(r" \(([^()]+ at [^()]+)\)")  # in a reason: "(conv2d at module conv1)"
# Matcher -> what its objective is, where that is not how well weights or activations fit.
MINUS = {
    "StraightThrough": "minus the lowest loss half way between the two",
    "SinkhornRebasin": "minus the lowest loss between the two",
    "Best": "minus J, how far the network half way between the two is from what both say, or minus the loss given",
}
NO_REASON = "no reason recorded"


def group_table(spec: PermutationSpec) -> Table:
    """Return one row per group: its size, and the tensor axes it moves; nested groups stand under their parents.

    In a deep network, groups that differ only in the numbers in their names (of layers) share a row.
    """
    shared = len(spec.groups) > MOST_ROWS
    rows: dict[object, list[str]] = {}
    for name in _tree_order(spec):
        axes = tuple((_unnumbered(tensor), axis) for tensor, axis in spec.groups[name].axes)
        key = (_unnumbered(name), spec.index_shape(name), axes) if shared else name
        rows.setdefault(key, []).append(name)
    table = new_table("group", ">size", *([">times"] if shared else []), "moves tensor[axis]")
    table.caption = "a × b: b units under each of a" if spec.parents else None
    table.caption_justify = "left"
    labels = [_label(spec, names[0]) for names in rows.values()]
    sizes = [" × ".join(map(str, spec.index_shape(names[0]))) for names in rows.values()]
    room = COLUMNS - GAPS - max(map(len, ["group", *labels])) - max(map(len, ["size", *sizes])) - 8 * shared
    for label, size, names in zip(labels, sizes, rows.values(), strict=True):
        moves = _some([f"{tensor}[{axis}]" for tensor, axis in spec.groups[names[0]].axes], room)
        add(table, label, size, *([str(len(names))] if shared else []), moves)
    return table


def fixed_axes(spec: PermutationSpec) -> dict[str, list[str]]:
    """Return why axes of trained tensors are fixed -> `tensor[axis]` of all to which that applies."""
    reasons: dict[str, list[str]] = {}
    for tensor, row in spec.tensors.items():
        for number, axis in enumerate(row):
            frozen = [leaf for leaf in layout.leaves(axis) if leaf.group is None and leaf.size > 1]
            for why in dict.fromkeys(leaf.why or NO_REASON for leaf in frozen):
                if tensor not in spec.buffers:
                    reasons.setdefault(why, []).append(f"{tensor}[{number}]")
    return reasons


def needless(why: str) -> bool:
    """Say whether axes are fixed, for this reason, only because discovery could not follow what happens to them."""
    return why.startswith(NOT_UNDERSTOOD)


def fixed_table(spec: PermutationSpec) -> Table:
    """Return one row per reason why axes are fixed; reasons that differ only in the place share a row.

    What was not understood, so that a larger group may exist, comes first, and every place of it is named.
    """
    places: dict[str, list[str]] = {}
    axes: dict[str, list[str]] = {}
    found = fixed_axes(spec)
    for why in sorted(found, key=lambda why: not needless(why)):
        reason, names = why if needless(why) else PLACE.sub("", why), found[why]
        places.setdefault(reason, []).extend([] if needless(why) else PLACE.findall(why))
        axes.setdefault(reason, []).extend(names)
    table = new_table("fixed because", "tensor[axis]")
    table.caption = f"{NOT_UNDERSTOOD.strip(': ')}: a larger group may exist" if any(map(needless, axes)) else None
    table.caption_justify = "left"
    for reason, names in axes.items():
        at = ", ".join(places[reason][:1]) + (
            f", and {len(places[reason]) - 1} more" if len(places[reason]) > 1 else ""
        )
        add(table, f"{reason} ({at})" if at else reason, _some(names, 44))
    return table


def barrier_table(curves: Mapping[str, Curve]) -> Table:
    """Return one row per metric and curve: the ends, the midpoint, and the barrier in three definitions."""
    table = new_table("", ">A", ">midpoint", ">B", ">barrier: mean", ">chord", ">midpoint")
    for metric in dict.fromkeys(metric for curve in curves.values() for metric in curve.metrics):
        for label, curve in curves.items():
            if metric in curve.metrics:
                add(table, f"{metric}, {label}", *_numbers(curve, metric))
    return table


def barrier_legend() -> str:
    """Return the units and definitions that a barrier table needs."""
    kinds = "; ".join(f"{kind}: {KIND_MEANINGS[kind]}" for kind in KINDS)
    return f"Loss in nats per example. Barrier, of an accuracy the drop, {kinds}."


def alignment_table(alignments: Mapping[str, Alignment]) -> Table:
    """Return one row per alignment: objective before and after, sweeps, units moved, duality gap, seconds."""
    table = new_table("moved model", ">objective", ">aligned", ">sweeps", ">units moved", ">duality gap", ">seconds")
    table.columns[0].max_width = 34
    names = {type(found.matcher).__name__ for found in alignments.values()}
    table.caption = "; ".join(f"objective: {MINUS[name]}" for name in MINUS if name in names) or None
    table.caption_justify = "left"
    for label, found in alignments.items():
        add(
            table,
            label,
            f"{found.objective[0]:.6g}",
            f"{found.objective[-1]:.6g}",
            str(len(found.objective) - 1),
            f"{moved_share(found):.1%}",
            f"{found.certificate.gap:.0e}" if found.certificate.gap else "0",
            f"{found.seconds:.2f}",
        )
    return table


def moved_share(alignment: Alignment) -> float:
    """Return the share of all units that change place, in [0, 1]."""
    sizes = {name: index.numel() for name, index in alignment.permutation.indices.items()}
    fixed = alignment.permutation.fixed_share()
    return 1 - sum(fixed[name] * size for name, size in sizes.items()) / max(sum(sizes.values()), 1)


def _numbers(curve: Curve, metric: str) -> list[str]:
    values, has_midpoint = curve.metrics[metric], len(curve.lams) % 2 == 1
    middle = f"{values[len(values) // 2]:.4f}" if has_midpoint else "-"
    kinds = [kind for kind in KINDS if has_midpoint or kind != "midpoint"]
    barriers = [f"{curve.barrier(kind, metric):.4f}" for kind in kinds] + ["-"] * (len(KINDS) - len(kinds))
    return [f"{values[0]:.4f}", middle, f"{values[-1]:.4f}", *barriers]


def new_table(*columns: str) -> Table:
    """Return an empty table; a column whose title begins with ">" is set flush right."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for title in columns:
        table.add_column(Text(title.removeprefix(">")), justify="right" if title.startswith(">") else "left")
    return table


def add(table: Table, *cells: str) -> None:
    """Add a row of plain text: square brackets are no markup here."""
    table.add_row(*map(Text, cells))


def _some(names: list[str], width: int) -> str:
    """Join as many of `names` as fit into `width` columns, and say how many are left out."""
    for count in range(len(names), 0, -1):
        text = "  ".join(names[:count]) + (f"  +{len(names) - count}" if count < len(names) else "")
        if len(text) <= width:
            return text
    rest = f"  +{len(names) - 1}" if len(names) > 1 else ""
    return tail(names[0], width - len(rest)) + rest


def _label(spec: PermutationSpec, name: str) -> str:
    """Return `name`, cut to fit, indented by the number of its parents."""
    depth = len(spec.groups[name].parents)
    return "  " * depth + tail(name, NAME - 2 * depth)


def tail(name: str, width: int) -> str:
    """Cut `name` at the front: the end of a qualified name says more."""
    return name if len(name) <= width else "…" + name[1 - width :]


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _tree_order(spec: PermutationSpec) -> Iterator[str]:
    """Yield every group after the parent it is nested under, before the next group of that parent's level."""
    under: dict[str | None, list[str]] = {}
    for name, group in spec.groups.items():
        under.setdefault(group.parents[-1] if group.parents else None, []).append(name)
    waiting = under.get(None, [])[::-1]
    while waiting:
        name = waiting.pop()
        yield name
        waiting += under.get(name, [])[::-1]
