"""`python -m zoo`: one line a model, JSON, and an exit status that says whether anything is unsound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from zoo import __main__ as command
from zoo.expected import remark
from zoo.setups import Row, Setup

ROW = Row("mlp", "32 24", 2, 0, 0.997, 59.2, 59.2, 1e-15, (), 0.1, 0.01, 0.02)


@pytest.fixture
def _two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def setups(everything: bool) -> Iterator[Setup]:
        return (Setup(name, lambda: pytest.fail("not built")) for name in ("mlp", "lstm"))

    monkeypatch.setattr(command, "PARTS", {"nn": setups})


def measured(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setattr(command, "measure", lambda setup: replace(ROW, name=setup.name, **changes))


def test_a_line_for_each_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert command.main(["mlp", "glu*", "--part", "nn", "--json", str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["model", "mlp", "glu_swiglu", "2"]
    assert "as counted" in printed[1]
    assert "2 models, 0 unsound" in printed[-1]
    assert [row["shapes"] for row in json.loads(file.read_text())] == ["32 24", "32 20"]


@pytest.mark.usefixtures("_two_models")
def test_an_unsound_model_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, difference=0.3)
    assert command.main([]) == 1
    assert capsys.readouterr().out.count("UNSOUND 3e-01") == 2


@pytest.mark.usefixtures("_two_models")
def test_a_model_that_breaks_discovery_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(setup: Setup) -> Row:
        raise KeyError(setup.name)

    monkeypatch.setattr(command, "measure", measure)
    assert command.main(["lstm"]) == 1
    assert "FAILED: KeyError" in capsys.readouterr().out


def test_a_part_that_is_not_installed_is_said_to_be_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def setups(everything: bool) -> Iterator[Setup]:
        raise ImportError("no module named timm")

    monkeypatch.setattr(command, "PARTS", {"timm": setups})
    assert command.main([]) == 0
    assert "timm: skipped (no module named timm)" in capsys.readouterr().out


def test_rows_are_compared_with_what_is_known() -> None:
    assert remark(ROW) == "as counted"
    assert remark(replace(ROW, shapes="32 24 2")) == "counted: 32 24; found: 32 24 2"
    resnet = replace(ROW, name="resnet18", groups=12, log10_shared=5933.7, log10_nested=5933.7)
    assert remark(resnet) == "as in the study"
    assert remark(replace(resnet, groups=13)).startswith("study: 12 groups, 5934 / 5934")
    assert remark(replace(resnet, log10_shared=5930.0)).startswith("study: 12 groups")
    assert remark(replace(ROW, name="unheard of")) == ""
