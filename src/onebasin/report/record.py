"""One JSON record a run: what was asked, with what, on what, how long it took, what came out."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

FORMAT = "onebasin-record"
VERSION = 1
PACKAGES = ("onebasin", "torch", "numpy", "scipy", "safetensors")


def record(command: str, settings: Mapping[str, Any], results: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return the record of one run, of plain JSON values.

    Args:
        command: what was typed, or the name of the script with its arguments.
        settings: every setting the results depend on; dataclasses are spelled out.
        results: what came out.
        seconds: wall-clock time of the run.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "settings": plain(settings),
        "results": plain(results),
        "versions": versions(),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # running from a source tree that was never installed
            found[name] = "unknown"
    return found


def hardware() -> dict[str, Any]:
    """Return what the run had: platform, CPU cores it may use, threads of torch, accelerators."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "threads": torch.get_num_threads(),
        "accelerators": devices,
    }


def dumps(value: Any) -> str:
    """Write `value` as strict JSON: what is not a number (NaN, infinity) becomes null."""
    return json.dumps(plain(value), allow_nan=False, indent=2)


def plain(value: Any) -> Any:
    """Turn settings and results into plain JSON values.

    Dataclasses become objects, enums and functions their names, tensors and tuples lists, anything else text.
    """
    if isinstance(value, Enum):
        return value.name.lower()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Iterable) and not isinstance(value, Path):
        return [plain(entry) for entry in value]
    return f"{value.__module__}:{value.__qualname__}" if isinstance(value, FunctionType) else str(value)
