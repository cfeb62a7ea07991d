"""Cycles in which two orders differ, what is expected of them, and what is kept."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from cases import case, params, spec_of
from nets import SPEC, data, net
from torch import Tensor

from onebasin.functional import Predict
from onebasin.interpolate import lerp
from onebasin.matching import Criterion
from onebasin.matching.criterion import value_of
from onebasin.matching.moves import LEAST, Move, Trials, cycles
from onebasin.matching.proposals import Proposals
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


@pytest.mark.parametrize("name", ["grouped_query", "grouped_conv"])
def test_of_cycles_is_expected_what_the_loss_begins_to_do_on_the_way(name: str) -> None:
    one = case(name)
    spec, a, b, batch = spec_of(one), params(one), params(one, 1), one.inputs()[0]

    def loss(predict: Predict, inputs: Tensor) -> Tensor:
        return predict(inputs).square().mean()

    run = Proposals(Criterion(one.model(), [batch], loss).between(a, b), draw(1, spec))
    ways = list(chain.from_iterable(cycles(run.permutation, draw(2, spec))))
    found = {move[:4]: move.expected for move in run.promising([*ways, *ways])}
    assert 0 < len(found) < len(ways)
    assert max(len(move.row) for move in ways) == 1
    for move in ways:
        end, step = run.between.middle(run.moved([move])), 1e-3
        up, down = (value_of(run.between.losses(lerp(run.middle, end, lam))) for lam in (step, -step))
        slope = (up - down) / (2 * step)
        assert (move[:4] in found) == (slope < -LEAST)
        assert found.get(move[:4], slope) == pytest.approx(slope, rel=1e-3)


def test_cycles_of_two_are_swaps() -> None:
    between = CRITERION.between(A, params_of(net(1)))
    swaps = {move[:4]: move.expected for move in Proposals(between, draw(1)).swaps()}
    run = Proposals(between, draw(1))
    failed, *rest = (Move(*move) for move in swaps)
    run._failed.add(failed[:4])
    assert {move[:4]: move.expected for move in run.promising([failed, *rest])} == pytest.approx(
        {move: value for move, value in swaps.items() if move != failed[:4]}
    )
