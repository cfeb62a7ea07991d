"""What tests of every level share: random parameters, running a model on given params, comparing outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from onebasin.params import Params, map_tensors

Inputs = tuple[Any, ...] | dict[str, Any]


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter and every statistic of `model`: no zero bias, unit norm or small gate may hide an error.

    Matrices keep the scale of their input (variance 2 / fan-in), so that deep networks neither vanish nor explode;
    biases are positive on average, so that few ReLU units are off for every input.
    """
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in dict(model.named_parameters()).items():
            _draw(name, tensor, generator)
        for name in [name for name in state if name.rpartition(".")[2] in ("running_mean", "running_var")]:
            _draw(name, state[name], generator)


def _draw(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if tensor.ndim > 1 and tensor[0].numel() > 1:
        tensor.normal_(0.0, math.sqrt(2 / tensor[0].numel()), generator=generator)
    elif name.endswith(("weight", "running_var", "gamma", "original0", "weight_g")):
        tensor.uniform_(0.6, 1.4, generator=generator)
    else:
        tensor.normal_(0.3, 0.3, generator=generator)


def run(model: nn.Module, params: Mapping[str, Tensor], inputs: Inputs) -> list[Tensor]:
    """Return the output tensors of `model` with `params` in place of its own, flat, without writing to the module."""
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    with torch.no_grad():
        out = functional_call(model, dict(params), args, kwargs, tie_weights=False)
    return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]


def difference(outputs: list[Tensor], reference: list[Tensor]) -> float:
    """Return the largest |outputs - reference|, relative to the largest |reference| of the same output."""
    assert len(outputs) == len(reference) > 0
    pairs = list(zip(outputs, reference, strict=True))
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def clone(params: Mapping[str, Tensor]) -> Params:
    """Return independent copies; tied names stay tied."""
    return map_tensors(params, lambda _, tensor: tensor.clone())


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless both hold the same names and, bit by bit, the same tensors."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
