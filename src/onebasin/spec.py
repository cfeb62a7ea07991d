"""PermutationSpec: which axis of which tensor is moved by which group. Pure data, usable without the model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from onebasin import layout
from onebasin.errors import SpecError, choices, listing
from onebasin.layout import Axes, Axis, Leaf

FORMAT = "onebasin-spec"
VERSION = 1
# Buffers of this name hold statistics: they move with their channel, but say nothing about which unit is which.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
BY_HAND = "written by hand as fixed"
# Why the axes of a dead tensor (an auxiliary head in eval mode, say) are fixed; it counts in no share.
UNUSED = "not used by the outputs"


@dataclass(frozen=True)
class Group:
    """One permutation group: `size` units, reordered together wherever they stand.

    Args:
        size: number of units n.
        parents: groups under which this one is nested, outermost first; it then has one permutation per combination of
            their units. Closed: the parents of a parent are listed too.
        axes: every (tensor, axis number) that holds the units.
        taps: nodes of the exported graph at which the units' activations can be read.
    """

    size: int
    parents: tuple[str, ...] = ()
    axes: tuple[tuple[str, int], ...] = ()
    taps: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetries of one architecture.

    The core law: `f(P . theta) == f(theta)` for every permutation P this spec allows. Specs from discovery are proved;
    one written by hand can be proved with `prove`.

    Args:
        sizes: group name -> number of units.
        tensors: tensor name -> layout of each axis. Every tensor of the state dict is listed.
        parents: group name -> the groups it is nested under; a group that is not a key has none.
        buffers: names of tensors that are not trained: they move, but are not matched.
        ties: sets of names that are one tensor.
        taps: node of the exported graph -> layout of its output, where units' activations can be read.
        proof: largest relative difference of an output that the numerical proof saw; None: not proved.
    """

    sizes: Mapping[str, int]
    tensors: Mapping[str, Axes]
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    ties: tuple[tuple[str, ...], ...] = ()
    taps: Mapping[str, Axes] = field(default_factory=dict, compare=False)
    proof: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise SpecError(
                f"{len(problems)} contradictions: {listing(problems)}",
                "every group with one size everywhere, parents listed outermost first and closed",
                "correct the axes named here",
            )

    @classmethod
    def from_axes(
        cls,
        axes: Mapping[str, Iterable[str | Axis | None]],
        shapes: Mapping[str, tuple[int, ...]],
        buffers: Iterable[str] | None = None,
    ) -> PermutationSpec:
        """Build a spec written by hand.

        Args:
            axes: tensor name -> per axis a group name, None (fixed) or a layout, as in
                `{"fc1.weight": ("P0", None), "fc1.bias": ("P0",), "fc2.weight": (None, "P0")}`.
                A tensor of `shapes` that is not listed is fixed.
            shapes: tensor name -> shape, of every tensor: `{k: tuple(v.shape) for k, v in params.items()}`.
            buffers: names of tensors that are not trained; default: the statistics of normalisation layers, by name.

        Raises:
            SpecError: a tensor unknown to `shapes`, a wrong number of axes, a layout that does not fit its axis, or a
                group with two sizes.
        """
        unknown = [name for name in axes if name not in shapes]
        if unknown:
            raise SpecError(
                f"axes for tensors that do not exist: {listing(unknown)}",
                f"names among: {listing(shapes)}",
                "correct the names, or pass the shapes of the model the axes are for",
            )
        tensors = {name: _read_axes(name, axes.get(name), shape) for name, shape in shapes.items()}
        named = [leaf for row in tensors.values() for axis in row for leaf in layout.leaves(axis)]
        if buffers is None:
            buffers = [name for name in shapes if name.rpartition(".")[2] in STATISTICS]
        sizes = {leaf.group: leaf.size for leaf in named if leaf.group is not None}
        return cls(sizes, tensors, buffers=frozenset(buffers))

    @cached_property
    def groups(self) -> dict[str, Group]:
        """Group name -> `Group`, in the order of the model."""
        axes: dict[str, list[tuple[str, int]]] = {name: [] for name in self.sizes}
        taps: dict[str, list[str]] = {name: [] for name in self.sizes}
        for tensor, row in self.tensors.items():
            for number, axis in enumerate(row):
                for name in dict.fromkeys(_group_names(axis)):
                    axes[name].append((tensor, number))
        for node, row in self.taps.items():
            for name in dict.fromkeys(name for axis in row for name in _group_names(axis)):
                taps[name].append(node)
        return {
            name: Group(size, self.parents.get(name, ()), tuple(axes[name]), tuple(taps[name]))
            for name, size in self.sizes.items()
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        return {name: tuple(axis.size for axis in row) for name, row in self.tensors.items()}

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Names of the tensors that are trained and in use, one name of each tied set."""
        repeated = {name for names in self.ties for name in names[1:]}
        return tuple(name for name in self.tensors if name not in self.buffers | repeated | set(self.unused))

    @cached_property
    def matched(self) -> tuple[str, ...]:
        """Names of the tensors that matching compares: trained, and moved by some group."""
        return tuple(
            name for name in self.trained if any(True for axis in self.tensors[name] for _ in _group_names(axis))
        )

    @cached_property
    def unused(self) -> tuple[str, ...]:
        """Names of the tensors that the outputs do not depend on."""
        rows = {name: [leaf.why for axis in row for leaf in layout.leaves(axis)] for name, row in self.tensors.items()}
        return tuple(name for name, reasons in rows.items() if reasons and set(reasons) == {UNUSED})

    def index_shape(self, group: str) -> tuple[int, ...]:
        """Return the shape of the index array of `group`: sizes of its parents, then its own."""
        return (*(self.sizes[parent] for parent in self.parents.get(group, ())), self.sizes[group])

    def log10_symmetries(self) -> float:
        """Return log10 of the number of permutations in the whole group (sum of log10 n! over all copies)."""
        copies = {name: math.prod(self.index_shape(name)[:-1]) for name in self.sizes}
        return sum(copies[name] * math.lgamma(size + 1) for name, size in self.sizes.items()) / math.log(10)

    def covered(self) -> float:
        """Return the share of trained elements in use that at least one group moves, in [0, 1]."""
        total = sum(math.prod(self.shapes[name]) for name in self.trained)
        fixed = sum(math.prod(layout.frozen_positions(axis) for axis in self.tensors[name]) for name in self.trained)
        return 1 - fixed / total if total else 0.0

    def explain(self, tensor: str) -> str:
        """Say for every axis of `tensor` which group moves it, or why nothing does.

        Raises:
            SpecError: no tensor has this name.
        """
        if tensor not in self.tensors:
            raise SpecError(f"no tensor is called {tensor!r}", *choices(tensor, self.tensors))
        lines = [f"{tensor} {self.shapes[tensor]}"]
        for number, axis in enumerate(self.tensors[tensor]):
            reasons = dict.fromkeys(leaf.why for leaf in layout.leaves(axis) if leaf.group is None and leaf.why)
            moved = ", ".join(dict.fromkeys(_group_names(axis)))
            said = [f"moved by {moved}"] if moved else []
            said += [f"fixed: {why}" for why in reasons] or ([] if moved else ["fixed"])
            lines.append(f"  axis {number}: {axis} - {'; '.join(said)}")
        return "\n".join(lines)

    def canonical(self) -> PermutationSpec:
        """Return the same spec with the groups renamed P0, P1, ... in order of appearance in `tensors`."""
        found = dict.fromkeys(name for row in self.tensors.values() for axis in row for name in _group_names(axis))
        names = {name: f"P{number}" for number, name in enumerate([*found, *(s for s in self.sizes if s not in found)])}

        def rename(rows: Mapping[str, Axes]) -> dict[str, Axes]:
            return {key: tuple(layout.renamed(axis, names) for axis in row) for key, row in rows.items()}

        return PermutationSpec(
            {names[name]: self.sizes[name] for name in names},
            rename(self.tensors),
            {names[name]: tuple(names[parent] for parent in parents) for name, parents in self.parents.items()},
            self.buffers,
            self.ties,
            rename(self.taps),
            self.proof,
        )

    def to_json(self) -> str:
        """Write the spec as strict JSON, complete: `from_json` gives back an equal spec."""
        rows = {"tensors": self.tensors, "taps": self.taps}
        data = {
            "format": FORMAT,
            "version": VERSION,
            "sizes": dict(self.sizes),
            "parents": {name: list(parents) for name, parents in self.parents.items()},
            "buffers": sorted(self.buffers),
            "ties": [list(names) for names in self.ties],
            "proof": self.proof,
        } | {key: {name: [layout.to_json(a) for a in row] for name, row in rows[key].items()} for key in rows}
        return json.dumps(data, allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PermutationSpec:
        """Read a spec written by `to_json`.

        Raises:
            SpecError: not JSON, not this format or version, an unknown or missing key, or a contradiction.
        """
        data = _read_json(text)
        rows = {
            key: {str(name): tuple(layout.from_json(axis) for axis in row) for name, row in data[key].items()}
            for key in ("tensors", "taps")
        }
        return cls(
            {str(name): int(size) for name, size in data["sizes"].items()},
            rows["tensors"],
            {str(name): tuple(parents) for name, parents in data["parents"].items()},
            frozenset(data["buffers"]),
            tuple(tuple(names) for names in data["ties"]),
            rows["taps"],
            None if data["proof"] is None else float(data["proof"]),
        )

    def __str__(self) -> str:
        proof = "not proved" if self.proof is None else f"proved in float64 to {self.proof:.0e}"
        head = (
            f"{len(self.sizes)} group{'s' * (len(self.sizes) != 1)}, 10^{self.log10_symmetries():.0f} symmetries, "
            f"{100 * self.covered():.1f} % of the trained elements covered, {proof}"
        )
        rows = [("group", "size", "under", "moves")]
        for name, group in self.groups.items():
            moves = " ".join(f"{tensor}[{axis}]" for tensor, axis in group.axes)
            rows.append((name, str(group.size), " / ".join(group.parents) or "-", moves))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows]
        return "\n".join([head, *lines])


def _group_names(axis: Axis) -> Iterator[str]:
    return (leaf.group for leaf in layout.leaves(axis) if leaf.group is not None)


def _read_axes(name: str, row: Iterable[str | Axis | None] | None, shape: tuple[int, ...]) -> Axes:
    entries = [None] * len(shape) if row is None else list(row)
    if len(entries) != len(shape):
        raise SpecError(
            f"{name} has {len(shape)} axes {shape}, but {len(entries)} are described",
            "one entry per axis: a group name, None, or a layout",
            f"describe all {len(shape)} axes of {name}",
        )
    axes = tuple(
        Leaf(size, entry, "" if entry else BY_HAND) if entry is None or isinstance(entry, str) else entry
        for entry, size in zip(entries, shape, strict=True)
    )
    laid_out = tuple(axis.size for axis in axes)
    if laid_out != tuple(shape):
        raise SpecError(
            f"{name} has shape {tuple(shape)}, but its layouts have {laid_out} positions",
            "layouts with as many positions as their axes",
            f"correct the sizes in the layouts of {name}",
        )
    return axes


def _problems(spec: PermutationSpec) -> Iterator[str]:
    for rows in (spec.tensors, spec.taps):
        for tensor, row in rows.items():
            for leaf in (leaf for axis in row for leaf in layout.leaves(axis)):
                if leaf.group is not None and spec.sizes.get(leaf.group) != leaf.size:
                    have = spec.sizes.get(leaf.group, "no size")
                    yield f"{tensor} has {leaf.size} units of {leaf.group}, which has {have}"
    for name, parents in spec.parents.items():
        for number, parent in enumerate(parents):
            if parent not in spec.sizes:
                yield f"{name} is under {parent}, which does not exist"
            elif not set(spec.parents.get(parent, ())) <= set(parents[:number]):
                yield f"{name} is under {parent}, whose own parents are not listed before it"


def _read_json(text: str) -> dict[str, Any]:
    keys = {"format", "version", "sizes", "parents", "buffers", "ties", "proof", "tensors", "taps"}
    do = "write the spec with PermutationSpec.to_json or `onebasin inspect --out`"
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"text that is not JSON ({error})", "a permutation spec in JSON", do) from None
    if not isinstance(data, dict) or set(data) != keys:
        have = listing(sorted(set(data) ^ keys)) if isinstance(data, dict) else type(data).__name__
        raise SpecError(f"missing or unknown keys: {have}", f"exactly {listing(sorted(keys))}", do)
    if (data["format"], data["version"]) != (FORMAT, VERSION):
        raise SpecError(f"format {data['format']!r} version {data['version']!r}", f"{FORMAT} version {VERSION}", do)
    return data
