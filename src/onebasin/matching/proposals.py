"""What moves of units promise, by slope and curvature of the criterion, and in which sets they are tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from onebasin.matching.criterion import Between
from onebasin.matching.moves import LEAST, Move, Trials
from onebasin.params import Params
from onebasin.permutation import Permutation

# Samples of the curvature.
SAMPLES = 16
# Swaps of a group that a round considers.
POOL = 64

# Gains of all groups -> what every move of a group adds to half their sum.
Changes = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Proposals(Trials):
    """Trials of the moves that promise most, by slope and curvature of J (see `Polish`).

    Moves towards which J does not begin by falling are left out.

    Args:
        between: the criterion.
        permutation: to begin with.
        seed: of the draws.
    """

    def __init__(self, between: Between, permutation: Permutation, seed: int = 0) -> None:
        super().__init__(between, permutation)
        self._generator = torch.Generator().manual_seed(seed)

    def sets(self, pool: Iterable[Move], count: int) -> Iterator[list[Move]]:
        """Yield moves, best first: up to `count` that should lower J and share no unit, or one alone.

        Those whose units have moved meanwhile are left out.
        """
        left = sorted(pool, key=lambda move: move.expected)
        while left:
            chosen: list[Move] = []
            taken: set[tuple[object, ...]] = set()
            for move in left:
                units = {(move.group, move.row, unit) for unit in move.places}
                if not chosen or (len(chosen) < count and move.expected < 0 and not taken & units):
                    chosen.append(move)
                    taken |= units
            yield chosen
            left = [move for move in left if move not in chosen and self.is_open(move)]

    def swaps(self) -> Iterator[Move]:
        """Yield the most promising swaps of every group."""
        slopes, bends = self.look(self.of_swaps)
        for group, slope in slopes.items():
            index, expected = self.permutation.indices[group], _expected(slope, bends.get(group, 0))
            flat = expected.masked_fill(torch.ones_like(slope).tril() > 0, math.inf).flatten()
            values, order = flat.topk(min(len(flat), POOL), largest=False)
            places = torch.stack(torch.unravel_index(order, expected.shape), 1).tolist()
            for value, (*row, i, j) in zip(values.tolist(), places, strict=True):
                old = index[(*row, j)].item(), index[(*row, i)].item()
                swap = Move(group, tuple(row), (i, j), old, value)  # type: ignore[arg-type]
                if value < math.inf and not self.has_failed(swap):
                    yield swap

    def promising(self, moves: Iterable[Move]) -> Iterator[Move]:
        """Yield those of some moves that promise something."""
        by_group: dict[str, list[Move]] = {}
        for move in dict.fromkeys(moves):
            if not self.has_failed(move):
                by_group.setdefault(move.group, []).append(move)
        if not by_group:  # spares the passes over the inputs
            return
        ways = {group: _Ways(found, self.permutation.indices[group]) for group, found in by_group.items()}
        slopes, bends = self.look(lambda gains: {group: way.changes(gains[group]) for group, way in ways.items()})
        for group, slope in slopes.items():
            for move, value in zip(by_group[group], _expected(slope, bends.get(group, 0)).tolist(), strict=True):
                if value < math.inf:
                    yield move._replace(expected=value)

    def look(self, changes: Changes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return slope and curvature of J towards moves, group by group."""
        batches = len(list(self.between.criterion.batches))
        gradient, bends = dict[str, Tensor](), dict[str, Tensor]()
        for slopes in self.between.slopes(self.middle, math.ceil(SAMPLES / batches), self._generator):
            for name, slope in slopes.own.items():
                gradient[name] = gradient.get(name, 0) + slope / batches
            for drawn in slopes.drawn:
                weight = slopes.count / batches / len(slopes.drawn)
                for group, change in changes(self._gains(drawn)).items():
                    bends[group] = bends.get(group, 0) + weight * change.square()
        return changes(self._gains(gradient)), bends

    def of_swaps(self, gains: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `Float[Tensor, "*parents n n"]` by group: what a swap of new units i and j adds to half the sum."""
        found = {}
        for group, gain in gains.items():
            placed = gain.gather(-1, self.permutation.indices[group][..., None, :].expand_as(gain))
            own = placed.diagonal(dim1=-2, dim2=-1)
            found[group] = (placed + placed.mT - own[..., None] - own[..., None, :]) / 2
        return found

    def _gains(self, gradient: Params) -> dict[str, Tensor]:
        gains = self.between.gains(gradient, self.permutation, self.spec.sizes)
        return {group: gain.cpu().double() for group, gain in gains.items()}


class _Ways:
    """Where the gains of some moves of a group are found.

    Args:
        moves: of one group.
        index: its present order.
    """

    def __init__(self, moves: Sequence[Move], index: Tensor) -> None:
        places = [(*move.row, place) for move in moves for place in move.places]
        self._places = torch.tensor(places).unbind(1)
        self._old, self._now = torch.tensor([unit for move in moves for unit in move.old]), index[self._places]
        self._owners = torch.tensor([number for number, move in enumerate(moves) for _ in move.places])
        self._count = len(moves)

    def changes(self, gain: Tensor) -> Tensor:
        """Return `Float[Tensor, " moves"]`: what they add to half the sum of gains."""
        change = gain[(*self._places, self._old)] - gain[(*self._places, self._now)]
        return change.new_zeros(self._count).index_add_(0, self._owners, change) / 2


def _expected(slope: Tensor, bend: Tensor | float) -> Tensor:
    """Return by how much J should change; infinity where it does not begin by falling."""
    return (slope + bend / 2).masked_fill(~(slope < -LEAST), math.inf)
