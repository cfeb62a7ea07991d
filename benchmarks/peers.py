"""Weight matching by the PyPI package `rebasin`, where it is installed, on the same modules.

It traces the modules it is given and writes into them, so it is given copies; tracing there and discovery here count.
It weighs the terms of its objective unequally and leaves out biases and norms; what either reaches is printed too.

    pip install rebasin; python -m benchmarks --only peers
"""

import copy
from collections.abc import Callable, Iterator
from importlib import import_module

import torch
from experiments.networks import mlp, resnet20
from torch import Tensor, nn

import onebasin as ob
from benchmarks.models import trained
from benchmarks.timing import Row, median_seconds

RUNS = 3


def run(large: bool = False) -> Iterator[Row | str]:
    try:
        peer = import_module("rebasin").PermutationCoordinateDescent
    except ImportError as error:
        yield f"peers: skipped, since {error}; `pip install rebasin`"
        return
    yield from measure("MLP 3x512", lambda: mlp(widths=(512,) * 3), 28, 20, peer)
    if large:
        yield from measure("ResNet20 2x", lambda: resnet20(2, channels=1), 8, 2, peer)


def measure(
    name: str, make: Callable[[], nn.Module], size: int, epochs: int, peer: Callable[..., object]
) -> Iterator[Row]:
    a, b = (module(make, trained(make, size, epochs, seed)) for seed in (0, 1))
    inputs, theirs, ours = torch.randn(2, 1, size, size), [], []

    def match_theirs() -> None:
        moved = copy.deepcopy(b)
        torch.manual_seed(0)
        peer(copy.deepcopy(a), moved, inputs).rebasin()  # type: ignore[attr-defined]
        theirs.append(ob.params_of(moved))

    def match_ours() -> None:
        spec = ob.permutation_spec(a, (inputs,))
        found = ob.align(spec, ob.params_of(a), ob.params_of(b), ob.WeightMatching(seed=0))
        ours.append(found.permutation.apply(ob.params_of(b)))

    seconds, base = (median_seconds(work, RUNS) for work in (match_ours, match_theirs))
    yield Row(f"{name}, trained: discovery and weight matching", seconds, "rebasin", seconds / base)
    reached, other = (inner(ob.params_of(a), found[-1], a) for found in (ours, theirs))
    yield Row(f"{name}, trained: inner product of the weights", reached, "rebasin's", reached / other, "")


def module(make: Callable[[], nn.Module], params: ob.Params) -> nn.Module:
    model = make()
    model.load_state_dict(params)
    return model.eval()


def inner(a: ob.Params, b: ob.Params, model: nn.Module) -> float:
    pairs: list[tuple[Tensor, Tensor]] = [(a[name].double(), b[name].double()) for name, _ in model.named_parameters()]
    return sum((x * y).sum().item() for x, y in pairs)
