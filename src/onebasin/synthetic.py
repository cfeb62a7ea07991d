"""Inputs without data: batches drawn at random, on which the units of two networks can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree

from onebasin.errors import UsageError
from onebasin.functional import eval_mode

# The recipe of the study: this many passes of a 3 x 3 mean filter, then so many standard deviations, cut off at 1.
PASSES, GAIN = 3, 3.0


def synthetic_batches(
    model: nn.Module, example_inputs: Any, *, samples: int = 1024, batch: int = 128, seed: int = 0
) -> list[Any]:
    """Draw batches shaped like the example inputs.

    Images (floating inputs of four or more axes): standard normal noise, smoothed three times by a 3 x 3 mean filter
    over the last two axes, scaled to a deviation of 3 and cut off at -1 and 1: blobs. Other floating inputs: standard
    normal. Integers that index an embedding: uniform tokens of its vocabulary. All other inputs (masks, positions):
    those of the examples, repeated.

    A network with batch norm must have its statistics recomputed on them: `Activations(..., batchnorm=True)`.

    Args:
        model: only asked for the sizes of its vocabularies, in one forward pass on the examples.
        example_inputs: a tensor, a tuple of inputs, or a dict of keyword inputs; their first axis is the batch.
        samples: how many to draw, at least; 1024 was enough in our study.
        batch: how many at a time.
        seed: of the draws.

    Raises:
        UsageError: inputs without a common batch axis, or not a positive number of samples.
    """
    if samples < 1 or batch < 1:
        raise UsageError(f"{samples} samples in batches of {batch}", "positive numbers", "ask for one or more")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    leaves, tree = _pytree.tree_flatten(dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs))
    _check_batch_axis(leaves)
    vocabularies = _vocabularies(model, inputs, leaves)
    generator = torch.Generator().manual_seed(seed)
    count = min(batch, samples)

    def draw() -> Any:
        drawn = [
            _draw(leaf, vocabularies.get(number), count, generator) if isinstance(leaf, Tensor) else leaf
            for number, leaf in enumerate(leaves)
        ]
        inputs = _pytree.tree_unflatten(drawn, tree)
        return inputs if isinstance(inputs, dict) else (inputs,)

    return [draw() for _ in range(-(-samples // count))]


def _draw(example: Tensor, vocabulary: int | None, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, *example.shape[1:])
    if vocabulary is not None:
        return torch.randint(0, vocabulary, shape, generator=generator).to(example)
    if not example.is_floating_point():
        return example.repeat(-(-count // len(example)), *[1] * (example.dim() - 1))[:count]
    noise = torch.randn(shape, generator=generator)
    return (_blobs(noise) if noise.dim() > 3 else noise).to(example)


def _blobs(noise: Tensor) -> Tensor:
    smooth = noise.flatten(0, -3)
    for _ in range(PASSES):
        smooth = functional.avg_pool2d(smooth, 3, stride=1, padding=1)
    return (GAIN * smooth / smooth.std()).clamp(-1, 1).reshape(noise.shape)


def _vocabularies(model: nn.Module, inputs: Any, leaves: list[Any]) -> dict[int, int]:
    """Return the number of entries (the smallest) that each integer input may index which reaches an embedding."""
    integers = {n: x for n, x in enumerate(leaves) if isinstance(x, Tensor) and not x.is_floating_point()}
    found: dict[int, int] = {}

    def look(layer: Any, args: tuple[Any, ...]) -> None:
        for number, tensor in integers.items():
            if args and torch.equal(args[0].flatten(), tensor.flatten()):
                entries = layer.weight.shape[0]
                found[number] = min(entries, found.get(number, entries))

    if integers:
        with ExitStack() as stack, eval_mode(model), torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                    stack.callback(layer.register_forward_pre_hook(look).remove)
            model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    return found


def _check_batch_axis(leaves: list[Any]) -> None:
    shapes = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) > 1 or not shapes[0][0]:
        raise UsageError(
            f"example inputs of shapes {shapes}",
            "tensors whose first axis is the batch",
            "make batches of your own for this model",
        )
