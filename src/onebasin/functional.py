"""Calling a module with other weights, leaving the module as it was; and what a batch is.

A batch is a tensor of inputs, a tuple or list `(inputs, labels)`, or a dict of keyword inputs (and `"labels"`, which is
no input). `inputs` is a tensor, a tuple of positional inputs, or a dict of keyword inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from onebasin.errors import UsageError, listing
from onebasin.params import check_shapes, compute_dtype, params_of, widened

LABELS = "labels"
MAPS = 4  # dimensions of a batch of images, and of a weight of a 2-d convolution
Predict = Callable[..., Any]
# loss(predict, batch) -> scalar; predict(inputs) behaves as the network between two models does.
BatchLoss = Callable[[Predict, Any], Tensor]


@contextmanager
def eval_mode(model: nn.Module, training: Collection[nn.Module] = ()) -> Iterator[None]:
    """Put `model` into eval mode, but the modules in `training` into train mode; restore every flag afterwards."""
    # The flags are set one by one: a model may override `train`, and its modules may be in different modes.
    modes = {module: module.training for module in model.modules()}
    chosen = set(training)
    try:
        for module in modes:
            module.training = module in chosen
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def with_params(model: nn.Module, params: Mapping[str, Tensor]) -> Predict:
    """Return a function that behaves as `model` with the weights `params`.

    Nothing is copied but the buffers, and what is of a narrower floating-point type than the model's own tensor: a
    float32 model computes in float32, also with a checkpoint in half precision.

    The forward pass may write into buffers (batch norm in train mode does): what it writes stays with the returned
    function and reaches neither `params` nor `model`.

    Raises:
        ParamsError: `params` are not those of `model`.
    """
    check_shapes(params, {name: tuple(value.shape) for name, value in params_of(model).items()}, owner="the model")
    # Every name of a tied tensor gets the tensor of the first: `params` may hold copies, which could come apart.
    parameters: list[tuple[str, Tensor]] = list(model.named_parameters(remove_duplicate=False))
    buffers = list(model.named_buffers(remove_duplicate=False))
    first: dict[Tensor, Tensor] = {}
    for name, own in parameters:
        first.setdefault(own, widened(own, params[name]))
    for name, own in buffers:
        first.setdefault(own, widened(own, params.get(name, own)).clone())
    state = {name: first[own] for name, own in parameters + buffers}
    # Ties are settled here, once: functional_call would look for them again at each call.
    return lambda *args, **kwargs: functional_call(model, state, args, kwargs, tie_weights=False)


def channels_last(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `params` with the weights of 2-d convolutions laid out channels last: there convolutions are faster.

    What comes out of a convolution is laid out like its weight then. A model that calls `view` on it raises
    `RuntimeError`.
    """
    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.dim() == MAPS else value
        for name, value in params.items()
    }


def inputs_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword inputs in `batch`.

    Raises:
        UsageError: `batch` is not of the three kinds that this module names, or no input in it has an element.
    """
    args, kwargs = _split(batch)
    if empty := empty_shapes((args, kwargs)):
        raise UsageError(f"a batch without samples: inputs of shape {empty}", "at least one sample", "leave it out")
    return args, kwargs


def _split(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) in (1, 2) else batch
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), {name: value for name, value in inputs.items() if name != LABELS}
    if isinstance(inputs, tuple | list) and inputs is not batch:
        return tuple(inputs), {}
    raise _no_batch(batch, "a tensor, (inputs, labels), or a dict of keyword inputs")


def empty_shapes(inputs: Any) -> str:
    """Return the shapes of the tensors in `inputs` if none has an element; else "": some, as caches, may be empty."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return "" if any(tensor.numel() for tensor in tensors) else listing(str(tuple(one.shape)) for one in tensors)


def labels_of(batch: Any) -> Tensor:
    """Return the labels in `batch`.

    Raises:
        UsageError: there are none.
    """
    found = batch.get(LABELS) if isinstance(batch, Mapping) else None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        found = batch[1]
    if not isinstance(found, Tensor):
        raise _no_batch(batch, f'(inputs, labels), or a dict with the key "{LABELS}"; labels are a tensor')
    return found


def logits_of(predict: Predict, batch: Any) -> Tensor:
    """Return what `predict` makes of the inputs of a batch, or the `logits` in it; half precision is widened.

    Raises:
        UsageError: there are no logits.
    """
    args, kwargs = inputs_of(batch)
    output = predict(*args, **kwargs)
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        holds = f" with {listing(map(str, output), 5)}" if isinstance(output, Mapping) else ""
        do = "pass a loss of your own, which makes one number of what `predict` returns"
        raise UsageError(f"a model that returns a {type(output).__name__}{holds}", 'logits, or "logits" in it', do)
    return logits.to(compute_dtype(logits))


def loss_of(loss: BatchLoss, predict: Predict, batch: Any) -> Tensor:
    """Return `loss(predict, batch)`; where gradients are recorded it has one.

    Raises:
        UsageError: it is not one number, or has no gradient.
    """
    found = loss(predict, batch)
    if not isinstance(found, Tensor) or found.numel() != 1 or (torch.is_grad_enabled() and not found.requires_grad):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        do = "return a tensor that torch computed from what `predict` returned, such as a mean over the batch"
        raise UsageError(f"a loss of {got} that cannot be differentiated", "one number with a gradient", do)
    return found


def check_repeatable(batches: Iterable[Any]) -> None:
    """Raise `UsageError` if `batches` can be read only once (a generator), or are a single tensor."""
    if isinstance(batches, Tensor):
        do = "pass inputs.split(128), or [inputs] for a single batch"
        raise UsageError(f"a tensor of shape {tuple(batches.shape)} as batches", "a list of batches", do)
    if iter(batches) is batches:
        raise UsageError(
            f"batches are a {type(batches).__name__}, which is empty after one pass",
            "batches that can be read again for every point of the path",
            "pass a list or a DataLoader",
        )


def _no_batch(batch: Any, expected: str) -> UsageError:
    kinds = [type(part).__name__ for part in batch[:4]] if isinstance(batch, tuple | list) else []
    holds = f" of {', '.join(kinds)}{', ...' * (len(batch) > 4)}" if kinds else ""
    do = "wrap the loader so that it yields these, as tensors (torch.as_tensor)"
    return UsageError(f"a batch is a {type(batch).__name__}{holds}", expected, do)
