"""Checkpoints in half precision give what their float32 copies give, and stay in half precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from user import Ran

from onebasin.checkpoints import load
from onebasin.params import Params

Run = Callable[[str], Ran]
NET, CONVNET = "--model net.py:build --inputs 5x3", "--model net.py:convnet --inputs 3x2x5x5"
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@pytest.fixture(autouse=True)
def checkpoints(folder: Path, dtype: torch.dtype) -> None:
    """Write the models of the folder in half precision, as half-a.pt, and these in float32, as wide-a.pt."""
    for file in [*folder.glob("*.pt"), *folder.glob("*.safetensors")]:
        half = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load(file).items()}
        torch.save(half, folder / f"half-{file.stem}.pt")
        torch.save(
            {name: t.float() if t.dtype is dtype else t for name, t in half.items()}, folder / f"wide-{file.stem}.pt"
        )


def both(run: Run, line: str, kind: str) -> Any:
    """Run a line on checkpoints of one kind, and return its record."""
    ran = run(line.replace("KIND", kind) + " --json")
    assert ran.status == 0, ran.stderr
    return ran.document["results"]


def results(run: Run, line: str) -> tuple[Any, Any]:
    """Return the results of a line on half precision and on its float32 copies, but for the paths of the models."""
    found = [both(run, line, kind) for kind in ("half", "wide")]
    for one in found:
        del one["sources"]
        for alignment in [one["alignment"]] if "alignment" in one else one.get("alignments", {}).values():
            alignment.pop("seconds", None)
    half, wide = (json.dumps(one).replace(kind, "KIND") for one, kind in zip(found, ("half", "wide"), strict=True))
    return json.loads(half), json.loads(wide)


def written(run: Run, folder: Path, line: str, owner: str) -> tuple[Params, Params]:
    """Return what a line writes for either; in half precision, the other's in the types of the model `owner`."""
    c, (verb, _, words) = "c" if CONVNET in line else "", line.partition(" ")
    half, wide = results(run, f"{verb} KIND-{c}a.pt KIND-{c}b.pt {words} --out KIND.pt")
    assert half == wide
    own, found, expected = (load(folder / f"{name}.pt") for name in (f"half-{c}{owner}", "half", "wide"))
    for name, tensor in expected.items():
        assert found[name].dtype == own[name].dtype, name
        assert torch.equal(found[name], tensor.to(own[name].dtype)), name
    return found, expected


@HALVES
@pytest.mark.parametrize(
    "words",
    [
        f"{NET} --matcher activation --data net.py:batches",
        f"{CONVNET} --matcher activation --synthetic",
        f"{NET} --matcher straight-through --epochs 1 --data net.py:batches",
        f"{CONVNET} --matcher best --rounds 0 --data net.py:images",
    ],
)
def test_align(words: str, run: Run, folder: Path, dtype: torch.dtype) -> None:
    found, wide = written(run, folder, f"align {words}", "b")
    for name, tensor in wide.items():
        assert torch.equal(found[name].to(tensor.dtype), tensor), name


@HALVES
@pytest.mark.parametrize(
    "words",
    [
        f"{NET} --matcher best --rounds 0 --synthetic",
        f"{CONVNET} --recompute-batchnorm --data net.py:images",
        f"{CONVNET} --repair --data net.py:images",
        f"{NET} --method many --max-rounds 1 --matcher best --rounds 0 --repair --data net.py:batches",
    ],
)
def test_merge(words: str, run: Run, folder: Path, dtype: torch.dtype) -> None:
    written(run, folder, f"merge {words}", "a")


@HALVES
@pytest.mark.parametrize("mending", ["--batchnorm-data net.py:images", "--repair --data net.py:images"])
def test_barrier(mending: str, run: Run, dtype: torch.dtype) -> None:
    half, wide = results(run, f"barrier KIND-ca.pt KIND-cb.pt {CONVNET} --eval net.py:image_loss --points 3 {mending}")
    assert half == wide


@HALVES
def test_a_reference_in_float32_and_another_in_half_precision(run: Run, folder: Path, dtype: torch.dtype) -> None:
    line = f"{CONVNET} --recompute-batchnorm --data net.py:images --out"
    assert run(f"merge ca.pt half-cb.pt {line} wide.pt").status == 0
    assert run(f"merge half-ca.pt cb.pt {line} half.pt").status == 0
    assert load(folder / "wide.pt")["0.weight"].dtype == torch.float32
    assert load(folder / "half.pt")["0.weight"].dtype == dtype
