"""Discovery on real architectures: `python -m zoo` prints one line a model, and fails if any group is unsound."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from onebasin.errors import OneBasinError
from zoo import tiny_transformers, torch_layers, vision
from zoo.expected import remark
from zoo.setups import Row, Setup, measure

COLUMNS = ("model", "groups", "covered", "log10 shared", "nested", "difference", "export", "infer", "prove", "remark")
WIDTHS = (36, 6, 7, 12, 7, 10, 6, 6, 6)
Part = Callable[[bool], Iterator[Setup]]
PARTS: dict[str, Part] = {
    "nn": lambda everything: torch_layers.setups(),
    "transformers": lambda everything: tiny_transformers.setups(),
    "torchvision": vision.torchvision_setups,
    "timm": lambda everything: vision.timm_setups(),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure all chosen set-ups; return 1 if any is unsound or breaks discovery."""
    options = _options(arguments)
    rows: list[Row] = []
    bad = 0
    begin = time.perf_counter()
    with _Lines() as lines, warnings.catch_warnings(action="ignore"):
        for setup in _chosen(options, lines):
            try:
                row = measure(setup)
            except Exception as error:
                lines.fail(setup.name, error)
                bad += not isinstance(error, OneBasinError)
                continue
            rows.append(row)
            lines.add(row)
            bad += not row.sound
    print(f"{len(rows)} models, {sum(not row.sound for row in rows)} unsound, {time.perf_counter() - begin:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1), encoding="utf-8")
    return int(bad > 0)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="names or patterns of models (default: all)")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="only this part (may be repeated)")
    parser.add_argument("--all", action="store_true", help="the largest models too")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace, lines: _Lines) -> Iterator[Setup]:
    for part in options.part or PARTS:
        try:
            setups = list(PARTS[part](options.all))
        except ImportError as error:
            lines.note(f"{part}: skipped ({error})")
            continue
        for setup in setups:
            if not options.names or any(fnmatch.fnmatch(setup.name, pattern) for pattern in options.names):
                yield setup


class _Lines:
    """One line a model: a growing table on a terminal, plain text elsewhere."""

    def __init__(self) -> None:
        self.console = Console()
        self.table = Table(*COLUMNS, box=None)
        self.live = Live(self.table, console=self.console, auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> _Lines:
        if self.console.is_terminal:
            self.live.start()
        else:
            self._plain(COLUMNS)
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def add(self, row: Row) -> None:
        self._show(
            row.name,
            f"{row.groups}",
            f"{100 * row.covered:.1f}%",
            f"{row.log10_shared:.0f}",
            f"{row.log10_nested:.0f}",
            f"{row.difference:.0e}" if row.sound else f"UNSOUND {row.difference:.0e}",
            *(
                f"{seconds:.1f}" if seconds >= 0.95 else f"{seconds:.2f}"
                for seconds in (row.export, row.infer, row.prove)
            ),
            "; ".join([remark(row), *(f"no rule: {name.split()[0]}" for name in row.without_rule)]),
        )

    def fail(self, name: str, error: Exception) -> None:
        kind = "refused" if isinstance(error, OneBasinError) else "FAILED"
        self._show(name, *[""] * 8, f"{kind}: {type(error).__name__}: {str(error).splitlines()[0]}")

    def note(self, text: str) -> None:
        self._show(text)

    def _show(self, *cells: str) -> None:
        if self.console.is_terminal:
            self.table.add_row(*cells)
            self.live.refresh()
        else:
            self._plain(cells)

    def _plain(self, cells: tuple[str, ...]) -> None:
        first, *others = cells
        padded = [first.ljust(WIDTHS[0]), *(cell.rjust(width) for cell, width in zip(others, WIDTHS[1:], strict=False))]
        print("  ".join([*padded, *others[len(WIDTHS) - 1 :]]).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
