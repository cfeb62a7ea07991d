"""The label-free criterion, the choice between candidates by it, and polishing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import Case, case, params, spec_of
from models.plain import mlp
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from onebasin.errors import UsageError
from onebasin.interpolate import lerp
from onebasin.matching import Alignment, BestOf, Criterion, Polish, StopReason, WeightMatching, align, polish
from onebasin.matching.criterion import Between
from onebasin.matching.polish import _changes, _disjoint, _Run
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


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_predicted_change_is_the_slope_towards_the_swap(batch_norm: bool) -> None:
    a, b, p = weights(1, batch_norm), weights(2, batch_norm), draw(flat_spec(batch_norm), 3)
    run = _Run(Criterion(model(batch_norm), inputs()).between(a, b), p, 1)
    run.gradient = run.between.gradient(run.middle)
    for group, (i, j) in (("P0", (2, 9)), ("P1", (0, 10))):
        index = p.indices[group].clone()
        index[[i, j]] = index[[j, i]]
        swapped = lerp(a, Permutation(p.spec, {**p.indices, group: index}).apply(b), 0.5)
        step = 1e-5
        ends = [run.between.value(lerp(run.middle, swapped, lam)) for lam in (step, -step)]
        slope = (ends[0] - ends[1]) / (2 * step)
        changes = _changes(run._gains(group), p.indices[group])
        assert changes[i, j].item() == pytest.approx(slope, rel=1e-4)
        torch.testing.assert_close(changes, changes.mT)


def test_swaps_come_in_disjoint_sets_the_most_promising_first() -> None:
    changes = torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(0))
    sets = _disjoint(changes + changes.mT, 20)
    assert sum(map(len, sets)) == 20
    for swaps in sets:
        units = [(row, unit) for row, *pair in swaps for unit in pair]
        assert len(units) == len(set(units))
    flat = sorted(
        (changes + changes.mT)[row, i, j].item() for row in range(3) for i in range(7) for j in range(i + 1, 7)
    )
    worth = [(changes + changes.mT)[swap].item() for swaps in sets for swap in swaps]
    assert sorted(worth) == pytest.approx(flat[:20])
    assert worth[0] == pytest.approx(flat[0])
    assert _disjoint(changes.abs(), 20) == []


@pytest.mark.parametrize("batch_norm", [False, True])
def test_no_promising_swap_is_left(batch_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polish, "WORTHWHILE", 0.0)
    a, b, criterion = weights(1, batch_norm), weights(2, batch_norm), Criterion(model(batch_norm), inputs())
    plain = align(flat_spec(batch_norm), a, b)
    found = align(flat_spec(batch_norm), a, b, Polish(criterion, rounds=50, proposals=1000))
    between = criterion.between(a, b)
    assert list(found.objective) == sorted(found.objective)
    assert found.objective[0] == pytest.approx(-between.at(plain.permutation))
    assert found.objective[-1] == pytest.approx(-between.at(found.permutation), rel=1e-9)
    assert found.objective[-1] > found.objective[0] + 0.05
    assert found.stop is StopReason.FINISHED
    assert tried_swaps(between, found.permutation) >= -found.objective[-1] - polish.LEAST
    assert tried_swaps(between, plain.permutation) < -found.objective[0] - polish.LEAST


def tried_swaps(between: Between, p: Permutation) -> float:
    """Return the lowest criterion after any one swap that the gradient recommends."""
    run = _Run(between, p, 1)
    values = []
    for group in p.spec.sizes:
        run.gradient = between.gradient(run.middle)
        for swaps in _disjoint(_changes(run._gains(group), p.indices[group]), 1000):
            for i, j in swaps:
                index = p.indices[group].clone()
                index[[i, j]] = index[[j, i]]
                values.append(between.at(Permutation(p.spec, {**p.indices, group: index})))
    return min(values)


@pytest.mark.parametrize("name", ["multihead_attention", "grouped_conv", "rnn"])
def test_nested_and_recurrent_groups_are_polished(name: str) -> None:
    one: Case = case(name)
    net, spec, a, b = one.model(), spec_of(one), params(one), params(one, 1)
    (batch,) = one.inputs()
    assert isinstance(batch, Tensor)
    target = _first(torch.func.functional_call(net, a, (batch,))).detach()
    criterion = Criterion(net, [batch], lambda predict, x: mse_loss(_first(predict(x)), target))
    start = draw(spec, 3)
    found = align(spec, a, b, Polish(criterion, HELD_STILL, rounds=1, proposals=5), start=start)
    assert found.objective[-1] > 0.95 * found.objective[0]
    assert found.objective[-1] == pytest.approx(-criterion.between(a, b).at(found.permutation), rel=1e-6)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def test_an_interrupt_keeps_the_best_so_far() -> None:
    def stop(task: str, done: int, total: int) -> None:
        if task == "polish":
            assert (done, total) == (1, 20)
            raise KeyboardInterrupt

    criterion = Criterion(model(), inputs())
    found = align(flat_spec(), weights(1), weights(2), Polish(criterion), progress=stop)
    assert found.stop is StopReason.INTERRUPTED
    between = criterion.between(weights(1), weights(2))
    assert found.objective[-1] == pytest.approx(-between.at(found.permutation), rel=1e-9)
    assert found.objective[0] <= found.objective[-1]


@dataclass(frozen=True)
class Fixed:
    """A candidate that is known beforehand."""

    permutation: Permutation

    def match(self, *given: Any) -> Alignment:
        return align(flat_spec(), weights(1), weights(1), HELD_STILL, start=self.permutation)


def test_the_best_candidate_is_taken() -> None:
    spec, a, b = flat_spec(), weights(1), weights(2)
    criterion, drawn = Criterion(model(), inputs()), [draw(spec, seed) for seed in range(6)]
    values = [criterion.between(a, b).at(p) for p in drawn]
    order = sorted(range(6), key=values.__getitem__)
    found = align(spec, a, b, BestOf(criterion, tuple(map(Fixed, drawn))), start=drawn[order[3]])
    assert found.permutation == drawn[order[0]]
    assert found.objective[-1] == pytest.approx(-min(values))
    assert found.note == f"candidate {order[0] + 1} was best: Fixed"
    worse = align(spec, a, b, BestOf(criterion, (Fixed(drawn[order[3]]),)), start=drawn[order[1]])
    assert (worse.permutation, worse.note) == (drawn[order[1]], "the start was best")


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
        (lambda: Polish(Criterion(model(), inputs()), rounds=0), "0 rounds"),
    ):
        with pytest.raises(UsageError, match=said):
            make()
