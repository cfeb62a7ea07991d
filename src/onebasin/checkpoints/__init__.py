"""Weights on disk: read what people have, write what others can read, lose nothing."""

from onebasin.checkpoints.documents import load_permutation, load_spec, save_text
from onebasin.checkpoints.reading import Checkpoint, load, read
from onebasin.checkpoints.targets import check_target, write_directory, write_file
from onebasin.checkpoints.writing import provenance, save, save_into

__all__ = [
    "Checkpoint",
    "check_target",
    "load",
    "load_permutation",
    "load_spec",
    "provenance",
    "read",
    "save",
    "save_into",
    "save_text",
    "write_directory",
    "write_file",
]
