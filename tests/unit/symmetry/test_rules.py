"""Rules of single operators: the groups of a tiny model around each, by hand, tried without the step that drops any.

Every model is `nn.Linear(3, n)` before the operator and a linear layer after it; sizes are distinct primes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo.setups import discover

from onebasin.spec import PermutationSpec
from onebasin.symmetry.export import export
from onebasin.symmetry.prove import TOLERANCE, Trial

Body = Callable[["Around", Tensor], Tensor]


class Around(nn.Module):
    """An operator between two linear layers, with a parameter of its own."""

    def __init__(self, body: Body, width: int, after: int, shape: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(3, width), nn.Linear(after, 2)
        self.weight = nn.Parameter(torch.randn(shape))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.body(self, self.before(x)))


def found(model: nn.Module, *shape: int) -> PermutationSpec:
    """Discover the groups of `model` and check that they leave its outputs alone."""
    inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
    exported = export(model, inputs)
    spec, _ = discover(model, exported)
    assert not spec.sizes or Trial(exported, spec, 0).difference(spec.sizes) < TOLERANCE
    return spec


CASES: dict[str, tuple[Body, int, int, tuple[int, ...], list[int]]] = {
    # name: (body, width before, width after, shape of the parameter, sizes of the groups)
    "inner contracts the last axes": (lambda m, x: torch.inner(x, m.weight), 5, 7, (7, 5), [7, 5]),
    "inner with a number scales": (lambda m, x: torch.inner(x, m.weight), 5, 5, (), [5]),
    "attention without heads": (lambda m, x: F.scaled_dot_product_attention(x, x, x), 5, 5, (1,), [5]),
    "differences of neighbours": (lambda m, x: x.diff(dim=1), 5, 4, (1,), []),
    "a cumulative sum": (lambda m, x: x.cumsum(1), 5, 5, (1,), []),
    "a cumulative sum over others": (lambda m, x: x.cumsum(0), 5, 5, (1,), [5]),
    "a cumulative sum over heads": (
        lambda m, x: F.prelu(x.view(4, 3, 5), m.weight).cumsum(1).flatten(1), 15, 15, (3,), [5],
    ),
    "a flip of heads": (lambda m, x: F.prelu(x.view(4, 3, 5), m.weight).flip(1).flatten(1), 15, 15, (3,), [5]),
    "fixed heads": (
        lambda m, x: (x.view(4, 3, 5) * torch.arange(1.0, 4.0).view(3, 1)).flatten(1), 15, 15, (1,), [5, 5, 5],
    ),
    "fixed heads, looked up in another order": (
        lambda m, x: (x.view(4, 3, 5) + x.view(4, 3, 5)[:, torch.tensor([1, 2, 0])]).flatten(1), 15, 15, (1,), [5],
    ),
    "fixed heads, written in another order": (
        lambda m, x: torch.zeros(4, 3, 5).index_copy(1, torch.tensor([1, 2, 0]), x.view(4, 3, 5)).flatten(1),
        15, 15, (1,), [5],
    ),
    "tensordot": (lambda m, x: torch.tensordot(x, m.weight, ([1], [0])), 5, 7, (5, 7), [7, 5]),
    "tensordot over two axes": (
        lambda m, x: torch.tensordot(x.unsqueeze(1) * x.unsqueeze(2), m.weight, ([1, 2], [1, 0])),
        5, 7, (5, 5, 7), [7, 5],
    ),
    "bilinear": (lambda m, x: F.bilinear(x, torch.tanh(x), m.weight), 5, 7, (7, 5, 5), [7, 5]),
    "cdist": (lambda m, x: torch.cdist(x, m.weight), 5, 7, (7, 5), [7, 5]),
    "cosine similarity": (
        lambda m, x: F.cosine_similarity(x.unsqueeze(1), m.weight, dim=2), 5, 7, (7, 5), [7, 5]
    ),
    "median": (lambda m, x: x.median(1, keepdim=True).values * m.weight, 5, 7, (7,), [7, 5]),
    "median's place": (lambda m, x: x.median(1, keepdim=True).indices * m.weight, 5, 7, (7,), [7]),
    "a type taken from elsewhere": (
        lambda m, x: x.type_as(torch.arange(20.0).view(4, 5)) @ m.weight, 5, 7, (5, 7), [7, 5],
    ),
    "an alias": (lambda m, x: torch.multiply(x, m.weight), 5, 5, (5,), [5]),
    "meshgrid": (
        lambda m, x: torch.meshgrid(m.weight, torch.arange(4.0), indexing="xy")[0] * x.unsqueeze(2)[:, :4],
        5, 7, (7,), [7],
    ),
    "pooled to one place": (
        lambda m, x: F.adaptive_max_pool2d(x[:, :, None, None] * m.weight, 1).flatten(1), 5, 5, (5, 3, 7), [7, 5, 3]
    ),
    "the place of a maximum": (
        lambda m, x: F.adaptive_max_pool2d(x[:, :, None, None] * m.weight, 1, return_indices=True)[1].flatten(1) * 0.1,
        5, 5, (5, 3, 7), [5],
    ),
    "written into an empty tensor": (
        lambda m, x: torch.empty_like(x).copy_(x) * m.weight, 5, 5, (5,), [5],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_around_an_operator(name: str) -> None:
    body, width, after, shape, sizes = CASES[name]
    spec = found(Around(body, width, after, shape), 4, 3)
    assert sorted(spec.sizes.values(), reverse=True) == sizes


class Cell(nn.Module):
    """A recurrent layer whose steps are made by a linear layer, whose start is learnt, or both."""

    def __init__(self, kind: str, start: bool = False, **settings: object) -> None:
        super().__init__()
        self.before = nn.Linear(3, 7)
        self.cell = getattr(nn, kind)(1 if not start else 3, 5, batch_first=True, **settings)
        self.state = nn.Parameter(torch.randn(2, 4, 5)) if start else None
        self.after = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.state is not None:
            return self.after(self.cell(x, self.state)[1])
        return self.after(self.cell(self.before(x).unsqueeze(-1))[1])


def test_the_steps_of_a_recurrent_layer_keep_their_order() -> None:
    assert found(Cell("GRU"), 4, 3).sizes == {"cell": 5}, "the 7 units before are its steps"


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_learnt_starts_of_two_layers_stay_apart(kind: str) -> None:
    """Axis 0 of the start counts layers, axis 1 examples (of the input): only the units may move."""
    spec = found(Cell(kind, start=True, num_layers=2), 4, 6, 3)
    assert sorted(spec.sizes.values()) == [5], "the outputs of layer 1 go into layer 2 and out through one linear layer"
    assert spec.tensors["state"][0].size == 2


class Steps(nn.Module):
    """Two steps of a cell; the second begins with a learnt state too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.after, self.start = getattr(nn, kind)(3, 5), nn.Linear(5, 2), nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x)
        if isinstance(state, tuple):
            return self.after(self.cell(x, (state[0] + self.start, state[1]))[0])
        return self.after(self.cell(x, state + self.start))


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_a_cell_has_one_group(kind: str) -> None:
    spec = found(Steps(kind), 4, 3)
    assert list(spec.sizes.values()) == [5]
    assert [axis.group for axis in spec.tensors["start"]] == [None, *spec.sizes], "examples keep their order"


class ParentElsewhere(nn.Module):
    """The 5 columns of a weight meet 7 units on its rows, and 7 others, tied to them, behind the contraction."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.mix, self.after = nn.Linear(3, 7), nn.Parameter(torch.randn(7, 5)), nn.Linear(35, 2)

    def forward(self, x: Tensor) -> Tensor:
        square = self.before(x).unsqueeze(-1) * self.before(x).unsqueeze(-2)
        return self.after(torch.einsum("bcd,cz->bzd", square, self.mix).flatten(1))


def test_a_parent_must_stand_on_one_label_before_and_after() -> None:
    spec = found(ParentElsewhere(), 4, 3)
    assert sorted(spec.sizes.values()) == [5, 7]
    assert spec.parents == {}
