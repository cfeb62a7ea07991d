"""The label-free criterion, the choice between candidates by it, and polishing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from statistics import fmean
from typing import Any

import pytest
import torch
from cases import Case, case, params, spec_of
from models.plain import mlp
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from onebasin.errors import UsageError
from onebasin.functional import Predict
from onebasin.interpolate import lerp
from onebasin.matching import BestOf, Criterion, Polish, StopReason, WeightMatching, align, moves, polish, proposals
from onebasin.matching.criterion import Between, value_of
from onebasin.matching.moves import Move
from onebasin.matching.proposals import Proposals
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

SIZES = (5, 13, 11, 7)
HELD_STILL = WeightMatching(max_sweeps=0)


def flat_spec(batch_norm: bool = False) -> PermutationSpec:
    first = {"0.weight": ("P0", None), "0.bias": ("P0",)}
    norm = {f"1.{name}": ("P0",) for name in ("weight", "bias", "running_mean", "running_var")} if batch_norm else {}
    n = 3 if batch_norm else 2
    rest = {f"{n}.weight": ("P1", "P0"), f"{n}.bias": ("P1",), f"{n + 2}.weight": (None, "P1")}
    shapes = {name: tuple(tensor.shape) for name, tensor in params_of(model(batch_norm)).items()}
    return PermutationSpec.from_axes({**first, **norm, **rest}, shapes)


def model(batch_norm: bool = False, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = mlp(SIZES).double()
        layers = [net[0], nn.BatchNorm1d(13).double(), *net[1:]] if batch_norm else list(net)
        return nn.Sequential(*layers).eval()


def weights(seed: int, batch_norm: bool = False) -> Params:
    """Draw large weights, so that the outputs differ between inputs."""
    return {n: 3 * t if t.is_floating_point() else t for n, t in params_of(model(batch_norm, seed)).items()}


def inputs(batches: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(29, 5, generator=generator, dtype=torch.float64) for _ in range(batches)]


def normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def loaded(values: Params, batch_norm: bool = False) -> nn.Sequential:
    net = model(batch_norm)
    net.load_state_dict(values)
    return net


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_criterion_is_the_cross_entropy_against_the_mean_of_the_ends(batch_norm: bool) -> None:
    a, b, p = weights(1, batch_norm), weights(2, batch_norm), draw(flat_spec(batch_norm), 3)
    nets = [loaded(values, batch_norm).train(batch_norm) for values in (a, b, lerp(a, p.apply(b), 0.5))]
    expected = []
    for x in inputs():
        one, other, middle = (net(x).log_softmax(1) for net in nets)
        expected.append(-((one.exp() + other.exp()) / 2 * middle).sum(1).mean().item())
    untouched = model(batch_norm, 5).train()
    before = {name: tensor.clone() for name, tensor in untouched.state_dict().items()}
    found = Criterion(untouched, inputs()).between(a, b).at(p)
    assert found == pytest.approx(sum(expected) / 2, rel=1e-10)
    assert found != pytest.approx(Criterion(untouched, inputs()).between(a, b).at(p.inverse()), rel=1e-3)
    assert all(torch.equal(untouched.state_dict()[name], tensor) for name, tensor in before.items())
    assert untouched.training


def test_the_planted_permutation_is_the_best() -> None:
    spec, a = flat_spec(), weights(1)
    p = draw(spec, 3)
    between = Criterion(model(), inputs()).between(a, p.apply(a))
    others = [between.at(draw(spec, seed)) for seed in range(20)]
    assert between.at(p.inverse()) < min(others)


def test_the_classes_of_a_network_that_reads_tokens_are_on_the_last_axis() -> None:
    net, p = case("grouped_query").model(), draw(spec_of(case("grouped_query")), 3)
    a, b, (tokens,) = params(case("grouped_query")), params(case("grouped_query"), 1), case("grouped_query").inputs()
    logits = [torch.func.functional_call(net, w, tokens).flatten(0, 1) for w in (a, b, lerp(a, p.apply(b), 0.5))]
    one, other, middle = (x.log_softmax(1) for x in logits)
    expected = -((one.exp() + other.exp()) / 2 * middle).sum(1).mean().item()
    assert Criterion(net, [tokens]).between(a, b).at(p) == pytest.approx(expected, rel=1e-10)


def test_a_loss_of_ones_own_takes_its_place() -> None:
    a, b, p = weights(1), weights(2), draw(flat_spec(), 3)
    own = Criterion(model(), inputs(), lambda predict, batch: predict(batch).square().mean())
    middle = loaded(lerp(a, p.apply(b), 0.5))
    expected = sum(middle(x).square().mean().item() for x in inputs()) / 2
    assert own.between(a, b).at(p) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("batches", "fitted", "held", "few"), [(1, 1, 1, 1), (2, 1, 1, 2), (9, 5, 4, 5), (16, 8, 8, 8), (64, 56, 8, 8)]
)
def test_batches_are_split_evenly_and_dealt_in_turns(batches: int, fitted: int, held: int, few: int) -> None:
    drawn = inputs(batches)
    criterion = Criterion(model(), drawn)
    fit, rest = criterion.split()
    names = {id(batch): number for number, batch in enumerate(drawn)}
    seen = [[names[id(batch)] for batch in part.batches] for part in (fit, rest, criterion.few())]
    assert [len(numbers) for numbers in seen] == [fitted, held, few]
    assert set(seen[0]) | set(seen[1]) == set(range(batches))
    assert batches == 1 or not set(seen[0]) & set(seen[1])
    assert all(numbers == sorted(numbers) for numbers in seen)
    between = fit.between(weights(1), weights(2))
    first, second = (list(part.criterion.batches) for part in islice(between.parts(6), 2))
    assert [names[id(batch)] for batch in (first + second)[:fitted]] == seen[0][:12]
    part = next(between.parts(6))
    assert part.losses(part.middle(draw(flat_spec(), 3)))[0].tolist() == pytest.approx(
        between.losses(between.middle(draw(flat_spec(), 3)))[0].tolist()
    )


@pytest.mark.parametrize("batch_norm", [False, True])
def test_slope_and_curvature_are_those_of_the_way_to_the_swap(
    batch_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a midpoint that J cannot tell from the ends, the Gauss-Newton part is the whole Hessian."""
    a, p = weights(1, batch_norm), draw(flat_spec(batch_norm), 3)
    monkeypatch.setattr(proposals, "SAMPLES", 4000)
    for b, order in ((weights(2, batch_norm), p), (p.inverse().apply(a), p)):
        run = Proposals(Criterion(model(batch_norm), inputs()).between(a, b), order, 0)
        (first, *_), (slopes, bends) = run.between.slopes(run.middle, 1, torch.Generator()), run.look(run.of_swaps)
        assert first.count == 29
        for group, (i, j) in (("P0", (2, 9)), ("P1", (0, 10))):
            index = order.indices[group].clone()
            index[[i, j]] = index[[j, i]]
            swapped = lerp(a, Permutation(order.spec, {**order.indices, group: index}).apply(b), 0.5)
            step = 1e-3
            up, here, down = (
                value_of(run.between.losses(lerp(run.middle, swapped, lam))) for lam in (step, 0.0, -step)
            )
            slope = slopes[group]
            assert slope[i, j].item() == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-6)
            torch.testing.assert_close(slope, slope.mT)
            curvature = bends[group][i, j].item()
            assert curvature > 0
            if run.value == pytest.approx(entropy(run), rel=1e-9):
                assert curvature == pytest.approx((up - 2 * here + down) / step**2, rel=0.15)


