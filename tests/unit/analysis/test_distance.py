"""Distances count every trained tensor once, and nothing else."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from onebasin.analysis import distance
from onebasin.errors import ParamsError
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

SHAPES = {
    "fc1.weight": (7, 3), "fc1.bias": (7,), "norm.weight": (7,), "norm.running_mean": (7,),
    "norm.num_batches_tracked": (), "fc2.weight": (2, 7), "scale": (5,),
}  # fmt: skip
ROWS = {
    "fc1.weight": ("P0", None), "fc1.bias": ("P0",), "norm.weight": ("P0",), "norm.running_mean": ("P0",),
    "fc2.weight": (None, "P0"),
}  # fmt: skip
SPEC = PermutationSpec.from_axes(ROWS, SHAPES)


def params(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def flat(tensors: Params, *names: str) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in names])


TRAINED = ("fc1.weight", "fc1.bias", "norm.weight", "fc2.weight", "scale")


def test_distance_is_that_of_the_trained_vectors() -> None:
    a, b, moved = params(0), params(1), params(2)
    found = distance(SPEC, a, b, moved)
    assert found.before == pytest.approx((flat(a, *TRAINED) - flat(b, *TRAINED)).norm().item(), rel=1e-13)
    assert found.after == pytest.approx((flat(a, *TRAINED) - flat(moved, *TRAINED)).norm().item(), rel=1e-13)
    assert found.reduction == pytest.approx(100 * (1 - found.after / found.before))


def test_layers_add_up_in_squares() -> None:
    a, b, moved = params(0), params(1), params(2)
    found = distance(SPEC, a, b, moved)
    assert list(found.layers) == ["fc1", "norm", "fc2", "scale"]
    layer = ("fc1.weight", "fc1.bias")
    assert found.layers["fc1"].before == pytest.approx((flat(a, *layer) - flat(b, *layer)).norm().item())
    for side in ("before", "after"):
        squares = [getattr(layer, side) ** 2 for layer in found.layers.values()]
        assert math.sqrt(sum(squares)) == pytest.approx(getattr(found, side))


def test_undoing_a_permutation_removes_all_of_it_and_making_one_none() -> None:
    a = params(0)
    permutation = Permutation.random(SPEC, torch.Generator().manual_seed(3))
    b = permutation.apply(a)
    undone = distance(SPEC, a, b, permutation.inverse().apply(b))
    assert (undone.after, undone.reduction) == (0, 100)
    same = distance(SPEC, a, b, b)
    assert same.before == same.after > 0
    assert same.reduction == 0
    assert undone.layers["scale"].reduction == 0  # nothing to reduce


def test_permuting_both_alike_changes_nothing() -> None:
    a, b = params(0), params(1)
    move = Permutation.random(SPEC, torch.Generator().manual_seed(3)).apply
    found = distance(SPEC, move(a), move(b), b)
    assert found.before == pytest.approx(distance(SPEC, a, b, b).before, rel=1e-13)
    assert found.after != pytest.approx(found.before, rel=1e-3)


def test_tied_tensors_count_once() -> None:
    rows = {"embed": ("P0", None), "head": ("P0", None)}
    shapes = dict.fromkeys(rows, (7, 3))
    free = PermutationSpec.from_axes(rows, shapes)
    tied = PermutationSpec(free.sizes, free.tensors, ties=(("embed", "head"),))
    a, b = ({name: torch.full((7, 3), value) for name in rows} for value in (0.0, 1.0))
    assert distance(tied, a, b, b).before == pytest.approx(math.sqrt(21))
    assert distance(free, a, b, b).before == pytest.approx(math.sqrt(42))


def test_half_precision_is_summed_in_float64() -> None:
    a, b = ({name: tensor.bfloat16() for name, tensor in params(seed).items()} for seed in (0, 1))
    exact = distance(SPEC, *({name: t.double() for name, t in side.items()} for side in (a, b, b)))
    assert distance(SPEC, a, b, b).before == exact.before


def test_it_shows_itself() -> None:
    found = distance(SPEC, params(0), params(1), params(2))
    data = json.loads(json.dumps(found.to_json()))
    assert data["reduction_percent"] == found.reduction
    assert data["layers"]["fc2"]["after"] == found.layers["fc2"].after
    assert [line.split()[0] for line in str(found).splitlines()] == ["L2", "fc1", "norm", "fc2", "scale", "all"]
    assert f"{found.reduction:.2f} %" in str(found).splitlines()[-1]


def test_params_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ParamsError, match="the moved model do not fit the spec: 1 missing: scale"):
        distance(SPEC, params(0), params(1), {name: t for name, t in params(2).items() if name != "scale"})
