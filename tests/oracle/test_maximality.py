"""The discovered group is the largest one: brute force over every permutation of every axis of every tensor.

For a tiny network every combination of axis permutations is tried: one permutation for each axis of each tensor, all
independent of each other (and where nesting may hide there, one of the second axis for each row). Those that keep the
function (float64, random parameters, several inputs) form a group, and its order must be that of the discovered one.
Activations are smooth: a ReLU unit that is off for every input drawn would look like a symmetry.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import LANDED
from helpers import randomise
from torch import Tensor, nn
from torch.func import functional_call, vmap

from onebasin.params import params_of, tied_names
from onebasin.symmetry.discover import permutation_spec

CHUNK = 2048


class Net(nn.Module):
    """Weights by name and shape, and a function of them."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@dataclass(frozen=True)
class Tiny:
    """A tiny network, the shape of its input (or the tokens themselves), the order of its group counted by hand.

    `by_row` names a tensor whose rows are permuted each on its own.
    """

    name: str
    make: Callable[[], nn.Module]
    order: int
    inputs: tuple[int, ...] = (5, 2)
    needs: str = ""
    by_row: str = ""


def residual(w: nn.Module, x: Tensor) -> Tensor:
    x = x @ w.enter.T
    return (x + torch.tanh(x @ w.down.T) @ w.up.T) @ w.head.T


