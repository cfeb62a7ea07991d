"""The core law: f(P theta) == f(theta) for every permutation P a spec allows; and what breaks it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from cases import LANDED, SUPPORTED, Case, case, params, spec_of
from helpers import difference, run
from models.plain import mlp
from specs import handwritten
from torch import nn

from onebasin.errors import ProofError, UsageError
from onebasin.layout import Axis, Leaf, Product
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec
from onebasin.symmetry.prove import prove

every_case = pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)


def rolled(spec: PermutationSpec, theta: Params, group: str, but: Iterable[str] = ()) -> Params:
    """Move every unit of `group` on by one place, in all tensors of `theta` that hold it, but not in those of `but`."""
    rows = Permutation.identity(spec).indices
    roll = Permutation(spec, {name: row.roll(1, -1) if name == group else row for name, row in rows.items()})
    moved = {name: roll.move(theta[name], spec.tensors[name]) for name, _ in spec.groups[group].axes if name not in but}
    first = {name: names[0] for names in spec.ties for name in names}
    return theta | {name: moved[first.get(name, name)] for name in moved}


def spread(names: Iterable[str], most: int = 24) -> list[str]:
    """Return `names`, or some from all along them where they are many."""
    every = list(names)
    return every[:: -(-len(every) // most)]


@every_case
def test_number_and_sizes_of_groups(case: Case) -> None:
    assert sorted(spec_of(case).sizes.values()) == sorted(case.sizes)


@every_case
def test_every_spec_from_discovery_carries_its_proof(case: Case) -> None:
    proof = spec_of(case).proof
    assert proof is not None
    assert proof < 1e-10


@every_case
@pytest.mark.skipif("nested" not in LANDED, reason="nested groups are not discovered yet")
def test_nesting(case: Case) -> None:
    spec = spec_of(case)
    assert sorted(spec.index_shape(name) for name in spec.parents if spec.parents[name]) == sorted(case.nested)


@every_case
def test_random_elements_keep_the_function(case: Case) -> None:
    model, inputs, spec, theta = case.model(), case.inputs(seed=1), spec_of(case), params(case, seed=2)
    generator = torch.Generator().manual_seed(3)
    expected = run(model, theta, inputs)
    for _ in range(3):
        assert difference(run(model, Permutation.random(spec, generator).apply(theta), inputs), expected) < 1e-10


@every_case
def test_every_group_alone_keeps_the_function(case: Case) -> None:
    model, inputs, spec, theta = case.model(), case.inputs(seed=1), spec_of(case), params(case, seed=2)
    expected = run(model, theta, inputs)
    changes = {name: difference(run(model, rolled(spec, theta, name), inputs), expected) for name in spread(spec.sizes)}
    assert {name: change for name, change in changes.items() if change > 1e-10} == {}


def one_side_only(spec: PermutationSpec, theta: Params, group: str) -> Params:
    """Move the units of `group` in all tensors but the largest weight that holds them."""
    tensors = dict.fromkeys(name for name, _ in spec.groups[group].axes if name not in spec.buffers)
    left = max(tensors, key=lambda name: (theta[name].ndim > 1, theta[name].numel()))
    tied = {left}.union(*(names for names in spec.ties if left in names))
    return rolled(spec, theta, group, but=tied)


@every_case
def test_one_side_only_changes_the_function(case: Case) -> None:
    """For every group, with one of a few random parameters: ReLU units may all be off with the first ones."""
    model, inputs, spec = case.model(), case.inputs(seed=1), spec_of(case)
    left = [name for name in spread(spec.sizes) if len({tensor for tensor, _ in spec.groups[name].axes}) > 1]
    assert left, "no group moves two tensors"
    for seed in range(2, 7):
        theta = params(case, seed)
        expected = run(model, theta, inputs)
        left = [
            name for name in left if difference(run(model, one_side_only(spec, theta, name), inputs), expected) < 1e-6
        ]
    assert left == []


@every_case
def test_the_proof_measures_the_same(case: Case) -> None:
    assert prove(case.model(), spec_of(case), case.inputs()) < 1e-10


@pytest.mark.parametrize("case", [case for case in SUPPORTED if not case.deep], ids=lambda case: case.name)
def test_the_proof_refuses_a_spec_that_moves_one_side_only(case: Case) -> None:
    """Freeze the largest tensor of the largest group: what is left of the group changes the function."""
    spec = spec_of(case)
    groups = {name: group for name, group in spec.groups.items() if len({tensor for tensor, _ in group.axes}) > 1}
    group = max(groups, key=lambda name: spec.sizes[name])
    left = max((name for name, _ in groups[group].axes), key=lambda name: (len(spec.shapes[name]) > 1, name))
    tied = {left}.union(*(names for names in spec.ties if left in names))
    still = {name: tuple(Leaf(size) for size in spec.shapes[name]) for name in tied}
    with pytest.raises(ProofError):
        prove(case.model(), replace(spec, tensors={**spec.tensors, **still}), case.inputs())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("width", [2, 3])
def test_the_proof_never_draws_the_identity(width: int, seed: int) -> None:
    """A wrong group of two units would otherwise pass for every second seed."""
    model = mlp((3, width, 2)).eval()
    wrong = handwritten(params_of(model), {"0.weight": ("a", None), "0.bias": ("a",)})
    with pytest.raises(ProofError, match="on their own: a"):
        prove(model, wrong, (torch.ones(2, 3),), seed=seed)


class RootOfDifference(nn.Module):
    """Finite for the pairs as they are, NaN where one of them is permuted alone."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = (nn.Parameter(torch.tensor([1.0, 100.0, 10000.0]) * scale) for scale in (1.0, 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.sqrt(self.large - self.small)).sum(1)


