"""Makes a failing program as short as it can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator


def shrink(source: str, fails: Callable[[str], bool]) -> str:
    """Drop lines and outputs of a program, and replace values by earlier ones, for as long as `fails` stays true."""
    found = True
    while found:
        candidates = (shorter for shorter in _shorter(source) if fails(shorter))
        shortest = next(candidates, None)
        found, source = shortest is not None, shortest or source
    return source


def _shorter(source: str) -> Iterator[str]:
    lines = source.splitlines()
    numbers = [n for n, line in enumerate(lines) if re.match(r" {8}(v\d+|self\.a\d+) = ", line)]
    for number in reversed(numbers):
        yield _joined(lines[:number] + lines[number + 1 :])
    for number in reversed(numbers):
        match = re.match(r" {8}(v\d+) = \D*(v\d+)", lines[number])
        if match:
            replaced = [re.sub(rf"\b{match[1]}\b", match[2], line) for line in lines[number + 1 :]]
            yield _joined(lines[:number] + replaced)
    end = next(n for n, line in enumerate(lines) if line.startswith("        return"))
    outputs = [item for item in lines[end].removeprefix("        return ").split(", ") if item]
    for number in range(len(outputs) if len(outputs) > 1 else 0):
        kept = ", ".join(name.rstrip(",") for name in outputs[:number] + outputs[number + 1 :])
        yield _joined([*lines[:end], f"        return {kept},", *lines[end + 1 :]])


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
