"""The script runs from idx files to record and figure; the record kept in the repository shows the paper's result."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from onebasin.analysis import Curve

FOLDER = Path(__file__).parents[2] / "experiments"
SCRIPT = runpy.run_path(str(FOLDER / "gitrebasin_mnist_mlp.py"))


def test_the_script_runs_and_starts_again_from_its_models(digits: Path, tmp_path: Path) -> None:
    command = ["--data", str(digits), "--epochs", "1", "--out", str(tmp_path / "out"), "--models", str(tmp_path / "m")]
    SCRIPT["main"](command)
    first = json.loads((tmp_path / "out" / "gitrebasin_mnist_mlp.json").read_text())
    assert (tmp_path / "out" / "gitrebasin_mnist_mlp.png").stat().st_size > 10_000
    assert str(tmp_path) not in json.dumps(first)
    SCRIPT["main"](command)
    again = json.loads((tmp_path / "out" / "gitrebasin_mnist_mlp.json").read_text())
    assert again["results"]["curves"] == first["results"]["curves"]
    assert min(first["results"]["training_cpu_seconds"]) > 0
    assert again["results"]["training_cpu_seconds"] == first["results"]["training_cpu_seconds"]


def kept(split: str, path: str) -> Curve:
    data = json.loads((FOLDER / "results" / "gitrebasin_mnist_mlp.json").read_text(encoding="utf-8"))
    curve = data["results"]["curves"][split][path]
    return Curve(tuple(curve["lams"]), {name: tuple(values) for name, values in curve["metrics"].items()})


def test_the_kept_record_shows_the_papers_result() -> None:
    naive, matched = kept("test", "naive"), kept("test", "matched")
    assert len(matched.lams) == 25
    # papers: the ends' test loss is 0.11-0.15 and their accuracy 98.5-98.7 %; the matched curve is convex.
    assert all(0.10 < matched.loss[end] < 0.16 and 0.98 < matched.accuracy[end] < 0.99 for end in (0, -1))
    assert matched.barrier("midpoint") < -0.02
    assert naive.barrier("midpoint") > 0.3
    assert kept("train", "matched").barrier("chord") < 0.01
    assert kept("train", "naive").barrier("chord") > 0.3
