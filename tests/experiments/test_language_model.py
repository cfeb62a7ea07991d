"""The script runs from text to record and figure; the record kept in the repository shows what its docstring says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from onebasin.analysis import Curve

FOLDER = Path(__file__).parents[2] / "experiments"
SCRIPT = runpy.run_path(str(FOLDER / "language_model.py"))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and small batches."""
    for name, value in {"WINDOWS": 32, "BATCH": 2}.items():
        monkeypatch.setitem(SCRIPT["main"].__globals__, name, value)


def test_the_text_is_split_by_file_and_always_in_the_same_way() -> None:
    (first, about), (second, again) = SCRIPT["read_text"](), SCRIPT["read_text"]()
    assert about == again
    for split in ("train", "validation"):
        assert torch.equal(first[split], second[split])
        assert len(first[split]) == about["bytes"][split] > 100_000
    assert about["files"]["train"] > 5 * about["files"]["validation"] > 0


def test_labels_are_the_bytes_that_follow() -> None:
    inputs, labels = SCRIPT["windows"](torch.arange(250, dtype=torch.uint8), torch.tensor([0, 7]))
    assert inputs.shape == labels.shape == (2, SCRIPT["CONTEXT"])
    assert torch.equal(labels, inputs + 1)
    assert inputs[1, 0] == 7


def test_the_decoder_sees_no_later_byte() -> None:
    torch.manual_seed(0)
    model = SCRIPT["Decoder"](64, 2).requires_grad_(False)
    tokens = torch.randint(0, 256, (1, 11))
    changed = tokens.clone()
    changed[0, 7] += 1
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[..., :7], before[..., :7])
    assert ((after - before)[0, :, 7:].abs().amax(0) > 1e-6).all()


@pytest.mark.usefixtures("short")
def test_the_script_runs_and_starts_again_from_its_models(tmp_path: Path) -> None:
    sizes = ["--steps", "3", "--width", "128", "--layers", "1", "--points", "3"]
    command = [*sizes, "--out", str(tmp_path / "out"), "--models", str(tmp_path / "m")]
    file = tmp_path / "out" / "language_model_steps3_width128_layers1.json"
    SCRIPT["main"](command)
    first = json.loads(file.read_text(encoding="utf-8"))
    assert file.with_suffix(".png").stat().st_size > 10_000
    assert str(tmp_path) not in json.dumps(first)
    assert first["results"]["groups"]["blocks.0.attention.out"] == [2, 32]
    assert first["results"]["logits_relative_difference"] < 1e-9
    orders, curve = first["results"]["visiting_orders"], first["results"]["curves"]["validation"]["matched"]
    assert orders[0]["midpoint_loss"] == curve["metrics"]["loss"][1]
    SCRIPT["main"](command)
    again = json.loads(file.read_text(encoding="utf-8"))
    assert again["results"]["curves"] == first["results"]["curves"]
    assert min(first["results"]["training_seconds"]) > 0
    assert again["results"]["training_seconds"] == first["results"]["training_seconds"]


def test_the_kept_record_shows_what_the_script_announces() -> None:
    results = json.loads((FOLDER / "results" / "language_model.json").read_text(encoding="utf-8"))["results"]
    curves = {
        path: Curve(tuple(curve["lams"]), {name: tuple(values) for name, values in curve["metrics"].items()})
        for path, curve in results["curves"]["validation"].items()
    }
    naive, matched = curves["naive"], curves["matched"]
    assert len(naive.lams) == len(matched.lams) == 25
    assert results["logits_relative_difference"] < 1e-12
    assert 0.7 < results["distance"]["after"] / results["distance"]["before"] < 0.8
    assert all(1.25 < curve.loss[end] < 1.4 for curve in (naive, matched) for end in (0, -1))
    assert naive.barrier("midpoint") > matched.barrier("midpoint") > 1
    assert all(2.6 < order["midpoint_loss"] < naive.loss[12] < 3.3 for order in results["visiting_orders"])
    assert 3.0 < results["unigram_loss"] < 3.2
