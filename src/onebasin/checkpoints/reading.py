"""Read weights: safetensors, PyTorch state dicts, shards with an index, model directories."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch

from onebasin.checkpoints.unwrapping import unwrap
from onebasin.errors import CheckpointError, listing
from onebasin.params import Params

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# What a model directory may hold, the first that is there is read.
DIRECTORY_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# What torch.load raises for files it cannot read: OSError if a cut makes it seek to before the file begins. A file that
# cannot be opened at all has been told by then.
TORCH_ERRORS = (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, IndexError, OSError)
DAMAGED = "copy or download it again: the file is damaged or was cut off"


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they were on disk.

    Args:
        path: what was asked for.
        params: every tensor, on the CPU, in the dtype of the file; tied tensors are one tensor again.
        metadata: what the file says about itself (safetensors header, shard index, or what `save` recorded in a .pt).
        notes: one line for everything that was unwrapped, stripped or left out.
        files: the files that were read.
    """

    path: Path
    params: Params
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def load(path: str | Path, *, key: str | None = None, like: Collection[str] = ()) -> Params:
    """Return the weights at `path`; `read` tells what was found besides them. Same arguments, same errors."""
    return read(path, key=key, like=like).params


def read(path: str | Path, *, key: str | None = None, like: Collection[str] = ()) -> Checkpoint:
    """Read weights, and nothing that could run code: pickled objects are refused.

    Args:
        path: a `.safetensors` file, a PyTorch state dict (`.pt`, `.pth`, `.bin`, `.ckpt`; bare or wrapped), a
            `*.index.json` of shards, or a model directory that holds one of these.
        key: which entry of a wrapped state dict holds the weights, as "ema"; default: the usual names.
        like: names the model has; a prefix such as `module.` stays where the names have it too.

    Raises:
        CheckpointError: nothing there, several to choose from, damaged, or pickled objects that are no tensors.
    """
    path = Path(path)
    file = _file_in(path) if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{path} does not exist", "a weight file or a model directory", "correct the path")
    if file.name.endswith(".index.json"):
        params, metadata, files = _read_shards(file)
        found = unwrap(params, path, key, like)
    else:
        data, metadata = _read_file(file)
        found, files = unwrap(data, path, key, like), (file,)
    return Checkpoint(path, _retie(found.params, metadata), metadata, found.notes, files)


def _file_in(directory: Path) -> Path:
    """Return the one file that stands for the weights in `directory`."""
    for name in DIRECTORY_FILES:
        if (directory / name).is_file():
            return directory / name
    present = sorted(directory.iterdir())
    for kind in (".safetensors.index.json", ".bin.index.json", *WEIGHT_SUFFIXES):
        files = [file for file in present if file.name.endswith(kind) and file.is_file()]
        if len(files) == 1:
            return files[0]
        if files:
            raise CheckpointError(
                f"{directory} holds {len(files)} weight files and no index: {listing(file.name for file in files)}",
                f"one weight file, or one of {listing(DIRECTORY_FILES)}",
                "name the file itself",
            )
    raise CheckpointError(
        f"{directory} holds no weights, but: {listing(file.name for file in present) or 'nothing'}",
        f"{listing(DIRECTORY_FILES)}, or one file ending in {listing(WEIGHT_SUFFIXES)}",
        "name the file that holds the weights",
    )


def _read_shards(index: Path) -> tuple[Params, dict[str, str], tuple[Path, ...]]:
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
        weight_map = {str(name): str(file) for name, file in data["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of shards ({error!r})", 'JSON with a "weight_map"', DAMAGED
        ) from None
    files = [index.parent / name for name in dict.fromkeys(weight_map.values())]
    _complain(index, "shards", (file.name for file in files if not file.is_file()))
    params: Params = {}
    for file in files:
        params.update(_read_file(file)[0])
    _complain(index, "tensors", (name for name in weight_map if name not in params))
    metadata = data.get("metadata") or {}
    return params, {str(name): str(value) for name, value in metadata.items()}, (index, *files)


def _complain(index: Path, what: str, missing: Iterable[str]) -> None:
    names = list(missing)
    if names:
        raise CheckpointError(
            f"{len(names)} {what} named in {index} are missing: {listing(names)}",
            f"all {what} beside the index",
            "download the missing files, or the whole model, again",
        )


def _read_file(file: Path) -> tuple[Any, dict[str, str]]:
    """Return what `file` holds, and its metadata."""
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read: {error.strerror}", "a readable file", "correct its permissions"
        ) from None
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)


def _read_safetensors(file: Path) -> tuple[Params, dict[str, str]]:
    try:
        with safetensors.safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, dict(handle.metadata() or {})
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}", "a complete safetensors file", DAMAGED) from None


def _read_torch(file: Path) -> tuple[Any, dict[str, str]]:
    try:
        data = _torch_load(file)
    except TORCH_ERRORS as error:
        raise _torch_error(file, error) from None
    metadata = getattr(data, "onebasin", {})
    return data, dict(metadata) if isinstance(metadata, Mapping) else {}


def _torch_load(file: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints at unusual pickles, which the errors here say better
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)  # the format of before 2020


def _torch_error(file: Path, error: Exception) -> CheckpointError:
    """Say what a PyTorch file holds that cannot be read, and the way out."""
    save = "torch.save(model.state_dict(), PATH) in the code that has the class"
    names = _unsafe_globals(file, error)
    if names:
        allow = f"torch.serialization.safe_globals([{', '.join(names)}])"
        whole_model = any(name.startswith("torch.nn.") for name in names)
        return CheckpointError(
            f"{file} holds pickled objects besides tensors: {listing(names)}",
            "a state dict (name -> tensor); anything else could run code while it is read",
            f"save the weights only: {save}"
            + ("" if whole_model else f"; or, if you trust the file, call onebasin.checkpoints.load under {allow}"),
        )
    if "TorchScript" in str(error):
        return CheckpointError(
            f"{file} is a TorchScript archive",
            "a state dict (name -> tensor)",
            "torch.save(torch.jit.load(FILE).state_dict(), PATH)",
        )
    return CheckpointError(
        f"{file} is damaged: {_reason(error)}", "a complete PyTorch or safetensors file", f"{DAMAGED}; or {save}"
    )


def _reason(error: Exception) -> str:
    """Return what is wrong with a file that torch cannot read."""
    if isinstance(error, OSError):
        return f"it cannot be read to its end ({error.strerror})"
    if isinstance(error, RuntimeError):
        return str(error).split(". ")[0]
    return f"not written by torch.save ({error!r:.60})"


def _unsafe_globals(file: Path, error: Exception) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except TORCH_ERRORS:
        # Not a zip archive: then only the first offender is known, from the message.
        return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]


def _retie(params: Params, metadata: Mapping[str, str]) -> Params:
    """Give tied names back: safetensors holds one of them, its metadata says `{left out: kept}`."""
    ties = {name: kept for name, kept in metadata.items() if name not in params and kept in params and name != "format"}
    return params | {name: params[kept] for name, kept in ties.items()}
