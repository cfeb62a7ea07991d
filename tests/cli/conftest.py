"""A user's folder with a file of models and checkpoints of them, and a way to run command lines in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from user import NET, Ran

from onebasin.checkpoints import save
from onebasin.cli.main import main
from onebasin.cli.resolve import load_model
from onebasin.params import params_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a user's folder, and stay in it: net.py, a.pt, b.safetensors of `build`, ca.pt, cb.pt of `convnet`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    for factory, names in (("build", ("a.pt", "b.safetensors", "c.pt")), ("convnet", ("ca.pt", "cb.pt"))):
        for seed, name in enumerate(names):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                save(tmp_path / name, params_of(load_model(f"net.py:{factory}")))
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Ran]:
    """Return a function that runs `onebasin LINE` in the user's folder."""

    def call(line: str) -> Ran:
        capsys.readouterr()
        status = main(line.split())
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return call
