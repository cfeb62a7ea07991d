"""What `permutation_spec` promises beyond the case table: outputs, buffers, ties, custom operators, meta, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import onebasin as ob
from onebasin.errors import DiscoveryError
from onebasin.symmetry.rules import RULES


class TwoOutputs(nn.Module):
    """Returns its hidden units beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(x))
        return {"logits": self.last(hidden), "hidden": hidden}


@pytest.mark.parametrize("outputs", [0, "logits", (0,), ("logits",)])
def test_only_the_chosen_outputs_are_preserved(outputs: ob.symmetry.export.Outputs) -> None:
    assert dict(ob.permutation_spec(TwoOutputs(), (torch.randn(2, 5),), outputs=outputs).sizes) == {"first": 7}


@pytest.mark.parametrize("outputs", [None, "hidden", ("logits", "hidden"), 1])
def test_an_output_is_frozen(outputs: ob.symmetry.export.Outputs) -> None:
    spec = ob.permutation_spec(TwoOutputs(), (torch.randn(2, 5),), outputs=outputs)
    assert not spec.sizes
    assert "model output" in spec.explain("first.weight")


def test_an_unknown_output_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(DiscoveryError, match=r"(?s)nope.*logits, hidden"):
        ob.permutation_spec(TwoOutputs(), (torch.randn(2, 5),), outputs="nope")


class SharedMemory(nn.Module):
    """Two parameters that are one memory seen in two ways, which no state dict can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 7, bias=False), nn.Linear(7, 5, bias=False)
        self.last.weight = nn.Parameter(self.first.weight.detach().t())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def test_parameters_that_share_memory_are_frozen_with_the_reason() -> None:
    spec = ob.permutation_spec(SharedMemory(), (torch.randn(2, 5),))
    assert not spec.sizes
    assert "shares memory with last.weight" in spec.explain("first.weight")


class Table(nn.Module):
    """Multiplies its units by a buffer that is no statistic of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 3)
        self.register_buffer("scale", torch.arange(7.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.scale)


def test_a_buffer_keeps_its_order_unless_it_is_listed() -> None:
    spec = ob.permutation_spec(Table(), (torch.randn(2, 5),))
    assert not spec.sizes
    assert "no statistic" in spec.explain("first.weight")
    moved = ob.permutation_spec(Table(), (torch.randn(2, 5),), buffers=("scale",))
    (group,) = moved.groups.values()
    assert set(group.axes) == {("first.weight", 0), ("first.bias", 0), ("last.weight", 1), ("scale", 0)}


@pytest.fixture
def custom() -> Iterator[str]:
    name = "onebasin_tests::shift"
    library = torch.library.Library("onebasin_tests", "DEF")
    library.define("shift(Tensor x) -> Tensor")
    library.impl("shift", lambda x: x + 1, "CompositeExplicitAutograd")
    library.impl("shift", torch.empty_like, "Meta")
    yield name
    RULES.pop(name, None)
    library._destroy()


class Custom(nn.Module):
    """Calls an operator that only its user knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.ops.onebasin_tests.shift(self.first(x)))


def test_an_operator_without_a_rule_freezes_and_is_named_with_its_line(custom: str) -> None:
    explained = ob.permutation_spec(Custom(), (torch.randn(2, 5),)).explain("first.weight")
    assert custom in explained
    assert "test_discover.py:" in explained


def test_a_users_rule_is_followed(custom: str) -> None:
    ob.rule(custom)(lambda call: call.tensor("x"))
    assert dict(ob.permutation_spec(Custom(), (torch.randn(2, 5),)).sizes) == {"first": 7}


def test_a_users_rule_that_claims_too_much_is_found_out(custom: str) -> None:
    torch.library.Library("onebasin_tests", "FRAGMENT")

    def flip(x: Tensor) -> Tensor:
        return x * torch.arange(1, 1 + x.shape[-1], dtype=x.dtype)

    torch.library.impl(custom, "CPU", flip)
    ob.rule(custom)(lambda call: call.tensor("x"))
    spec = ob.permutation_spec(Custom(), (torch.randn(2, 5),))
    assert not spec.sizes
    assert "failed the numerical proof" in spec.explain("first.weight")


def test_a_model_without_weights_is_described_but_not_proved() -> None:
    with torch.device("meta"):
        spec = ob.permutation_spec(TwoOutputs(), (torch.empty(2, 5),), outputs=0)
    assert spec.proof is None
    assert "not proved" in str(spec)
    assert spec == ob.permutation_spec(TwoOutputs(), (torch.randn(2, 5),), outputs=0)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(), nn.Linear(7, 3))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    ob.permutation_spec(model, (torch.randn(2, 5),))
    assert modes == [module.training for module in model.modules()]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


class Selected(nn.Module):
    """Keeps the rows that pass a test, however many those are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)[torch.nonzero(x[:, 0] > 0).squeeze(1)]


def test_sizes_that_depend_on_values_are_refused_with_the_line() -> None:
    with pytest.raises(DiscoveryError, match=r"test_discover\.py:\d+"):
        ob.permutation_spec(Selected(), (torch.randn(4, 5),))


class Experts(nn.Module):
    """A router that sends each token to two experts, looked up by number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(3, 7), nn.Linear(7, 5), nn.Linear(7, 2)
        self.up, self.down = nn.Parameter(torch.randn(5, 11, 7)), nn.Parameter(torch.randn(5, 7, 11))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        weight, chosen = self.router(x).softmax(-1).topk(2)
        hidden = torch.relu(torch.einsum("tkfd,td->tkf", self.up[chosen], x))
        return self.head(x + torch.einsum("tkdf,tkf,tk->td", self.down[chosen], hidden, weight))


def test_experts_move_and_each_has_an_order_of_its_own() -> None:
    spec = ob.permutation_spec(Experts(), (torch.randn(4, 3),))
    assert sorted(spec.index_shape(name) for name in spec.sizes) == [(5,), (5, 11), (7,)]


class LooksAtTheNumber(Experts):
    """Lets the number of the first expert into the result."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.router(torch.tanh(self.embed(x))).argmax(-1)[:, None]


