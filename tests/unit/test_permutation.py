from __future__ import annotations

import pytest
import torch
from helpers import clone
from specs import SPECS, flat_mlp, flat_sums_and_products, nested_heads, random_params

from onebasin.errors import ParamsError, SpecError
from onebasin.layout import Interleave, Leaf, Product, Sum
from onebasin.params import tied_names
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


def draw(spec: PermutationSpec, seed: int = 0) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def test_new_unit_i_is_old_unit_j() -> None:
    spec = PermutationSpec.from_axes({"w": ("P0", None)}, {"w": (3, 1)})
    p = Permutation(spec, {"P0": torch.tensor([2, 0, 1])})
    torch.testing.assert_close(
        p.apply({"w": torch.tensor([[10.0], [11.0], [12.0]])})["w"][:, 0], torch.tensor([12.0, 10, 11])
    )


def test_sums_move_part_by_part() -> None:
    spec = PermutationSpec.from_axes({"w": (Sum((Leaf(2), Leaf(3, "a"), Leaf(2, "b"))),)}, {"w": (7,)})
    p = Permutation(spec, {"a": torch.tensor([2, 0, 1]), "b": torch.tensor([1, 0])})
    assert p.apply({"w": torch.arange(7)})["w"].tolist() == [0, 1, 4, 2, 3, 6, 5]


def test_interleaved_parts_move_each_on_its_own_places() -> None:
    spec = PermutationSpec.from_axes({"w": (Interleave((Leaf(3, "a"), Leaf(3))),)}, {"w": (6,)})
    p = Permutation(spec, {"a": torch.tensor([2, 0, 1])})
    assert p.apply({"w": torch.arange(6)})["w"].tolist() == [4, 1, 0, 3, 2, 5]


def test_products_move_whole_runs() -> None:
    spec = PermutationSpec.from_axes({"w": (Product((Leaf(2, "a"), Leaf(3, "b"))),)}, {"w": (6,)})
    p = Permutation(spec, {"a": torch.tensor([1, 0]), "b": torch.tensor([0, 2, 1])})
    assert p.apply({"w": torch.arange(6)})["w"].tolist() == [3, 5, 4, 0, 2, 1]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_params_are_not_written_to_and_results_are_new(spec: PermutationSpec) -> None:
    params = random_params(spec)
    before = clone(params)
    for p in (draw(spec), Permutation.identity(spec)):
        moved = p.apply(params)
        for tensor in moved.values():
            tensor.zero_()
        assert all(torch.equal(params[name], before[name]) for name in params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64], ids=str)
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    spec = nested_heads()
    params = {name: (100 * tensor).to(dtype) for name, tensor in random_params(spec).items()}
    moved = draw(spec).apply(params)
    assert {tensor.dtype for tensor in moved.values()} == {dtype}
    assert all(
        torch.equal(moved[name].flatten().sort().values, params[name].flatten().sort().values) for name in params
    )


def test_ties_are_kept() -> None:
    spec = PermutationSpec({"P0": 7}, {"embed": (Leaf(13), Leaf(7, "P0")), "head": (Leaf(13), Leaf(7, "P0"))})
    shared = torch.randn(13, 7, generator=torch.Generator().manual_seed(0))
    assert tied_names(draw(spec).apply({"embed": shared, "head": shared})) == (("embed", "head"),)


def test_apply_checks_params_first() -> None:
    params = random_params(flat_mlp())
    del params["fc1.bias"]
    with pytest.raises(ParamsError, match=r"1 missing: fc1\.bias"):
        draw(flat_mlp()).apply(params)


def test_move_takes_any_tensor_laid_out_by_groups_of_the_spec() -> None:
    p = draw(nested_heads())
    axes = (Leaf(4), Product((Leaf(3, "head"), Leaf(5, "unit"))))
    activations = torch.randn(4, 15, generator=torch.Generator().manual_seed(0))
    weight = random_params(nested_heads()) | {"query": activations[:2].t().contiguous()}
    torch.testing.assert_close(p.move(activations, axes)[:2].t(), p.apply(weight)["query"], rtol=0, atol=0)


def test_random_is_reproducible() -> None:
    spec = nested_heads()
    assert draw(spec, seed=5) == draw(spec, seed=5)
    assert draw(spec, seed=5) != draw(spec, seed=6)


def test_permutations_of_different_specs_do_not_mix() -> None:
    p, q = draw(flat_mlp()), draw(nested_heads())
    assert p != q
    with pytest.raises(SpecError, match="two different specs"):
        p @ q


def test_unhashable() -> None:
    with pytest.raises(TypeError):
        hash(draw(flat_mlp()))


def test_every_problem_of_the_indices_is_listed() -> None:
    spec = flat_sums_and_products()
    with pytest.raises(SpecError) as caught:
        Permutation(
            spec, {"a": torch.tensor([0, 0, 1, 2, 3]), "b": torch.arange(6), "c": torch.arange(2), "d": torch.arange(2)}
        )
    assert all(
        part in str(caught.value) for part in ("a: repeated", "b: shape (6,) instead of (7,)", "d: no such group")
    )
    with pytest.raises(SpecError, match="b: no indices"):
        Permutation(spec, {"a": torch.arange(5)})


def test_a_nested_group_needs_a_row_per_parent_unit() -> None:
    spec = nested_heads()
    flat = {"head": torch.arange(3), "unit": torch.arange(5), "stream": torch.arange(7)}
    with pytest.raises(SpecError, match=r"unit: shape \(5,\) instead of \(3, 5\)"):
        Permutation(spec, flat)


def test_fixed_share() -> None:
    spec = PermutationSpec.from_axes({"w": ("a", "b")}, {"w": (5, 3)})
    p = Permutation(spec, {"a": torch.tensor([0, 1, 2, 4, 3]), "b": torch.tensor([1, 2, 0])})
    assert p.fixed_share() == pytest.approx({"a": 0.6, "b": 0.0})
    assert set(Permutation.identity(nested_heads()).fixed_share().values()) == {1.0}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_json_round_trip(spec: PermutationSpec) -> None:
    p = draw(spec)
    assert Permutation.from_json(p.to_json(), spec) == p
    assert Permutation.from_json(p.to_json(), PermutationSpec.from_json(spec.to_json())) == p


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "no permutation"),
        ("[]", "no permutation"),
        ("{}", "no permutation"),
        ('{"format": "onebasin-permutation", "indices": {"P0": "abc"}}', "no permutation"),
        ('{"format": "onebasin-permutation", "indices": {}}', "no indices"),
        ('{"format": "other", "indices": {"P0": [0], "P1": [0]}}', "format 'other'"),
    ],
)
def test_json_is_strict(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        Permutation.from_json(text, flat_mlp())
