"""The choice between candidates: which is taken, and when another is not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from cases import case, params, spec_of
from nets import SPEC, data, net

from onebasin.interpolate import lerp
from onebasin.matching import Alignment, BestOf, Criterion, WeightMatching, align
from onebasin.matching.best_of import Incumbent
from onebasin.params import params_of
from onebasin.permutation import Permutation

A, B = params_of(net(0)), params_of(net(1))
INPUTS = [inputs for inputs, _ in data(61)]
DRAWN = [Permutation.random(SPEC, torch.Generator().manual_seed(seed)) for seed in range(12)]


@dataclass(frozen=True)
class Fixed:
    """A candidate that is known beforehand."""

    permutation: Permutation

    def match(self, *given: Any) -> Alignment:
        return align(SPEC, A, A, WeightMatching(max_sweeps=0), start=self.permutation)


def losses_of(permutation: Permutation) -> list[list[float]]:
    """Return the cross entropies of every input of every batch, written out."""
    nets = [net(2).eval() for _ in range(3)]
    for one, weights in zip(nets, (A, B, lerp(A, permutation.apply(B), 0.5)), strict=True):
        one.load_state_dict(weights)
        one[1].train()
    found = []
    for x in INPUTS:
        one, other, middle = (model(x).log_softmax(1) for model in nets)
        found.append((-((one.exp() + other.exp()) / 2 * middle).sum(1)).tolist())
    return found


def test_another_is_taken_only_if_it_is_surely_better_than_the_first() -> None:
    between, losses = Criterion(net(2), INPUTS).between(A, B), [losses_of(one) for one in DRAWN]
    values = [fmean(map(fmean, one)) for one in losses]
    taken = unsure = 0
    for i in range(len(DRAWN)):
        for prefers in (False, True):
            incumbent, reference, best = Incumbent(between, DRAWN[i]), i, i
            for j in range(len(DRAWN)):
                falls = [a - b for a, b in zip(chain(*losses[reference]), chain(*losses[j]), strict=True)]
                surely = values[reference] - values[j] > stdev(falls) / sqrt(len(falls))
                unsure += not surely and values[j] < values[best]
                if surely and values[j] < values[best]:
                    best, taken = j, taken + 1
                assert incumbent.challenge(DRAWN[j]) == (best == j != i and surely)
                assert incumbent.permutation == DRAWN[best]
                if prefers:
                    incumbent.prefer()
                    reference = best
            assert incumbent.history[-1] == pytest.approx(-values[best], rel=1e-10)
    assert taken > 10 < unsure


def test_the_ends_see_a_batch_once_and_only_if_it_is_looked_at() -> None:
    model, seen = net(2), list[torch.Tensor]()
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    between = Criterion(model, INPUTS).between(A, B)
    parts, middle = between.parts(2), between.middle(DRAWN[0])
    some = next(parts).losses(middle)
    assert len(seen) == 2 * 3
    assert {id(batch) for batch in seen} == set(map(id, INPUTS[:2]))
    found = between.losses(middle)
    assert len(seen) == 2 * len(INPUTS) + len(INPUTS) + 2
    assert torch.equal(torch.cat(found[:2]), torch.cat(some))
    for losses, expected in zip(found, losses_of(DRAWN[0]), strict=True):
        torch.testing.assert_close(losses.tolist(), expected, rtol=1e-10, atol=0)


def test_the_first_candidate_is_what_others_must_surely_beat() -> None:
    between, criterion = Criterion(net(2), INPUTS).between(A, B), Criterion(net(2), INPUTS)
    values = [between.at(one) for one in DRAWN]
    best, *rest = sorted(range(len(DRAWN)), key=values.__getitem__)
    found = align(SPEC, A, B, BestOf(criterion, (Fixed(DRAWN[best]), *map(Fixed, DRAWN))), start=DRAWN[rest[-1]])
    assert found.permutation == DRAWN[best]
    assert found.objective == pytest.approx((-values[rest[-1]], -values[best]))
    assert found.note == "candidate 1 was best: Fixed"
    worse = align(SPEC, A, B, BestOf(criterion, {"it": Fixed(DRAWN[rest[-1]])}), start=DRAWN[best])
    assert (worse.permutation, worse.note) == (DRAWN[best], "the start was best")


def test_a_loss_of_a_single_batch_is_compared_as_it_is() -> None:
    criterion = Criterion(net(2), INPUTS[:1], lambda predict, x: predict(x).square().mean())
    between = criterion.between(A, B)
    for other in DRAWN[1:]:
        assert Incumbent(between, DRAWN[0]).challenge(other) == (between.at(other) < between.at(DRAWN[0]))


def test_what_is_not_finite_is_never_taken() -> None:
    incumbent = Incumbent(Criterion(net(2), INPUTS).between(A, B), DRAWN[0])
    incumbent.between.b = {**B, "4.weight": B["4.weight"] * float("nan")}
    assert not incumbent.challenge(DRAWN[1])
    assert incumbent.permutation == DRAWN[0]


def test_every_token_of_a_sequence_counts() -> None:
    one = case("grouped_query")
    (tokens,) = one.inputs()
    assert isinstance(tokens, torch.Tensor)
    between = Criterion(one.model(), [tokens]).between(params(one), params(one, 1))
    (losses,) = between.losses(between.middle(Permutation.identity(spec_of(one))))
    assert losses.shape == (len(tokens),)