def proposed(run: Proposals, count: int) -> Iterator[list[Move]]:
    return run.sets(run.swaps(), count)


def entropy(run: Proposals) -> float:
    """Return the lowest value that J can have."""
    targets = [run.between._target(*one) for one in run.between._numbered()]
    return fmean(-(t * t.log()).sum(1).mean().item() for t in targets)


def test_swaps_come_in_disjoint_sets_the_most_promising_first() -> None:
    run = Proposals(Criterion(model(), inputs()).between(weights(1), weights(2)), draw(flat_spec(), 3), 0)
    sets = list(proposed(run, 5))
    assert len(sets) > 2
    for swaps in sets:
        assert len(swaps) <= 5
        units = [(swap.group, unit) for swap in swaps for unit in swap.places]
        assert len(units) == len(set(units))
        assert all(swap.expected < 0 for swap in swaps) or len(swaps) == 1
    everything = [swap for swaps in sets for swap in swaps]
    assert len(everything) == len(set(everything))
    assert sets[0][0].expected == min(swap.expected for swap in everything)
    again = Proposals(run.between, run.permutation, 0)
    again._failed.add(sets[0][0][:4])
    assert again.has_failed(sets[0][0])
    assert sets[0][0] not in [swap for swaps in proposed(again, 5) for swap in swaps]