def test_the_proof_refuses_outputs_that_turn_into_nan() -> None:
    model = RootOfDifference()
    with pytest.raises(ProofError):
        prove(model, handwritten(params_of(model), {"large": ("a",)}), (torch.ones(2, 3),))


class Rows(nn.Module):
    """Gives only some rows of what its layers make of the inputs, and all rows too if `whole`."""

    def __init__(self, rows: int, whole: bool = False) -> None:
        super().__init__()
        self.layers, self.rows, self.whole = mlp((3, 5, 2)), rows, whole

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.layers(x)
        return (y[: self.rows], y) if self.whole else (y[: self.rows],)


HALF_A_GROUP = {"layers.0.weight": ("a", None), "layers.0.bias": ("a",)}


def test_nothing_is_proved_on_empty_inputs() -> None:
    model = Rows(2)
    for inputs in ((torch.ones(0, 3),), {"x": torch.ones(0, 3)}, torch.ones(2, 0)):
        with pytest.raises(UsageError, match=r"inputs without elements, of shape \((0, 3|2, 0)\)"):
            prove(model, handwritten(params_of(model), HALF_A_GROUP), inputs)


def test_nothing_is_proved_by_outputs_without_an_element() -> None:
    for model, outputs, why in ((Rows(0), None, r"of shape \(0, 2\)"), (Rows(2), (), "none are to be preserved")):
        for axes in (HALF_A_GROUP, {**HALF_A_GROUP, "layers.2.weight": (None, "a")}):
            with pytest.raises(ProofError, match=why):
                prove(model, handwritten(params_of(model), axes), (torch.ones(2, 3),), outputs=outputs)


def test_an_empty_output_beside_others_does_not_hinder_the_proof() -> None:
    model = Rows(0, whole=True)
    right = handwritten(params_of(model), {**HALF_A_GROUP, "layers.2.weight": (None, "a")})
    assert prove(model, right, (torch.ones(2, 3),)) < 1e-10
    with pytest.raises(ProofError, match="on their own: a"):
        prove(model, handwritten(params_of(model), HALF_A_GROUP), (torch.ones(2, 3),))


def test_discovery_leaves_the_model_as_it_was() -> None:
    from onebasin.symmetry.discover import permutation_spec

    vgg = case("vgg16_bn")
    model, before = vgg.model().train(), params(vgg)
    permutation_spec(model, vgg.inputs())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


GRID = Product((Leaf(3, "group"), Leaf(5, "inner")))
NESTED: dict[str, dict[str, tuple[str | Axis | None, ...]]] = {
    "group_norm": {
        "0.weight": (GRID, None, None, None), "0.bias": (GRID,), "1.weight": (GRID,), "1.bias": (GRID,),
        "3.weight": (None, GRID, None, None),
    },
    "grouped_conv": {
        "0.weight": (GRID, None, None, None), "0.bias": (GRID,),
        "2.weight": (Product((Leaf(3, "group"), Leaf(7, "outer"))), "inner", None, None),
        "2.bias": (Product((Leaf(3, "group"), Leaf(7, "outer"))),),
        "6.weight": (None, Product((Leaf(3, "group"), Leaf(7, "outer")))),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_handwritten_nested_groups_keep_the_function(name: str) -> None:
    """Each group of channels has an order of its own: the core law, and the proof, for a spec with parents."""
    toy = case(name)
    parents = {"inner": ("group",)} | ({"outer": ("group",)} if name == "grouped_conv" else {})
    spec = handwritten(params(toy), NESTED[name], parents)
    drawn, theta = Permutation.random(spec, torch.Generator().manual_seed(0)), params(toy)
    assert len({tuple(row) for row in drawn.indices["inner"].tolist()}) == 3, "the rows should differ"
    expected = run(toy.model(), theta, toy.inputs())
    assert difference(run(toy.model(), drawn.apply(theta), toy.inputs()), expected) < 1e-10
    assert prove(toy.model(), spec, toy.inputs()) < 1e-10


def test_a_group_that_crosses_its_parents_is_refused() -> None:
    """Group norm: any order of all 15 channels is one too many."""
    toy = case("group_norm")
    axes = {name: tuple("all" if axis is GRID else axis for axis in row) for name, row in NESTED["group_norm"].items()}
    with pytest.raises(ProofError):
        prove(toy.model(), handwritten(params(toy), axes), toy.inputs())
