"""Find the state dict inside what training scripts save: wrapped in a dict, every name with a prefix."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from onebasin.errors import CheckpointError, listing
from onebasin.params import Params

# The usual names of the weights in a training checkpoint, the likeliest first; what is not listed comes after.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights", "ema")
# What DataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")
LIGHTNING_VERSION = "pytorch-lightning_version"
# The counter that torch.optim.swa_utils.AveragedModel keeps beside the weights.
AVERAGE_COUNT = "n_averaged"
DEEPEST = 3


@dataclass(frozen=True)
class Unwrapped:
    """The tensors found, and one line for everything that was unwrapped, stripped or left out."""

    params: Params
    notes: tuple[str, ...]


def unwrap(data: Any, path: Path, key: str | None = None, like: Collection[str] = ()) -> Unwrapped:
    """Return the state dict in `data`, with the names the bare model has.

    Args:
        data: what the file holds.
        path: where it comes from, for messages.
        key: which entry holds the weights (dotted when nested); default: the first of `WRAPPERS`, or the only one.
        like: names the model has; no prefix is stripped from names that are among them.

    Raises:
        CheckpointError: no state dict in `data`, several that none of `WRAPPERS` decides between, or none at `key`.
    """
    found = dict(_state_dicts(data, ""))
    chosen = _choose(found, path, key)
    notes = [f"weights taken from the entry {chosen!r}"] if chosen else []
    others = [name for name in found if name != chosen]
    if others:
        notes.append(f"other weights in the file, not used: {listing(others)}")
    params = {str(name): value for name, value in found[chosen].items() if isinstance(value, Tensor)}
    left_out = [str(name) for name, value in found[chosen].items() if not isinstance(value, Tensor)]
    if left_out and not others:
        notes.append(f"left out, not tensors: {listing(left_out)}")
    lightning = isinstance(data, Mapping) and LIGHTNING_VERSION in data
    return _strip(params, notes, (*PREFIXES, "model.") if lightning else PREFIXES, like)


def _state_dicts(data: Any, at: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield (dotted key, mapping) for the innermost mappings in `data` that hold tensors by name.

    Innermost, because a training checkpoint may have a tensor such as `best_accuracy` beside its `state_dict`.
    """
    if not isinstance(data, Mapping) or at.count(".") >= DEEPEST:
        return
    inside = [
        found
        for name, value in data.items()
        if isinstance(name, str) and not name.startswith("optim")
        for found in _state_dicts(value, f"{at}.{name}" if at else name)
    ]
    yield from inside
    if not inside and any(isinstance(name, str) and isinstance(value, Tensor) for name, value in data.items()):
        yield at, data


def _choose(found: Mapping[str, Any], path: Path, key: str | None) -> str:
    if key is not None and key in found:
        return key
    if key is None and len(found) == 1:
        return next(iter(found))
    if key is None:
        for name in WRAPPERS:
            for candidate in found:
                if name == candidate.split(".")[0]:
                    return candidate
    have = f"weights at {listing(found)}" if found else "no tensors by name"
    asked = "" if key is None else f", none at {key!r}"
    raise CheckpointError(
        f"{path} holds {have}{asked}",
        f"a state dict, bare or in one entry such as {listing(WRAPPERS[:3])}",
        f"choose one: load(path, key={next(iter(found))!r})"
        if found
        else "save model.state_dict() from the training code",
    )


def _strip(params: Params, notes: list[str], prefixes: tuple[str, ...], like: Collection[str]) -> Unwrapped:
    """Take `prefixes` off while every name has one and the names are not yet those of the model."""
    rest = {name: value for name, value in params.items() if name != AVERAGE_COUNT}
    for _ in range(DEEPEST):
        shared = next((prefix for prefix in prefixes if all(name.startswith(prefix) for name in rest)), None)
        if shared is None or not rest or any(name in like for name in params):
            break
        if len(rest) < len(params):
            notes = [*notes, f"left out: {AVERAGE_COUNT}, the counter of a weight average"]
        notes = [*notes, f"prefix {shared!r} stripped from every name"]
        params = rest = {name.removeprefix(shared): value for name, value in rest.items()}
    return Unwrapped(params, tuple(notes))
