"""How long work tells of its progress: the library calls back and prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable

# progress(task, done, total): called after each step; total 0 means unknown.
Progress = Callable[[str, int, int], None]


def silent(task: str, done: int, total: int) -> None:
    """Ignore progress; the default everywhere."""