def test_swaps_of_units_that_have_moved_are_not_proposed() -> None:
    run = Proposals(Criterion(model(), inputs()).between(weights(1), weights(2)), draw(flat_spec(), 3), 0)
    moved, later = set[tuple[str, int]](), 0
    before = [swap for swaps in proposed(Proposals(run.between, run.permutation, 0), 1) for swap in swaps]
    for (swap,) in proposed(run, 1):
        assert run.is_open(swap)
        later += len(moved) > 0
        assert not moved & {(swap.group, place) for place in swap.places}
        if len(moved) < 6:
            run.permutation = run.moved([swap])
            moved |= {(swap.group, place) for place in swap.places}
    assert 0 < later < len(before) - 1


@pytest.mark.parametrize("batch_norm", [False, True])
def test_no_promising_swap_is_left(batch_norm: bool) -> None:
    a, b, criterion = weights(1, batch_norm), weights(2, batch_norm), Criterion(model(batch_norm), inputs(1))
    plain = align(flat_spec(batch_norm), a, b)
    found = align(flat_spec(batch_norm), a, b, Polish(criterion, rounds=100))
    between = criterion.between(a, b)
    assert list(found.objective) == sorted(found.objective)
    assert found.objective[0] == pytest.approx(-between.at(plain.permutation))
    assert found.objective[-1] == pytest.approx(-between.at(found.permutation), rel=1e-9)
    assert found.objective[-1] > found.objective[0] + 0.05
    assert found.stop is StopReason.FINISHED
    assert improving(between, found.permutation) < improving(between, plain.permutation) / 2


def improving(between: Between, p: Permutation) -> float:
    """Return the share of the twenty most recommended swaps, tried alone, that lower the criterion."""
    run = Proposals(between, p, 1)
    pool = sorted((swap for swaps in proposed(run, 1) for swap in swaps), key=lambda swap: swap.expected)[:20]
    return fmean(between.at(run.moved([swap])) < run.value - moves.LEAST for swap in pool)


