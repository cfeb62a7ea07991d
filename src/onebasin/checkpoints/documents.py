"""Specs and permutations on disk, as JSON text."""

from __future__ import annotations

from pathlib import Path

from onebasin.checkpoints.targets import write_file
from onebasin.errors import CheckpointError
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec


def save_text(path: str | Path, text: str, *, force: bool = False) -> None:
    """Write `text` atomically: `save_text("spec.json", spec.to_json())`.

    Raises:
        CheckpointError: `path` exists and `force` is off.
    """
    with write_file(path, force=force) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_spec(path: str | Path) -> PermutationSpec:
    """Read a spec that was written by `PermutationSpec.to_json`.

    Raises:
        CheckpointError: no readable text there.
        SpecError: not a spec.
    """
    return PermutationSpec.from_json(_text(path, "a permutation spec"))


def load_permutation(path: str | Path, spec: PermutationSpec) -> Permutation:
    """Read a permutation of `spec` that was written by `Permutation.to_json`.

    Raises:
        CheckpointError: no readable text there.
        SpecError: not a permutation, or not one of `spec`.
    """
    return Permutation.from_json(_text(path, "a permutation"), spec)


def _text(path: str | Path, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise CheckpointError(f"{path} cannot be read: {reason}", f"{what} in JSON", "correct the path") from None
