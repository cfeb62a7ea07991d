"""Params: plain `dict[str, Tensor]`, parameters and buffers by qualified name, as a state dict has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from onebasin.errors import ParamsError, listing

Params = dict[str, Tensor]
TensorMap = Callable[[str, Tensor], Tensor]
# What to do about values that are not finite: in weights as they were given, and in computed ones.
DIVERGED = "take a checkpoint from before the training diverged, or repair these tensors"
TOO_NARROW = "convert the checkpoints to float32: such values do not fit into half precision"


def params_of(model: nn.Module) -> Params:
    """Return the parameters and persistent buffers of `model`, detached, sharing memory with it."""
    return {name: value.detach() for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def storage_key(tensor: Tensor) -> tuple[object, ...]:
    """Return equal keys for tensors that are the same memory seen the same way (tied tensors)."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return ("object", id(tensor))
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def tied_names(params: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """Return the sets of names that share one tensor, each in the order of `params`."""
    by_key: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in params.items():
        by_key.setdefault(storage_key(tensor), []).append(name)
    return tuple(tuple(names) for names in by_key.values() if len(names) > 1)


def map_tensors(params: Mapping[str, Tensor], function: TensorMap) -> Params:
    """Apply `function(name, tensor)` to every tensor once; tied names stay tied in the result."""
    done: dict[tuple[object, ...], Tensor] = {}
    result: Params = {}
    for name, tensor in params.items():
        key = storage_key(tensor)
        if key not in done:
            done[key] = function(name, tensor)
        result[name] = done[key]
    return result


def in_dtypes_of(own: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Params:
    """Return `params` in the floating-point types of `own`, name by name; nothing is copied that has its type."""
    return map_tensors(
        params, lambda name, tensor: tensor.to(own[name].dtype) if _both_real(own[name], tensor) else tensor
    )


def widened_to(own: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Params:
    """Return `params`, name by name `widened` to `own`."""
    return map_tensors(params, lambda name, tensor: widened(own[name], tensor) if name in own else tensor)


def widened(own: Tensor, tensor: Tensor) -> Tensor:
    """Return `tensor` in the floating-point type of `own` if that is the wider one; else as it is."""
    return tensor.to(torch.promote_types(own.dtype, tensor.dtype)) if _both_real(own, tensor) else tensor


def _both_real(one: Tensor, other: Tensor) -> bool:
    return one.is_floating_point() and other.is_floating_point()


def check_shapes(
    params: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], what: str = "params", owner: str = "the spec"
) -> None:
    """Raise `ParamsError` naming every missing, unexpected and misshapen tensor of `params` at once.

    Args:
        params: what is checked.
        shapes: tensor name -> shape, as `owner` has them.
        what: how the message calls `params`.
        owner: how the message calls whatever `shapes` belong to.
    """
    if not isinstance(params, Mapping):
        kind = type(params).__name__
        raise ParamsError(f"{what}: a {kind}", "params, name -> tensor", "pass ob.params_of(model), or a state dict")
    missing = [name for name in shapes if name not in params]
    unexpected = [name for name in params if name not in shapes]
    misshapen = [
        f"{name} {tuple(params[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in params and tuple(params[name].shape) != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    problems = "; ".join(f"{len(names)} {kind}: {listing(names)}" for kind, names in kinds.items() if names)
    if problems:
        raise ParamsError(
            f"{what} do not fit {owner}: {problems}",
            f"the {len(shapes)} tensors of {owner}, with their shapes",
            "pass checkpoints of one architecture, and a spec made for it",
        )


def check_finite(params: Mapping[str, Tensor], what: str = "params", do: str = DIVERGED) -> None:
    """Raise `ParamsError` naming every tensor of `params` that holds NaN or infinity, and saying what to `do`."""
    bad = [name for name, tensor in params.items() if tensor.is_floating_point() and not _all_finite(tensor)]
    if bad:
        raise ParamsError(
            f"{what} hold values that are not finite, in {len(bad)} tensors: {listing(bad)}",
            "finite numbers only",
            do,
        )


def check_measured(found: Mapping[str, Tensor], what: str, kind: str) -> None:
    """Raise `ParamsError` that `what` of those things of a `kind` is not finite whose statistics are not."""
    bad = [name for name, statistics in found.items() if not torch.isfinite(statistics).all()]
    if bad:
        raise ParamsError(
            f"{what}, of {len(bad)} {kind}: {listing(bad)}",
            "finite activations on every batch",
            "look for NaN or infinity in the inputs, or compute in float32 instead of half precision",
        )


def check_real(params: Mapping[str, Tensor], names: Iterable[str], what: str = "params") -> None:
    """Raise `ParamsError` naming every tensor called `names` that holds integers or truth values."""
    kinds = {name: params[name] for name in names}
    bad = [f"{name} {str(t.dtype)[6:]}" for name, t in kinds.items() if not (t.is_floating_point() or t.is_complex())]
    if bad:
        raise ParamsError(
            f"{what} hold integers where weights are matched, in {len(bad)} tensors: {listing(bad)}",
            "floating-point weights",
            "take the checkpoint from before quantisation, or convert it back to floating point",
        )


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which products of `tensor` are accumulated: its own, but float32 for bf16 and fp16."""
    inexact = tensor.is_floating_point() or tensor.is_complex()
    return torch.promote_types(tensor.dtype, torch.float32) if inexact else torch.float64


def element_count(params: Mapping[str, Tensor], names: Iterable[str]) -> int:
    """Count the elements of the tensors called `names`."""
    return sum(params[name].numel() for name in names)


def _all_finite(tensor: Tensor) -> bool:
    # A sum is finite when all terms are (one pass, no mask); only a sum that is not needs the exact look.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())
