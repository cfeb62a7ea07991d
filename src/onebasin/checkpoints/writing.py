"""Write weights: safetensors or .pt files, and model directories that other tools load."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from onebasin.checkpoints.reading import TORCH_SUFFIXES, WEIGHT_SUFFIXES
from onebasin.checkpoints.targets import write_directory, write_file
from onebasin.errors import CheckpointError, listing
from onebasin.params import Params, map_tensors, tied_names

# Configuration, tokenizer, chat template: what a model directory needs besides weights.
COMPANION_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
SHARD_SIZE = "5GB"  # the default of huggingface_hub


def save(
    path: str | Path,
    params: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    force: bool = False,
    companions: str | Path | None = None,
    shard_size: int | str = SHARD_SIZE,
) -> None:
    """Write `params` to a file, or to a model directory when `path` has no weight suffix.

    The dtype of every tensor is kept, and so are ties: safetensors cannot hold one tensor under two names, so one is
    written and the metadata says `{left out: kept}`, as huggingface_hub does; `load` gives both back.

    Args:
        path: `x.safetensors`; `x.pt`, `x.pth`, `x.bin` or `x.ckpt` for a PyTorch state dict; else a directory.
        params: what to write; never changed.
        metadata: how the file was made, see `provenance`.
        force: write over what is there.
        companions: model directory whose configuration and tokenizer files are copied along (directories only).
        shard_size: largest file of a directory, in bytes or as "5GB" (default: that of huggingface_hub).

    Raises:
        CheckpointError: `path` is taken and `force` is off, or it cannot be written.
    """
    path, metadata = Path(path), dict(metadata or {})
    _check_dense(params)
    if path.suffix not in WEIGHT_SUFFIXES:
        with write_directory(path, force=force) as directory:
            save_into(directory, params, metadata, companions=companions, shard_size=shard_size)
        return
    with write_file(path, force=force) as temporary:
        if path.suffix in TORCH_SUFFIXES:
            _save_torch(temporary, params, metadata)
        else:
            written, ties = _without_ties(params)
            safetensors.torch.save_file(written, temporary, {"format": "pt", **ties, **metadata})


def save_into(
    directory: Path,
    params: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    companions: str | Path | None = None,
    shard_size: int | str = SHARD_SIZE,
) -> None:
    """Write `params` as `model.safetensors`, or shards with an index, and copy the companions, into `directory`."""
    _check_dense(params)
    written, ties = _without_ties(params)
    save_torch_state_dict(written, directory, metadata={**ties, **metadata}, max_shard_size=shard_size)
    if companions is not None and Path(companions).is_dir():
        for file in Path(companions).iterdir():
            if file.suffix in COMPANION_SUFFIXES and not file.name.endswith(".index.json") and file.is_file():
                shutil.copyfile(file, directory / file.name)


def provenance(made_by: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata for `save`: the version of this package and `made_by` (command, settings, sources), as JSON."""
    return {"onebasin": json.dumps({"version": version("onebasin"), **made_by}, allow_nan=False)}


def _save_torch(file: Path, params: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    # An attribute, as PyTorch's own state dicts carry `_metadata`: the file stays a plain state dict for everyone else.
    state: OrderedDict[str, Tensor] = OrderedDict(_own_memory(params))
    state.onebasin = dict(metadata)  # type: ignore[attr-defined]
    torch.save(state, file)


def _without_ties(params: Mapping[str, Tensor]) -> tuple[Params, dict[str, str]]:
    """Return `params` with the first name of every tied set, and `{left out: kept}`."""
    ties = {name: kept for kept, *others in tied_names(params) for name in others}
    return {name: tensor for name, tensor in _own_memory(params).items() if name not in ties}, ties


def _check_dense(params: Mapping[str, Tensor]) -> None:
    unusual = [name for name, tensor in params.items() if tensor.layout != torch.strided or tensor.is_meta]
    if unusual:
        raise CheckpointError(
            f"tensors that cannot be written: {listing(unusual)}",
            "dense tensors with data",
            "convert them with .to_dense(), or load the weights",
        )


def _own_memory(params: Mapping[str, Tensor]) -> Params:
    """Return contiguous tensors that share no memory except when tied: a view would be written with all its base."""

    def own(_: str, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()

    return map_tensors(params, own)
