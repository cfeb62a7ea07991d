"""Cycles in which two orders differ, and what is kept of them."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from cases import case, spec_of
from nets import SPEC, data, net

from onebasin.matching import Criterion
from onebasin.matching.moves import Trials, cycles
from onebasin.params import params_of
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

A = params_of(net(0))
CRITERION = Criterion(net(2), [inputs for inputs, _ in data(61)])


def draw(seed: int, spec: PermutationSpec = SPEC) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def other_cycle(order: Permutation, group: str, places: list[int]) -> Permutation:
    """Return the order after the units at these places have gone one place on."""
    index = order.indices[group].clone()
    index[places] = index[places].roll(1)
    return Permutation(order.spec, {**order.indices, group: index})


@pytest.mark.parametrize("name", ["", "grouped_query", "grouped_conv"])
def test_cycles_lead_to_the_other_order_and_none_can_be_cut(name: str) -> None:
    spec = spec_of(case(name)) if name else SPEC
    one, other = draw(1, spec), draw(2, spec)
    trials = Trials(CRITERION.between(A, A), draw(1))
    for moves in cycles(one, other):
        (group,) = {move.group for move in moves}
        index, units = one.indices[group].clone(), [(move.row, place) for move in moves for place in move.places]
        assert len(units) == len(set(units))
        for move in moves:
            row, before = index[move.row], index[move.row].clone()
            assert sorted(move.old) == sorted(before[list(move.places)].tolist())
            for part in range(1, len(move.places)):
                assert sorted(move.old[:part]) != sorted(before[list(move.places[:part])].tolist())
            row[list(move.places)] = torch.tensor(move.old)
        assert torch.equal(index, other.indices[group])
        if not name:
            assert torch.equal(trials.moved(moves).indices[group], index)
    assert not list(cycles(one, one))


def test_the_good_ones_among_bad_cycles_are_kept() -> None:
    p = draw(3)
    b, planted = p.apply(A), p.inverse()
    group = next(iter(SPEC.sizes))
    start = other_cycle(other_cycle(planted, group, [0, 3, 5]), group, [1, 2])
    wrong = other_cycle(other_cycle(planted, group, [0, 3, 5]), group, [4, *range(6, SPEC.sizes[group])])
    for other, moves, kept, end in (
        (planted, 2, 2, planted),
        (wrong, 2, 1, other_cycle(planted, group, [0, 3, 5])),
        (start, 0, 0, start),
    ):
        trials = Trials(CRITERION.between(A, b), start)
        before = trials.value
        found = list(chain.from_iterable(cycles(start, other)))
        assert len(found) == moves
        if found:
            trials.attempt(found)
        assert trials.kept == kept
        assert trials.permutation == end
        assert (trials.value < before) == bool(kept)
        assert trials.value == pytest.approx(trials.between.at(end))
        assert [trials.has_failed(move) for move in found].count(True) == moves - kept