def tied_square(w: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(torch.tanh(x @ w.enter.T) @ w.again.T) @ w.again.T @ w.head.T


def joined(w: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([torch.tanh(x @ w.left.T), (x @ w.right.T) ** 2], dim=1) @ w.head.T


def gated(w: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.glu(x @ w.enter.T, dim=1) @ w.head.T


def ordered(w: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(x @ w.enter.T).cumsum(1) @ w.head.T


def attention(w: nn.Module, x: Tensor) -> Tensor:
    """2 heads of 2 units; queries are also keys."""
    q, v = ((x @ weight.T).unflatten(-1, (2, 2)).transpose(1, 2) for weight in (w.query, w.value))
    mixed = torch.softmax(q @ q.transpose(-1, -2), dim=-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ w.out.T


def every_second(w: nn.Module, x: Tensor) -> Tensor:
    x = torch.tanh(x @ w.enter.T)
    return x[:, ::2] @ w.even.T + (x[:, 1::2] ** 2) @ w.odd.T


def tied_tokens() -> nn.Module:
    embed, head = nn.Embedding(3, 3), nn.Linear(3, 3, bias=False)
    head.weight = embed.weight
    return nn.Sequential(embed, nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3, bias=False), head)


def linear(wide_in: int, wide_out: int, bias: bool = False) -> nn.Module:
    return nn.Linear(wide_in, wide_out, bias)


def conv(wide_in: int, wide_out: int, kernel: int = 1, groups: int = 1, bias: bool = False) -> nn.Module:
    return nn.Conv1d(wide_in, wide_out, kernel, groups=groups, bias=bias)


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


def net(forward: Callable[[nn.Module, Tensor], Tensor], **shapes: tuple[int, ...]) -> Callable[[], nn.Module]:
    return lambda: Net(forward, **shapes)


grouped = chain(conv(1, 4), nn.Tanh(), conv(4, 2, groups=2), nn.Tanh(), conv(2, 1))
depthwise = chain(conv(1, 3, bias=True), nn.Tanh(), conv(3, 3, 2, groups=3, bias=True), conv(3, 2))
flattened = chain(conv(1, 3, 2, bias=True), nn.Tanh(), nn.Flatten(), linear(6, 2))
group_norm = chain(conv(1, 4), nn.GroupNorm(2, 4, affine=False), nn.Tanh(), conv(4, 2, bias=True))

TINY = [
    Tiny("mlp", chain(linear(2, 3, True), nn.Tanh(), linear(3, 2, True)), 6),
    Tiny("mlp of 4", chain(linear(2, 4, True), nn.GELU(), linear(4, 2)), 24),
    Tiny("deep mlp", chain(linear(2, 3, True), nn.Tanh(), linear(3, 2), nn.Tanh(), linear(2, 2)), 12),
    Tiny("residual", net(residual, enter=(3, 2), down=(2, 3), up=(3, 2), head=(2, 3)), 12),
    Tiny("tied square", net(tied_square, enter=(3, 2), again=(3, 3), head=(2, 3)), 6),
    Tiny("concatenation", net(joined, left=(2, 2), right=(2, 2), head=(2, 4)), 4),
    Tiny("gated", net(gated, enter=(4, 2), head=(2, 2)), 2),
    Tiny("order matters", net(ordered, enter=(3, 2), head=(2, 3)), 1),
    Tiny("batch norm", chain(linear(1, 3), nn.BatchNorm1d(3), nn.Tanh(), linear(3, 1)), 6, (5, 1)),
    Tiny("layer norm", chain(linear(2, 3, True), nn.LayerNorm(3), linear(3, 2)), 6),
    Tiny("flattened map", flattened, 6, (5, 1, 3)),
    Tiny("depthwise", depthwise, 6, (5, 1, 3)),
    Tiny("tied tokens", tied_tokens, 12, ()),
    Tiny("grouped conv", grouped, 8, (5, 1, 2), "nested", by_row="2.weight"),
    Tiny("group norm", group_norm, 8, (5, 1, 3), "nested"),
    Tiny("attention", net(attention, query=(4, 2), value=(4, 2), out=(2, 4)), 32, (3, 3, 2), "nested"),
    Tiny("stepped slices", net(every_second, enter=(4, 2), even=(2, 2), odd=(2, 2)), 4, needs="stepped"),
]


def build(tiny: Tiny) -> tuple[nn.Module, Tensor]:
    model = tiny.make().eval()
    randomise(model, seed=1)
    drawn = torch.randn(tiny.inputs, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return model.double(), drawn if tiny.inputs else torch.tensor([[0, 1], [2, 1]])


def variants(tensor: Tensor) -> Tensor:
    """Stack `tensor` under every combination of permutations of its axes."""
    orders = itertools.product(*(itertools.permutations(range(size)) for size in tensor.shape))
    return torch.stack([tensor[torch.meshgrid(*map(torch.tensor, row), indexing="ij")] for row in orders])


def row_variants(tensor: Tensor) -> Tensor:
    """Stack `tensor` under every order of its rows and every order within each row."""
    rows, columns = (list(itertools.permutations(range(size))) for size in tensor.shape[:2])
    inner = [torch.stack(row) for row in itertools.product(*([r[list(c)] for c in columns] for r in tensor))]
    return torch.stack([tensor[list(order)] for order in rows for tensor in inner])


def brute_force_order(model: nn.Module, x: Tensor, by_row: str) -> int:
    """Count the combinations of axis permutations that keep the function of `model` on `x`."""
    params = params_of(model)
    repeated = {name for names in tied_names(params) for name in names[1:]}
    choices = {
        name: (row_variants if name == by_row else variants)(tensor)
        for name, tensor in params.items()
        if tensor.numel() > 1 and name not in repeated
    }
    expected = model(x).detach()
    total, kept = math.prod(map(len, choices.values())), 0
    for start in range(0, total, CHUNK):
        rest, rows = torch.arange(start, min(start + CHUNK, total)), {}
        for name, tensors in choices.items():
            rows[name], rest = tensors[rest % len(tensors)], rest // len(tensors)
        with torch.no_grad():
            found = vmap(lambda row: functional_call(model, row, x))(rows)
        kept += int(((found - expected).abs().flatten(1).amax(1) < 1e-10 * expected.abs().max()).sum())
    return kept


@pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)
def test_the_group_is_the_largest(tiny: Tiny) -> None:
    model, x = build(tiny)
    order = brute_force_order(model, x, tiny.by_row)
    assert order == tiny.order
    found = round(10 ** permutation_spec(model, (x,)).log10_symmetries())
    if tiny.needs in LANDED:
        assert found == order
    else:
        assert order % found == 0, "a subgroup's order divides that of the group"
