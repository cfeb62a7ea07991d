"""What a verb hands back, and how the terminal shows it: the result on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from onebasin.errors import OneBasinError
from onebasin.progress import Progress

# What was typed, for records.
COMMAND: ContextVar[str] = ContextVar("COMMAND", default="onebasin")
WIDTH = 100  # columns, at most; fewer in a narrower terminal


@dataclass(frozen=True)
class Outcome:
    """The result of a verb.

    Args:
        document: plain values, printed as one strict JSON document when `as_json`.
        view: what people read instead, from top to bottom.
        as_json: which of the two is printed.
        interrupted: the work was cut short, and this is what there was.
    """

    document: dict[str, Any]
    view: Sequence[RenderableType] = field(default=())
    as_json: bool = False
    interrupted: bool = False


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr, at most `WIDTH` columns wide, also where there is no terminal."""
    found = Console(stderr=stderr, highlight=False)
    found.width = min(found.width, WIDTH) if found.is_terminal else WIDTH
    return found


def labels(models: Iterable[Path]) -> list[str]:
    """Return what each model is called: its path, and its number if others have the same path."""
    paths = [str(path) for path in models]
    return [f"{path} (model {n})" if paths.count(path) > 1 else path for n, path in enumerate(paths, 1)]


def show(outcome: Outcome, out: Console) -> None:
    """Print `outcome` to `out`."""
    if outcome.as_json:
        from onebasin.report.record import dumps

        out.file.write(dumps(outcome.document) + "\n")
        return
    for part in outcome.view:
        # Text may hold paths: it is neither wrapped nor read as markup.
        out.print(part, soft_wrap=isinstance(part, str), markup=False)


def show_error(error: OneBasinError) -> None:
    """Print the three parts of `error` to stderr."""
    err = console(stderr=True)
    err.print("[bold red]error[/]: ", end="")
    err.print(error.got, markup=False, soft_wrap=True)
    for label, text in (("expected", error.expected), ("do this", error.do)):
        err.print(f"  [bold]{label}[/]: ", end="")
        err.print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a remark to stderr."""
    console(stderr=True).print(f"note: {text}", markup=False, soft_wrap=True, style="dim")


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yield a progress callback that draws one bar a task on stderr, with the time left; silent without a terminal.

    What was told of between two steps of a task is within it, and leaves the screen when that step is done.
    """
    err = console(stderr=True)
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    reached: dict[str, int] = {}
    with Bars(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:

        def told(task: str, done: int, total: int) -> None:
            if task in tasks:
                inner = list(tasks)[list(tasks).index(task) + 1 :]
                # The same once more, for the next model: its time begins anew. Else a step of it is done.
                again = done <= reached[task] if inner else done < reached[task]
                for name in [task] if again else inner:
                    bars.remove_task(tasks.pop(name))
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total or None)
            reached[task] = done
            bars.update(tasks[task], completed=done, total=total or None)

        yield told


def main_stdout() -> Console:
    """Return the console of the real stdout, to be made before stdout is redirected."""
    found = console()
    found.file = sys.stdout
    return found
