"""Laws of the Taylor estimate: exact where it must be, off by the third order elsewhere, and never mixed up."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, clone
from nets import data, net
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onebasin.analysis import classification, evaluate_path, paired_t_test, taylor_barrier
from onebasin.errors import ParamsError, UsageError
from onebasin.interpolate import lerp
from onebasin.params import Params, params_of

Loss = Callable[[Tensor, Tensor], Tensor]
LAMS = (0.1, 0.25, 0.5, 0.9)


def linear(seed: int) -> nn.Module:
    """A network that is linear in its weights: what the loss is in the outputs, it is in the weights."""
    torch.manual_seed(seed)
    return nn.Linear(3, 5).double()


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits - torch.eye(5, dtype=logits.dtype)[labels]).square().sum(1).mean()


def cubic(logits: Tensor, labels: Tensor) -> Tensor:
    return squared(logits, labels) + (logits + labels[:, None]).pow(3).sum(1).mean()


def quartic(logits: Tensor, labels: Tensor) -> Tensor:
    return squared(logits, labels) + logits.pow(4).sum(1).mean()


def true_barrier(model: nn.Module, a: Params, b: Params, loss: Loss, lam: float) -> float:
    """The loss at one point above the chord."""
    evaluate = classification(data(), loss)
    low, middle, high = (
        evaluate_path(model, there, there, evaluate, points=2).loss[0] for there in (a, lerp(a, b, lam), b)
    )
    return middle - (1 - lam) * low - lam * high


@pytest.mark.parametrize("lam", LAMS)
def test_the_full_form_is_exact_on_a_quadratic_at_any_position(lam: float) -> None:
    model, a, b = linear(0), params_of(linear(1)), params_of(linear(2))
    found = taylor_barrier(model, a, b, data(), squared)
    truth = true_barrier(model, a, b, squared, lam)
    assert truth < -0.01  # convex: the line dips below the chord
    assert found.barrier("full", lam) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("lam", LAMS)
def test_on_a_quadratic_the_stationary_form_has_the_opposite_sign(lam: float) -> None:
    found = taylor_barrier(linear(0), params_of(linear(1)), params_of(linear(2)), data(), squared)
    assert found.barrier("stationary", lam) == pytest.approx(-found.barrier("full", lam), rel=1e-10)


def test_the_full_form_is_exact_on_a_cubic_at_the_midpoint_and_nowhere_else() -> None:
    model, a, b = linear(0), params_of(linear(1)), params_of(linear(2))
    found = taylor_barrier(model, a, b, data(), cubic)
    assert found.barrier("full") == pytest.approx(true_barrier(model, a, b, cubic, 0.5), rel=1e-10)
    assert found.barrier("full", 0.2) != pytest.approx(true_barrier(model, a, b, cubic, 0.2), rel=1e-3)
    assert found.barrier("stationary") != pytest.approx(true_barrier(model, a, b, cubic, 0.5), rel=1e-3)


def test_on_a_quartic_it_is_an_estimate() -> None:
    model, a, b = linear(0), params_of(linear(1)), params_of(linear(2))
    found = taylor_barrier(model, a, b, data(), quartic)
    assert found.barrier("full") != pytest.approx(true_barrier(model, a, b, quartic, 0.5), rel=1e-3)


def test_both_forms_agree_where_both_ends_are_stationary() -> None:
    model, a = linear(0), params_of(linear(1))
    flat = {name: torch.zeros_like(tensor) for name, tensor in a.items()}
    # (w^2 - 1)^2 in every output weight is stationary at +1 and -1, and 1 between them.

    def double_well(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.square() - 1).square().mean()

    ends = [flat | {"bias": torch.full((5,), value, dtype=torch.float64)} for value in (1.0, -1.0)]
    found = taylor_barrier(model, *ends, data(), double_well)
    assert found.slopes == pytest.approx((0, 0), abs=1e-12)
    assert found.barrier("stationary") == pytest.approx(found.barrier("full"), rel=1e-12)
    assert found.barrier("full") == pytest.approx(4.0)  # mu H mu / 8 with H = 8, mu = 2
    assert true_barrier(model, ends[0], ends[1], double_well, 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize(("lam", "order"), [(0.5, 4), (0.2, 3)])
def test_close_networks_are_estimated_to_the_third_order(lam: float, order: int) -> None:
    """The network is made smooth: where a line crosses the kink of a ReLU, no derivative at its ends sees it."""
    model, a, far = net(0), params_of(net(1)), params_of(net(2))
    model[2] = nn.Tanh()
    trained = dict(model.named_parameters())
    errors, sizes = [], (1e-2, 5e-3)
    for size in sizes:
        b = {name: tensor + size * far[name] if name in trained else tensor for name, tensor in a.items()}
        found = taylor_barrier(model, a, b, data())
        errors.append(abs(found.barrier("full", lam) - true_barrier(model, a, b, cross_entropy, lam)))
        assert abs(found.barrier("stationary", lam) - true_barrier(model, a, b, cross_entropy, lam)) > 10 * errors[-1]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


def test_derivatives_are_those_of_the_mean_over_all_examples() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    inputs, labels = (torch.cat(column) for column in zip(*data(), strict=True))
    whole = taylor_barrier(model, a, b, [(inputs, labels)])
    parts = taylor_barrier(model, a, b, [{"input": x, "labels": y} for x, y in data()])
    assert parts.slopes == pytest.approx(whole.slopes, rel=1e-12)
    assert parts.curvatures == pytest.approx(whole.curvatures, rel=1e-12)
    assert parts.losses == pytest.approx(evaluate_path(model, a, b, classification(data()), 2).loss, rel=1e-12)
    assert parts.examples == len(labels)


def test_they_are_gradient_and_hessian_contracted_with_the_difference() -> None:
    model, a, b = linear(0), params_of(linear(1)), params_of(linear(2))
    inputs, labels = (torch.cat(column) for column in zip(*data(), strict=True))
    found = taylor_barrier(model, a, b, [(inputs, labels)], cubic)

    def at(vector: Tensor) -> Tensor:
        return cubic(inputs @ vector[:15].reshape(5, 3).T + vector[15:], labels)

    start, end = (torch.cat([params["weight"].flatten(), params["bias"]]) for params in (a, b))
    for number, place in enumerate((start, end)):
        gradient = torch.autograd.functional.jacobian(at, place)
        hessian = torch.autograd.functional.hessian(at, place)
        assert found.slopes[number] == pytest.approx((gradient @ (end - start)).item(), rel=1e-10)
        assert found.curvatures[number] == pytest.approx(((end - start) @ hessian @ (end - start)).item(), rel=1e-10)


def test_exchanging_the_ends_is_turning_the_line_around() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    found, turned = taylor_barrier(model, a, b, data()), taylor_barrier(model, b, a, data())
    for form in ("full", "stationary"):
        assert turned.barrier(form, 0.3) == pytest.approx(found.barrier(form, 0.7), rel=1e-10)
        assert turned.barrier(form, 0.3) != pytest.approx(found.barrier(form, 0.3), rel=1e-3)
    assert (found.barrier("full", 0), found.barrier("stationary", 1)) == (0, 0)


def test_a_linear_loss_has_no_barrier() -> None:
    found = taylor_barrier(
        linear(0), params_of(linear(1)), params_of(linear(2)), data(), lambda logits, labels: logits.mean()
    )
    assert found.barrier("full") == pytest.approx(0, abs=1e-14)
    assert found.curvatures == (0, 0)


def test_model_and_params_are_left_alone() -> None:
    model, a, b = net(0).train(), params_of(net(1)), params_of(net(2))
    before, given = clone(params_of(model)), (clone(a), clone(b))
    with torch.no_grad():
        taylor_barrier(model, a, b, data())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert_same(params_of(model), before)
    assert_same(a, given[0])
    assert_same(b, given[1])


def test_it_shows_itself_and_names_its_forms() -> None:
    found = taylor_barrier(net(0), params_of(net(1)), params_of(net(2)), data())
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["midpoint"] == {"full": found.barrier("full"), "stationary": found.barrier("stationary")}
    for words in ("full", "stationary", f"{found.barrier('full'):.6g}", "31 examples"):
        assert words in str(found)


def test_what_cannot_be_expanded_is_refused() -> None:
    model, a, b = net(0), params_of(net(1)), params_of(net(2))
    with pytest.raises(UsageError, match="no examples"):
        taylor_barrier(model, a, b, [])
    with pytest.raises(UsageError, match="generator"):
        taylor_barrier(model, a, b, (batch for batch in data()))
    with pytest.raises(UsageError, match="cannot be differentiated"):
        taylor_barrier(model, a, b, data(), lambda logits, labels: logits.detach().mean())
    with pytest.raises(UsageError, match=r"shape \(13, 5\)"):
        taylor_barrier(model, a, b, data(), lambda logits, labels: logits)
    with pytest.raises(UsageError, match="not finite"):
        taylor_barrier(model, a, b, data(), lambda logits, labels: (logits - logits).sum().sqrt())
    with pytest.raises(ParamsError, match="moved model hold values"):
        taylor_barrier(model, a, b | {"6.bias": b["6.bias"] / 0}, data())
    with pytest.raises(ParamsError, match="misshapen"):
        taylor_barrier(model, a, b | {"6.bias": torch.zeros(3)}, data())
    found = taylor_barrier(model, a, b, data())
    with pytest.raises(UsageError, match="lam = 2"):
        found.barrier("full", 2)
    with pytest.raises(UsageError, match="'best'"):
        found.barrier("best")  # type: ignore[arg-type]


def test_estimates_that_differ_in_every_trial_differ_significantly() -> None:
    truths = [0.1, 0.5, -0.2, 0.3, 0.0]
    off = paired_t_test(
        [truth + 1 + noise for truth, noise in zip(truths, (0, 0.1, -0.1, 0.05, 0), strict=True)], truths
    )
    assert off.difference == pytest.approx(1.01)
    assert off.p < 1e-4
    assert off.trials == 5
    right = paired_t_test(
        [truth + noise for truth, noise in zip(truths, (0.1, -0.1, 0.1, -0.1, 0), strict=True)], truths
    )
    assert right.p == pytest.approx(1)
    assert right.statistic == pytest.approx(0, abs=1e-12)


def test_a_paired_test_needs_pairs() -> None:
    with pytest.raises(UsageError, match="1 estimates and 1 truths"):
        paired_t_test([1.0], [1.0])
    with pytest.raises(UsageError, match="3 estimates and 2 truths"):
        paired_t_test([1.0] * 3, [1.0] * 2)
