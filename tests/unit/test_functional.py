"""Calling a module with other weights leaves it alone; batches of every kind are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same, clone
from torch import Tensor, nn

from onebasin.errors import ParamsError, UsageError
from onebasin.functional import check_repeatable, eval_mode, inputs_of, labels_of, with_params
from onebasin.params import params_of


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.head = nn.Linear(5, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.embed(tokens))


def test_the_model_behaves_as_with_the_weights_loaded() -> None:
    torch.manual_seed(0)
    model, other = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    batch = torch.randn(7, 3)
    before, params = clone(params_of(model)), clone(params_of(other))
    torch.testing.assert_close(with_params(model, params)(batch), other(batch), rtol=0, atol=0)
    assert_same(params_of(model), before)
    assert params["1.num_batches_tracked"].item() == 0  # both were in train mode, so the other's statistics moved
    assert other[1].num_batches_tracked.item() == 1


def test_tied_weights_that_were_stored_twice_are_one() -> None:
    model = Tied()
    params = clone(params_of(model))
    params = {name: torch.ones_like(tensor) for name, tensor in params.items()}
    assert params["head.weight"] is not params["embed.weight"]
    out = with_params(model, params)(torch.tensor([[1, 2]]))
    torch.testing.assert_close(out, torch.full((1, 2, 11), 5.0))
    assert model.calls.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_run_in_a_wider_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).eval(), torch.randn(7, 3)
    other = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).to(dtype).eval()
    params = params_of(other)
    found = with_params(model, params)(batch)
    torch.testing.assert_close(found, other.float()(batch), rtol=0, atol=0)
    assert all(tensor.dtype in (dtype, torch.int64) for tensor in params.values())
    leaf = params["0.weight"].clone().requires_grad_()
    with_params(model, {**params, "0.weight": leaf})(batch).square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype


def test_weights_in_double_precision_stay_so() -> None:
    model, batch = nn.Linear(3, 5), torch.randn(7, 3).double()
    params = {name: tensor.double() for name, tensor in params_of(model).items()}
    assert torch.equal(with_params(model, params)(batch), model.double()(batch))


def test_params_of_another_model_are_refused() -> None:
    with pytest.raises(ParamsError, match="do not fit the model: 1 missing: bias; 1 misshapen: weight"):
        with_params(nn.Linear(3, 5), {"weight": torch.ones(3, 5)})


def test_modes_are_set_and_restored_one_by_one() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3), nn.Sequential(nn.Dropout()))
    model[2].eval()
    before = [module.training for module in model.modules()]
    with eval_mode(model, training=[model[1]]):
        assert [module.training for module in model.modules()] == [False, False, True, False, False]
    assert [module.training for module in model.modules()] == before == [True, True, True, False, False]


X, Y = torch.ones(2, 3), torch.ones(2)
BATCHES: list[tuple[Any, Any, Any]] = [
    (X, (X,), {}),
    ((X,), (X,), {}),
    ([X, Y], (X,), {}),
    (((X, Y), Y), (X, Y), {}),
    (([X, Y],), (X, Y), {}),
    (({"x": X}, Y), (), {"x": X}),
    ({"x": X, "labels": Y}, (), {"x": X}),
]


@pytest.mark.parametrize(("batch", "args", "kwargs"), BATCHES)
def test_inputs_are_found(batch: Any, args: Any, kwargs: Any) -> None:
    found_args, found_kwargs = inputs_of(batch)
    assert [id(value) for value in found_args] == [id(value) for value in args]
    assert {name: id(value) for name, value in found_kwargs.items()} == {name: id(v) for name, v in kwargs.items()}


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], ({"x": X}, Y), {"x": X, "labels": Y}])
def test_labels_are_found(batch: Any) -> None:
    assert labels_of(batch) is Y


@pytest.mark.parametrize("batch", [3, (X, Y, X), (), ("text", Y)])
def test_other_batches_are_refused(batch: Any) -> None:
    with pytest.raises(UsageError, match="a batch is a"):
        inputs_of(batch)


@pytest.mark.parametrize("batch", [X[:0], (X[:0], Y[:0]), {"x": X[:0], "mask": X[:0]}, ({"x": X[:0]}, Y)])
def test_batches_without_samples_are_refused(batch: Any) -> None:
    with pytest.raises(UsageError, match=r"a batch without samples: inputs of shape \(0, 3\)"):
        inputs_of(batch)


def test_one_of_several_inputs_may_be_empty() -> None:
    assert inputs_of({"x": X, "cache": X[:, :0]})[1].keys() == {"x", "cache"}


@pytest.mark.parametrize("batch", [X, (X,), {"x": X}, (X, [0, 1])])
def test_batches_without_labels_are_refused(batch: Any) -> None:
    with pytest.raises(UsageError, match="labels"):
        labels_of(batch)


def test_a_generator_cannot_be_read_again() -> None:
    check_repeatable([X])
    with pytest.raises(UsageError, match="generator"):
        check_repeatable(batch for batch in [X])
