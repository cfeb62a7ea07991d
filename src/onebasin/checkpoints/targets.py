"""Write so that nothing is lost: beside the target first, renamed when complete, never over something unasked.

What is written gets the usual mode of new files: safetensors, for one, lets nobody but the owner read its files.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onebasin.errors import CheckpointError, listing

# Weights that would be read in place of, or mixed up with, newly written ones.
STALE = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")


def check_target(out: str | Path, *, force: bool = False) -> Path:
    """Return `out` as a path if it may be written, else raise: call it before hours of work.

    A file must not exist; a directory must not exist or be empty; `force` allows both.

    Raises:
        CheckpointError: `out` exists and `force` is off, or its parent is no writable directory.
    """
    out = Path(out)
    taken = sorted(file.name for file in out.iterdir()) if out.is_dir() else [out.name] if out.exists() else []
    if taken and not force:
        what = f"{out} is not empty: it holds {listing(taken, 5)}" if out.is_dir() else f"{out} exists"
        raise CheckpointError(what, "a path where nothing is yet", "choose another path, or pass --force (force=True)")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CheckpointError(f"{parent} cannot be written to", "a writable directory", "choose another path")
    return out


@contextmanager
def write_file(out: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `out`; what is written there becomes `out` when the block ends without error.

    Raises:
        CheckpointError: as `check_target`; or `out` is a directory, or writing fails.
    """
    out = check_target(out, force=force)
    if out.is_dir():
        raise CheckpointError(f"{out} is a directory", "the name of a file", "add a file name")
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(out)
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            yield temporary
            temporary.chmod(mode)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def write_directory(out: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `out`, which becomes `out` when the block ends without error.

    With `force`, files of the same name in an existing `out` are replaced, and so are its model weights, which would
    else be mixed up with the new ones; everything else in it stays.

    Raises:
        CheckpointError: as `check_target`; or `out` is a file, or writing fails.
    """
    out = check_target(out, force=force)
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file", "the name of a directory", "choose another path")
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(out)
        temporary.mkdir()
        mode = temporary.stat().st_mode
        try:
            yield temporary
            for file in temporary.rglob("*"):
                file.chmod(mode if file.is_dir() else mode & 0o666)
            _move_into(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{out} cannot be written: {error.strerror or error}",
            "a place with room, where you may write",
            "free some space, or choose another path",
        ) from error


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")


def _move_into(source: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        if out.exists():
            out.rmdir()
        source.rename(out)
        return
    written = [file.relative_to(source) for file in source.rglob("*") if file.is_file()]
    if any(STALE.fullmatch(file.name) for file in written):
        for old in out.iterdir():
            if STALE.fullmatch(old.name) and Path(old.name) not in written:
                old.unlink()
    for file in written:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).replace(out / file)
