"""Moves of units, tried together and kept where they lower the criterion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from onebasin.interpolate import lerp
from onebasin.matching.criterion import Between, value_of
from onebasin.params import Params
from onebasin.permutation import Permutation

# A move must lower the criterion by more than this (nats), as in the study it comes from: less is rounding or fit.
LEAST = 1e-5
# So many batches decide on a move, if there are so many: on fewer, more is kept that fits them by chance.
DECIDING = 32
# A trial ends as soon as the rise of J is so many times its standard error.
SURE = 2


class Move(NamedTuple):
    """Units of one group that change places.

    Args:
        group: theirs.
        row: new units of the parents.
        places: the new units.
        old: the old units that come there, in the same order.
        expected: by how much J should change.
    """

    group: str
    row: tuple[int, ...]
    places: tuple[int, ...]
    old: tuple[int, ...]
    expected: float = -math.inf


def cycles(permutation: Permutation, other: Permutation) -> Iterator[list[Move]]:
    """Yield for every group the moves that lead to the order of `other`: the least that can be made one by one.

    Each is a cycle of places, of which every one gets the unit of the next. They share no unit.
    """
    for group, index in permutation.indices.items():
        if not torch.equal(index, other.indices[group]):
            yield [
                Move(group, row, tuple(places), tuple(other.indices[group][row][places].tolist()))
                for row in itertools.product(*map(range, index.shape[:-1]))
                for places in _cycles(index[row], other.indices[group][row])
            ]


def _cycles(index: Tensor, other: Tensor) -> Iterator[list[int]]:
    following, left = index.argsort()[other].tolist(), set((index != other).nonzero()[:, 0].tolist())
    for first in sorted(left):
        place, cycle = first, list[int]()
        while place in left:
            left.remove(place)
            cycle.append(place)
            place = following[place]
        if cycle:
            yield cycle


class Trials:
    """An alignment, and what was tried to lower the criterion of it.

    Args:
        between: the criterion.
        permutation: to begin with.
    """

    def __init__(self, between: Between, permutation: Permutation) -> None:
        self.permutation, self.middle, self.spec = permutation, between.middle(permutation), permutation.spec
        self.kept, self.trials, self.trouble = 0, 0, ""
        self.turn_to(between)
        self._failed: set[tuple[object, ...]] = set()

    def turn_to(self, between: Between) -> None:
        """Go on with a criterion of other batches."""
        self.between = between
        self.losses = between.losses(self.middle)
        self._is_finite(self.losses)

    @property
    def value(self) -> float:
        """J of the present order."""
        return value_of(self.losses)

    def has_failed(self, move: Move) -> bool:
        """Return whether a move was tried alone, and did not lower J."""
        return move[:4] in self._failed

    def is_open(self, move: Move) -> bool:
        """Return whether the places of a move still hold the units that it moves."""
        held = self.permutation.indices[move.group][move.row][list(move.places)]
        return set(held.tolist()) == set(move.old)

    def attempt(self, moves: Sequence[Move]) -> None:
        """Move if that lowers J; else try each half by itself. The moves share no unit."""
        permutation = self.moved(moves)
        middle = self._midpoint(permutation, {move.group for move in moves})
        losses = self.between.losses(middle, self._hopeless)
        self.trials += 1
        if not self._is_finite(losses):
            return
        if len(losses) == len(self.losses) and value_of(losses) < self.value - LEAST:
            self.permutation, self.middle, self.losses = permutation, middle, losses
            self.kept += len(moves)
        elif len(moves) > 1:
            half = (len(moves) + 1) // 2
            for part in (moves[:half], moves[half:]):
                if not self.trouble:
                    self.attempt(part)
        else:
            self._failed.add(moves[0][:4])

    def moved(self, moves: Sequence[Move]) -> Permutation:
        """Return the present order after some moves."""
        indices = {group: self.permutation.indices[group].clone() for group in {move.group for move in moves}}
        for move in moves:
            row = indices[move.group][move.row]
            row[list(move.places)] = row.new_tensor(move.old)
        return Permutation(self.spec, {**self.permutation.indices, **indices})

    def _is_finite(self, losses: Sequence[Tensor]) -> bool:
        bad = [number for number, loss in enumerate(losses, 1) if not loss.isfinite().all()]
        self.trouble = f"J was not finite on batch {bad[0]} of the round" if bad else ""
        return not bad

    def _hopeless(self, losses: Sequence[Tensor]) -> bool:
        """Return whether J surely rises, by what is seen so far or at all by half of it, or is not finite."""
        seen = len(losses)
        rises = torch.cat(list(losses)) - torch.cat(self.losses[:seen])
        error = rises.std().item() / math.sqrt(len(rises)) if len(rises) > 1 else math.inf
        rise = rises.mean().item()
        is_sure = seen < len(self.losses) and rise > (0 if 2 * seen >= len(self.losses) else SURE * error)
        return is_sure or not losses[-1].isfinite().all()

    def _midpoint(self, permutation: Permutation, groups: set[str]) -> Params:
        """Return the midpoint at `permutation`, which differs from the present one in these groups only."""
        names = dict.fromkeys(name for group in groups for name, _ in self.spec.groups[group].axes)
        moved = {name: permutation.move(self.between.b[name], self.spec.tensors[name]) for name in names}
        return {**self.middle, **lerp({name: self.between.a[name] for name in names}, moved, 0.5)}
