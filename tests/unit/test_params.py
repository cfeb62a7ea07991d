from __future__ import annotations

import pytest
import torch
from cases import case
from torch import Tensor, nn

from onebasin.errors import ParamsError
from onebasin.params import check_finite, check_shapes, compute_dtype, element_count, map_tensors, params_of, tied_names


def test_params_of_shares_memory_and_has_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    params = params_of(model)
    assert list(params) == list(model.state_dict())
    assert params["0.weight"].data_ptr() == model[0].weight.data_ptr()
    assert not params["0.weight"].requires_grad


def test_tied_names_are_found_by_storage() -> None:
    assert tied_names(params_of(case("tied_embedding").model())) == (("embed.weight", "head.weight"),)
    shared = torch.zeros(4, 3)
    assert tied_names({"a": shared, "b": shared.view(4, 3), "c": shared.clone()}) == (("a", "b"),)
    assert tied_names({"a": shared, "b": shared[:2], "c": shared.t()}) == ()


def test_empty_and_meta_tensors_are_tied_by_identity_only() -> None:
    empty, meta = torch.empty(0), torch.empty(3, device="meta")
    assert tied_names({"a": empty, "b": torch.empty(0)}) == ()
    assert tied_names({"a": meta, "b": torch.empty(3, device="meta"), "c": meta}) == (("a", "c"),)


def test_map_tensors_calls_once_per_tensor_and_keeps_ties() -> None:
    shared, calls = torch.ones(2), []

    def double(name: str, tensor: Tensor) -> Tensor:
        calls.append(name)
        return tensor * 2

    result = map_tensors({"a": shared, "b": shared, "c": torch.ones(3)}, double)
    assert calls == ["a", "c"]
    assert result["a"] is result["b"]
    assert tied_names(result) == (("a", "b"),)


def test_check_shapes_lists_every_problem_at_once() -> None:
    shapes = {"a": (2,), "b": (3, 5), "c": (7,), "d": (1,)}
    params = {"a": torch.zeros(2), "b": torch.zeros(5, 3), "x": torch.zeros(1), "y": torch.zeros(1)}
    check_shapes({name: torch.zeros(shape) for name, shape in shapes.items()}, shapes)
    with pytest.raises(ParamsError) as caught:
        check_shapes(params, shapes, "params_b")
    for part in ("params_b", "2 missing: c, d", "2 unexpected: x, y", "1 misshapen: b (5, 3) instead of (3, 5)"):
        assert part in str(caught.value)
    assert "do this" in str(caught.value)


def test_check_finite_names_every_bad_tensor() -> None:
    params = {
        "fine": torch.ones(3),
        "nan": torch.tensor([1.0, float("nan")]),
        "inf": torch.tensor([float("-inf")]),
        "count": torch.tensor(3),
    }
    with pytest.raises(ParamsError, match="in 2 tensors: nan, inf"):
        check_finite(params, "model B")
    check_finite({"fine": params["fine"], "count": params["count"]})


def test_check_finite_accepts_large_values_whose_sum_overflows() -> None:
    check_finite({"half": torch.full((1000,), 60000.0, dtype=torch.float16), "float": torch.full((1000,), 3e38)})


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float64),
    ],
)
def test_compute_dtype(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert compute_dtype(torch.zeros(1, dtype=dtype)) == expected


def test_element_count() -> None:
    assert element_count({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, ["a", "b"]) == 22
