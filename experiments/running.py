"""What every script does alike: its common options, and its record and figure."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onebasin as ob


def options(about: str | None, data: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with `--out`, `--models` and, with `data` as its help, a required `--data`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--out", type=Path, default=Path("experiments/results"), help="where record and figure go")
    parser.add_argument("--models", type=Path, help="keep trained weights here, and use those that are there")
    return parser


def command(name: str, parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """Return the command of a run; folders are left out, for they are the reader's own."""
    words = [f"python experiments/{name}.py"]
    for key, value in vars(args).items():
        if isinstance(value, Path):
            words += [f"--{key} DIR"] if key != "out" else []
        elif value != parser.get_default(key):
            words.append(f"--{key.replace('_', '-')} {value}")
    return " ".join(words)


def judged(expected: Mapping[str, bool]) -> Mapping[str, bool]:
    """Print what was expected and whether it came so; return it."""
    for statement, holds in expected.items():
        print(f"{'as expected' if holds else 'NOT AS EXPECTED'}: {statement}")
    return expected


def keep(
    out: Path, name: str, command: str, settings: Mapping[str, Any], results: Mapping[str, Any], seconds: float
) -> None:
    """Write the record of a run to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    record = ob.record(command, settings, results, seconds)
    (out / f"{name}.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