def test_experts_whose_numbers_matter_are_frozen() -> None:
    spec = ob.permutation_spec(LooksAtTheNumber(), (torch.randn(4, 3),))
    assert 5 not in spec.sizes.values()
    assert "the number of a position is used" in spec.explain("router.weight")


class Shuffled(nn.Module):
    """Two halves, interleaved by a channel shuffle; the second goes through a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([torch.relu(self.left(x)), torch.tanh(self.right(x))], 1)
        return self.last(both.view(-1, 2, 5).transpose(1, 2).flatten(1))


def test_shuffled_halves_keep_orders_of_their_own() -> None:
    spec = ob.permutation_spec(Shuffled(), (torch.randn(4, 3),))
    assert dict(spec.sizes) == {"left": 5, "right": 5}
    assert str(spec.tensors["last.weight"][1]) == "(left | right)"


class Stepped(nn.Module):
    """Gates every even unit by the odd one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 14), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x[..., ::2] * torch.sigmoid(x[..., 1::2]))


def test_pairs_cut_by_a_step_move_together() -> None:
    spec = ob.permutation_spec(Stepped(), (torch.randn(4, 3),))
    assert list(spec.sizes.values()) == [7]
    assert str(spec.tensors["first.weight"][0]) == "(first | first)"


class Around(nn.Module):
    """Two layers around any function of the units between them."""

    def __init__(self, function: Callable[[Tensor], Tensor], out: int) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(5, 7), function, nn.Linear(out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


TURNS = torch.tensor([0, 0, 2, 3, 4, 5, 6])
USES = {
    "hstack": (lambda h: torch.hstack([h, h * h]), 14, [7]),
    "index_add": (lambda h: torch.zeros_like(h).index_add(1, TURNS, h), 7, []),
    "scatter": (lambda h: torch.zeros_like(h).scatter(1, TURNS.expand(4, 7), h), 7, []),
    "odd and even": (lambda h: torch.cat([h[:, ::2], h[:, 1::2].tanh()], 1), 7, [3, 4]),
    "part of the even": (lambda h: h[:, 2:6:2], 2, [2]),
    "number of the largest": (lambda h: h * h.sum(0).argmax(0).item(), 7, []),
}


@pytest.mark.parametrize("name", USES)
def test_uses_that_were_wrong_once(name: str) -> None:
    function, out, sizes = USES[name]
    spec = ob.permutation_spec(Around(function, out), (torch.randn(4, 5),))
    moved = sorted(
        size for group, size in spec.sizes.items() if any(t == "last.weight" for t, _ in spec.groups[group].axes)
    )
    assert moved == sizes
    assert "failed" not in spec.explain("first.weight")


@pytest.mark.parametrize("inputs", [None, 5, "x"])
def test_inputs_of_the_wrong_kind_are_refused(inputs: object) -> None:
    with pytest.raises(ob.OneBasinError, match="a tuple of inputs, or a dict"):
        ob.permutation_spec(nn.Linear(5, 3), inputs)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ob.OneBasinError, match=r"torch\.nn\.Module"):
        ob.permutation_spec(torch.relu, (torch.randn(2, 5),))


def test_a_model_that_returns_its_input_has_no_groups() -> None:
    assert not ob.permutation_spec(nn.Identity(), (torch.randn(2, 5),)).sizes


class Masked(nn.Module):
    """Multiplies its units by a constant, equal for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 3)
        self.register_buffer("mask", torch.ones(7), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.mask)


def test_a_constant_matters_when_its_value_is_unknown() -> None:
    assert dict(ob.permutation_spec(Masked(), (torch.randn(2, 5),)).sizes) == {"first": 7}
    with torch.device("meta"):
        spec = ob.permutation_spec(Masked(), (torch.empty(2, 5),))
    assert not spec.sizes
    assert "unknown value on the meta device" in spec.explain("first.weight")


class Cached(nn.Module):
    """Returns an object that is no tensor, as models with a key-value cache do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return self.first(x), SimpleNamespace(keys=x)


def test_an_object_in_the_output_is_refused_with_the_way_out() -> None:
    with pytest.raises(DiscoveryError, match=r"(?s)no tensor.*return only those"):
        ob.permutation_spec(Cached(), (torch.randn(2, 5),))


class ReadsTheChoice(nn.Module):
    """A weight meets, on one axis, which of its experts each token chose."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.router, self.experts = nn.Linear(4, 2), nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4, 8))
        self.mix, self.last = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(2, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).topk(2, -1).indices
        hidden = torch.einsum("ti,tkio->tko", x, self.experts[chosen]).reshape(8, 2, 2, 2, 4)
        hidden = hidden.permute(1, 3, 2, 4, 0) @ self.mix
        return torch.einsum("abcde,cdz->abcze", hidden, self.last)


def test_a_stored_tensor_holds_the_parents_of_its_groups() -> None:
    spec = ob.permutation_spec(ReadsTheChoice(), (torch.randn(16, 4),))
    for name, parents in spec.parents.items():
        for tensor, _ in spec.groups[name].axes:
            held = {group for group in spec.sizes for held_in, _ in spec.groups[group].axes if held_in == tensor}
            assert set(parents) <= held
