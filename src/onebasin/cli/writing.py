"""Write weights together with how they were made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from onebasin.checkpoints import Checkpoint, check_target, provenance, save, save_into, write_directory, write_file
from onebasin.checkpoints.reading import WEIGHT_SUFFIXES
from onebasin.params import Params

# In a folder of its own: tools that load every .safetensors or .json beside the weights must not meet these files.
DOCUMENTS = "onebasin"


def document_path(out: Path, name: str) -> Path:
    """Return where the document `name` (as "record.json") of the weights at `out` lies."""
    return out.with_name(f"{out.stem}.{name}") if out.suffix in WEIGHT_SUFFIXES else out / DOCUMENTS / name


def check_targets(out: Path, documents: Iterable[str], *, force: bool) -> None:
    """Raise `CheckpointError` if the weights at `out`, or a document beside them, must not be written."""
    check_target(out, force=force)
    if out.suffix in WEIGHT_SUFFIXES:
        for name in documents:
            check_target(document_path(out, name), force=force)


def write_weights(
    out: Path,
    params: Params,
    made_by: Mapping[str, Any],
    documents: Mapping[str, str],
    *,
    force: bool,
    companions: Path,
) -> list[Path]:
    """Write weights and documents (name -> text) to `out`, all or nothing, and return the paths of the main files.

    Args:
        out: a file with a weight suffix, beside which the documents are written, or a model directory.
        params: the weights.
        made_by: what the metadata says about their making.
        documents: file name -> text.
        force: write over what is there.
        companions: model whose configuration and tokenizer files a directory gets.
    """
    metadata, paths = provenance(made_by), [document_path(out, name) for name in documents]
    if out.suffix not in WEIGHT_SUFFIXES:
        with write_directory(out, force=force) as folder:
            save_into(folder, params, metadata, companions=companions)
            for name, text in documents.items():
                document_path(folder, name).parent.mkdir(exist_ok=True)
                document_path(folder, name).write_text(text + "\n", encoding="utf-8")
        return [out, *paths]
    with ExitStack() as stack:
        for path, text in zip(paths, documents.values(), strict=True):
            stack.enter_context(write_file(path, force=force)).write_text(text + "\n", encoding="utf-8")
        save(out, params, metadata, force=force)
    return [out, *paths]


def sources(checkpoints: Iterable[Checkpoint]) -> list[dict[str, Any]]:
    """Return path and SHA-256 of every file that was read."""
    return [{"path": str(file), "sha256": _sha256(file)} for found in checkpoints for file in found.files]


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
