"""Laws of the path: its ends are the two models, a permutation moves neither, and the caller's model is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same, clone
from nets import SPEC, data, net
from torch import nn
from torch.nn.functional import cross_entropy

from onebasin.analysis import classification, evaluate_path
from onebasin.batchnorm import recompute_batchnorm
from onebasin.errors import ParamsError, UsageError
from onebasin.interpolate import lerp, slerp
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation


def bare(params: Params) -> tuple[float, float]:
    """Loss and accuracy of a module that really holds `params`."""
    model = net(0).eval()
    model.load_state_dict(params)
    inputs, labels = (torch.cat(column) for column in zip(*data(), strict=True))
    with torch.no_grad():
        logits = model(inputs)
    return cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def test_every_point_is_the_loaded_model() -> None:
    a, b = params_of(net(1)), params_of(net(2))
    curve = evaluate_path(net(0), a, b, classification(data()), points=5)
    assert curve.lams == (0.0, 0.25, 0.5, 0.75, 1.0)
    for lam, loss, accuracy in zip(curve.lams, curve.loss, curve.accuracy, strict=True):
        assert (loss, accuracy) == pytest.approx(bare(lerp(a, b, lam)), rel=1e-12)


def test_permuting_one_end_keeps_both_ends_and_changes_the_path() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    moved = Permutation.random(SPEC, torch.Generator().manual_seed(3)).apply(b)
    naive, matched = (evaluate_path(model, a, end, classification(data()), points=5) for end in (b, moved))
    assert matched.loss[0] == naive.loss[0]
    assert matched.loss[-1] == pytest.approx(naive.loss[-1], rel=1e-12)
    assert abs(matched.loss[2] - naive.loss[2]) > 1e-3


def test_permuting_both_sides_alike_changes_nothing_and_one_side_does() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    permutation = Permutation.random(SPEC, torch.Generator().manual_seed(3))
    evaluate = classification(data())
    plain = evaluate_path(model, a, b, evaluate, points=7)
    both = evaluate_path(model, permutation.apply(a), permutation.apply(b), evaluate, points=7)
    one = evaluate_path(model, permutation.apply(a), b, evaluate, points=7)
    assert both.loss == pytest.approx(plain.loss, rel=1e-12)
    assert one.barrier() != pytest.approx(plain.barrier(), rel=1e-3)


def test_a_network_and_its_permuted_self_have_a_barrier_until_it_is_undone() -> None:
    model, a = net(0), params_of(net(1))
    permutation = Permutation.random(SPEC, torch.Generator().manual_seed(3))
    b = permutation.apply(a)
    evaluate = classification(data())
    assert evaluate_path(model, a, b, evaluate).barrier() > 0.05
    undone = evaluate_path(model, a, permutation.inverse().apply(b), evaluate)
    assert undone.barrier() == pytest.approx(0, abs=1e-12)


def test_slerp_takes_another_path_between_the_same_ends() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    line, arc = (evaluate_path(model, a, b, classification(data()), 3, interpolate=way) for way in (lerp, slerp))
    assert arc.loss[::2] == line.loss[::2]
    assert arc.loss[1] == pytest.approx(bare(slerp(a, b, 0.5))[0], rel=1e-12)
    assert arc.loss[1] != pytest.approx(line.loss[1], rel=1e-3)


def test_batch_norm_is_recomputed_at_every_point_and_both_ends() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    curve = evaluate_path(model, a, b, classification(data()), points=3, batchnorm_batches=data())
    stored = evaluate_path(model, a, b, classification(data()), points=3)
    for lam, found, other in zip(curve.lams, curve.loss, stored.loss, strict=True):
        assert found == pytest.approx(bare(recompute_batchnorm(model, lerp(a, b, lam), data()))[0], rel=1e-12)
        assert found != pytest.approx(other, rel=1e-3)


def everything(model: nn.Module) -> tuple[list[bool], list[int]]:
    tensors = [*model.parameters(), *model.buffers()]
    return [module.training for module in model.modules()], [tensor._version for tensor in tensors]


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_params_are_left_alone(fails: bool) -> None:
    model, a, b = net(0).train(), params_of(net(1)), params_of(net(2))
    model[1].eval()
    before, given = everything(model), (clone(a), clone(b))
    identities = [id(tensor) for tensor in model.parameters()]

    def evaluate(predict: Callable[..., Any]) -> float:
        assert not any(module.training for module in model.modules())
        assert not predict(data()[0][0]).requires_grad
        if fails:
            raise KeyError
        return 1.0

    if fails:
        with pytest.raises(KeyError):
            evaluate_path(model, a, b, evaluate, points=3, batchnorm_batches=data())
    else:
        evaluate_path(model, a, b, evaluate, points=3, batchnorm_batches=data())
    assert everything(model) == before
    assert [id(tensor) for tensor in model.parameters()] == identities
    assert_same(a, given[0])
    assert_same(b, given[1])


def test_a_number_is_a_loss_and_other_metrics_are_kept() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    assert evaluate_path(model, a, b, lambda _: 2, points=3).loss == (2.0, 2.0, 2.0)
    curve = evaluate_path(model, a, b, lambda _: {"perplexity": torch.tensor(3.0)}, points=3)
    assert curve.metrics == {"perplexity": (3.0, 3.0, 3.0)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_position(value: float) -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    losses = iter([1.0, value, 1.0])
    with pytest.raises(UsageError, match=f"at lam = 0.5 loss is {value}"):
        evaluate_path(model, a, b, lambda _: next(losses), points=3)


def test_metrics_must_not_change_on_the_way() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    rows = iter([{"loss": 1.0}, {"loss": 1.0, "accuracy": 0.5}])
    with pytest.raises(UsageError, match=r"at lam = 0\.5 the metrics loss, accuracy, before them loss"):
        evaluate_path(model, a, b, lambda _: next(rows), points=3)
    with pytest.raises(UsageError, match="nothing is measured"):
        evaluate_path(model, a, b, lambda _: {}, points=3)


def test_what_cannot_be_a_path_is_refused() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    with pytest.raises(UsageError, match="a path of 1 points"):
        evaluate_path(model, a, b, lambda _: 1.0, points=1)
    with pytest.raises(UsageError, match="generator"):
        evaluate_path(model, a, b, lambda _: 1.0, batchnorm_batches=(batch for batch in data()))
    with pytest.raises(ParamsError, match=r"moved model hold values that are not finite.*6\.bias"):
        evaluate_path(model, a, b | {"6.bias": b["6.bias"] / 0}, lambda _: 1.0)
    with pytest.raises(ParamsError, match=r"1 missing: 6\.bias"):
        evaluate_path(model, a, {name: b[name] for name in b if name != "6.bias"}, lambda _: 1.0)


def test_progress_counts_points() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    seen: list[tuple[str, int, int]] = []
    evaluate_path(model, a, b, lambda _: 1.0, points=3, progress=lambda *step: seen.append(step))
    assert seen == [("path", 1, 3), ("path", 2, 3), ("path", 3, 3)]
