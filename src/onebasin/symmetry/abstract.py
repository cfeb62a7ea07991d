"""Abstract tensors: tensors of which only the axis terms are known, and the signatures of the operations on them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from onebasin.symmetry.axes import Term, concat, leaf, unify

# An operand with a label for each axis: axes with equal labels run over the same positions, as letters in an einsum.
Labelled = tuple[Sequence[Term], Sequence[Hashable]]


@dataclass(frozen=True)
class Meaning:
    """What the integers in a tensor stand for, so that a look-up by them need not freeze the axis looked up.

    Args:
        kind: "choice": positions of `axis`, as top-k gives them. "order": how sorting by a choice reorders `source`
            into `sorted`; "row order": the same, but counting only the rows of `source`; "inverse": the way back.
            "offsets": where in `sorted` the positions of `axis` begin, as cumulative counts of a choice.
        axis: the axis chosen from.
        sorted: the axis in sorted order.
        source: the axis before sorting.
    """

    kind: str
    axis: Term
    sorted: Term | None = None
    source: Term | None = None


@dataclass(frozen=True)
class Abstract:
    """A tensor of which only the axes are known.

    Args:
        axes: one term per axis.
        constant: the value, where it does not depend on parameters or inputs.
        fill: all elements are equal, so that any reordering leaves it as it is: each use gets axes of its own.
        meaning: what its integers stand for, if they are positions of an axis that may move.
    """

    axes: tuple[Term, ...]
    constant: Tensor | None = None
    fill: bool = False
    meaning: Meaning | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""
        return tuple(term.size for term in self.axes)


@dataclass(frozen=True)
class Blocks:
    """Tensors of different structure side by side along `dim`, as a fused qkv viewed as (..., 3, heads, units)."""

    dim: int
    parts: tuple[Abstract, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""
        first = self.parts[0].shape
        total = sum(part.shape[self.dim] for part in self.parts)
        return (*first[: self.dim], total, *first[self.dim + 1 :])

    def collapse(self) -> Abstract:
        """Give up the difference: unify all other axes."""
        first, *others = self.parts
        axes = [
            concat(part.axes[dim] for part in self.parts) if dim == self.dim else first.axes[dim]
            for dim in range(len(first.axes))
        ]
        for part in others:
            for dim, term in enumerate(part.axes):
                if dim != self.dim:
                    axes[dim] = unify(axes[dim], term)
        return Abstract(tuple(axes))


@dataclass
class Record:
    """What the nested pass needs of a run: all live tensors, and how the operands of each operation share axes."""

    tensors: list[tuple[Term, ...]] = field(default_factory=list)
    stored: list[tuple[Term, ...]] = field(default_factory=list)  # those of them that are parameters or buffers
    operations: list[list[list[tuple[Term, Hashable]]]] = field(default_factory=list)

    def join(self, operands: Sequence[Labelled], out: Sequence[Hashable]) -> tuple[Term, ...]:
        """Unify axes of equal label, note the operation, and return the terms of the labels `out`.

        An axis of size 1 against one of size n is broadcast and puts no constraint on it.
        """
        found: dict[Hashable, Term] = {}
        for axes, labels in operands:
            for term, label in zip(axes, labels, strict=True):
                known = found.get(label)
                if known is None or known.size == 1:
                    found[label] = term
                elif term.size != 1:
                    found[label] = unify(known, term)
        result = tuple(found[label] if label in found else leaf(1) for label in out)
        # The result counts as an operand: what is nested must find its parent on one label before and after.
        self.operations.append([list(zip(axes, labels, strict=True)) for axes, labels in (*operands, (result, out))])
        return result