def test_a_criterion_that_is_not_finite_ends_the_run_with_the_best_so_far() -> None:
    calls = 0

    def loss(predict: Predict, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return predict(batch).square().mean() * (float("nan") if calls == 16 else 1.0)

    found = align(flat_spec(), weights(1), weights(2), Polish(Criterion(model(), inputs(4), loss)))
    assert found.stop is StopReason.NOT_FINITE
    assert "not finite on batch" in found.note
    finite = Criterion(model(), inputs(4), lambda predict, x: predict(x).square().mean())
    between = finite.split()[1].between(weights(1), weights(2))
    assert -found.objective[-1] == pytest.approx(between.at(found.permutation), rel=1e-9)


@pytest.mark.parametrize("name", ["multihead_attention", "grouped_conv", "rnn"])
def test_nested_and_recurrent_groups_are_polished(name: str) -> None:
    one: Case = case(name)
    net, spec, a, b = one.model(), spec_of(one), params(one), params(one, 1)
    (batch,) = one.inputs()
    assert isinstance(batch, Tensor)
    target = _first(torch.func.functional_call(net, a, (batch,))).detach()
    criterion = Criterion(net, [batch], lambda predict, x: mse_loss(_first(predict(x)), target))
    start = draw(spec, 3)
    found = align(spec, a, b, Polish(criterion, HELD_STILL, rounds=1), start=start)
    assert found.objective[-1] > 0.95 * found.objective[0]
    assert found.objective[-1] == pytest.approx(-criterion.between(a, b).at(found.permutation), rel=1e-6)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def test_an_interrupt_keeps_the_best_so_far() -> None:
    def stop(task: str, done: int, total: int) -> None:
        if task == "polish":
            assert (done, total) == (1, 10)
            raise KeyboardInterrupt

    criterion = Criterion(model(), inputs())
    found = align(flat_spec(), weights(1), weights(2), Polish(criterion), progress=stop)
    assert found.stop is StopReason.INTERRUPTED
    between = criterion.split()[1].between(weights(1), weights(2))
    assert found.objective[-1] == pytest.approx(-between.at(found.permutation), rel=1e-9)
    assert found.objective[0] <= found.objective[-1]


@pytest.mark.parametrize(("fitted", "gains"), [(4, False), (400, True)])
def test_what_fits_a_few_inputs_only_is_not_kept(fitted: int, gains: bool) -> None:
    """One batch is polished on, the other tells whether that helps. The planted order, or one near it, is first."""
    spec, a, generator = flat_spec(), weights(1), torch.Generator().manual_seed(1)
    p = draw(spec, 3)
    noise = {n: torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in a.items()}
    b = {n: t + 0.3 * t.std() * noise[n] for n, t in p.apply(a).items()}
    index = p.inverse().indices["P0"].clone()
    start = Permutation(spec, {**p.inverse().indices, "P0": torch.cat([index[:4].flip(0), index[4:]])})
    start = start if gains else p.inverse()
    criterion = Criterion(model(), [normal(fitted, 5), normal(400, 9)])
    fit, held = (half.between(a, b) for half in criterion.split())
    run = Proposals(fit, start, 0)
    for _ in range(4):
        run.attempt(next(proposed(run, 8)))
    assert run.value < fit.at(start) - 5e-3
    assert (held.at(run.permutation) < held.at(start)) == gains
    found = align(spec, a, b, Polish(criterion, HELD_STILL), start=start)
    assert (found.permutation != start) == gains
    assert found.objective[0] == pytest.approx(-held.at(start))
    assert found.objective[-1] == pytest.approx(-held.at(found.permutation))


@pytest.mark.parametrize("stale", [3, 100])
def test_it_ends_when_it_only_fits(stale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted order is the best for all inputs but the four that are polished on."""
    monkeypatch.setattr(polish, "STALE", stale)
    a, p, seen, generator = weights(1), draw(flat_spec(), 3), set[int](), torch.Generator().manual_seed(1)
    noise = {n: torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in a.items()}
    b = {n: t + 0.3 * t.std() * noise[n] for n, t in p.apply(a).items()}
    criterion = Criterion(model(), [normal(4, 5), normal(400, 9)])
    matcher = Polish(criterion, HELD_STILL, rounds=20)
    found = align(flat_spec(), a, b, matcher, start=p.inverse(), progress=lambda _, done, total: seen.add(done))
    assert (max(seen) == 3) == (stale == 3)
    assert found.permutation == p.inverse()


def test_settings_are_told_without_data() -> None:
    criterion = Criterion(model(), inputs())
    found = align(flat_spec(), weights(1), weights(2), Polish(criterion, BestOf(criterion, (WeightMatching(seed=7),))))
    told = found.to_json()["settings"]
    assert told["first"] == {"name": "BestOf", "candidates": [{"name": "WeightMatching", **_plain_settings(7)}]}


def _plain_settings(seed: int) -> dict[str, Any]:
    return align(flat_spec(), weights(1), weights(1), WeightMatching(seed=seed)).to_json()["settings"]


def test_what_is_refused() -> None:
    spec, a, b = flat_spec(), weights(1), weights(2)
    broken = Criterion(model(), inputs(), lambda predict, batch: predict(batch).sum() * float("nan"))
    for make, said in (
        (lambda: Criterion(model(), iter(inputs())), "empty after one pass"),
        (lambda: align(spec, a, b, Polish(Criterion(model(), []))), "no batches"),
        (lambda: align(spec, a, b, Polish(broken)), "criterion of nan"),
        (lambda: align(spec, a, b, BestOf(broken, (WeightMatching(),))), "criterion of nan"),
        (lambda: Polish(Criterion(model(), inputs()), rounds=0), "rounds=0"),
    ):
        with pytest.raises(UsageError, match=said):
            make()
