"""The scripts on matchers, many models, repair and objectives run from data to record and figure, on tiny networks."""

from __future__ import annotations

import json
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from collection import CIFAR, MNIST, NETS, Net
from networks import mlp, resnet20, vgg
from training import Recipe

FOLDER = Path(__file__).parents[2] / "experiments"
ONE = Recipe(1e-3, epochs=1, batch=100, bf16=False)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks under the names of those that take hours."""
    small = partial(mlp, widths=(5, 4))
    for name, seeds in (("mnist_mlp", 5), ("mnist_mlp_part", 3), ("mnist_mlp_short", 2)):
        monkeypatch.setitem(NETS, name, Net(small, MNIST, ONE, seeds))
    monkeypatch.setitem(NETS, "cifar_resnet20_half", Net(partial(resnet20, 1 / 8), CIFAR, ONE, 2))
    monkeypatch.setitem(NETS, "fashion_vgg11_plain", Net(partial(vgg, 11, 1 / 32, None, 3), CIFAR, ONE, 2))


def run(name: str, tmp_path: Path, *arguments: str, **changed: int | str) -> tuple[dict[str, Any], Path]:
    """Run a script; return its record and where it is."""
    script = runpy.run_path(str(FOLDER / f"{name}.py"))
    script["main"].__globals__.update(changed)
    script["main"]([*arguments, "--out", str(tmp_path / "out"), "--models", str(tmp_path / "models")])
    files = list((tmp_path / "out").glob("*.json"))
    assert len(files) == 1
    assert str(tmp_path) not in files[0].read_text(encoding="utf-8")
    return json.loads(files[0].read_text(encoding="utf-8")), tmp_path / "out"


def test_matchers(digits: Path, tmp_path: Path) -> None:
    record, out = run("gitrebasin_mnist_matchers", tmp_path, "--data", str(digits), "--epochs", "1", POINTS=3)
    names = {"naive", "weight", "activation", "straight-through", "straight-through, rate 0.5"}
    assert set(record["results"]["curves"]["test"]) == names
    assert (out / "gitrebasin_mnist_matchers.png").stat().st_size > 10_000


def test_merge_many(digits: Path, tmp_path: Path) -> None:
    record, out = run("gitrebasin_merge_many", tmp_path, "--data", str(digits), "--members", "3")
    results = record["results"]
    assert set(results["five"]) == {*(f"seed {seed}" for seed in range(5)), "mean as is", "merged"}
    assert len(results["calibration"]["members"]) == 3
    assert sum(results["calibration"]["ensemble"]["counts"]) == 31 * 10
    assert (out / "gitrebasin_merge_many.png").stat().st_size > 10_000


def test_repair(cifar: Path, tmp_path: Path) -> None:
    names = ["cifar_resnet20_half", "fashion_vgg11_plain"]
    record, out = run("repair_cifar_resnet20", tmp_path, "--data", str(cifar), "--only", *names)
    assert (out / "repair_cifar_resnet20.png").stat().st_size > 10_000
    residual, plain = (record["results"][name]["mean"] for name in names)
    recomputed, repaired = (residual[f"permuted, {way}"] for way in ("batch norm recomputed", "REPAIR"))
    assert recomputed != residual["permuted"] != repaired != recomputed
    assert record["results"]["cifar_resnet20_half"]["left_by_repair"] == 0
    assert plain["permuted, batch norm recomputed"] == plain["permuted"] != plain["permuted, REPAIR"]


def test_repair_and_best(digits: Path, tmp_path: Path) -> None:
    few = {"MATCHING": 32, "MORE": 512, "STATISTICS": 64}
    record, out = run("repair_best", tmp_path, "--data", str(digits.parent), NETWORK="mnist_mlp_short", **few)
    assert (out / "repair_best.png").stat().st_size > 10_000
    (pair,) = record["results"]["pairs"]
    assert len(pair["barriers"]) == 6
    assert pair["barriers"]["best"] != pair["barriers"]["best for REPAIR"]
    assert len(record["results"]["expected"]) == 2


def test_objectives(digits: Path, tmp_path: Path) -> None:
    network, data = "mnist_mlp_short", str(digits.parent)
    columns = ["naive", "weights", "covariance", "unit hybrid", "best, not polished"]
    given = ["--data", data, "--only", network, "--columns"]
    first, _ = run("objectives_table", tmp_path, *given, *columns, INPUTS=64)
    record, out = run("objectives_table", tmp_path, *given, "best", "activations, product", INPUTS=64)
    cells = record["results"]["cells"]
    assert set(cells) == {*columns, "best", "activations, product"}
    assert all(cells[name] == cell for name, cell in first["results"]["cells"].items())
    assert {len(pairs) for pairs in cells.values()} == {1}
    # What is improved is what was chosen, without solving the candidates again.
    assert cells["best, not polished"][0]["note"] in cells["best"][0]["note"]
    assert [run["command"].rpartition("--columns ")[2] for run in record["results"]["runs"]] == [
        "naive weights covariance 'unit hybrid' 'best, not polished'",
        "best 'activations, product'",
    ]
    assert (out / "objectives_table.png").stat().st_size > 10_000


def test_objectives_of_one_pair(digits: Path, tmp_path: Path) -> None:
    given = ["--data", str(digits.parent), "--columns", "weights", "--only"]
    first, _ = run("objectives_table", tmp_path, *given, "mnist_mlp", "--pairs", "0-1", INPUTS=64)
    later, _ = run("objectives_table", tmp_path, *given, "mnist_mlp", "--pairs", "1-2", INPUTS=64)
    assert later["results"]["ends"][:2] == first["results"]["ends"]
    again, _ = run("objectives_table", tmp_path, *given, "mnist_mlp", "--pairs", "0-1", INPUTS=64)
    assert again["results"]["ends"] == later["results"]["ends"]
    (cell,), now = first["results"]["cells"]["weights"], again["results"]["cells"]["weights"]
    assert [one["pair"] for one in now] == [[0, 1], [1, 2]]
    assert now[0]["barrier"] == cell["barrier"] != now[1]["barrier"]


def test_objectives_of_a_pair_that_is_not_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("objectives_table", tmp_path, "--data", "none", "--only", "mnist_mlp_short", "--pairs", "0-2", "1-2")
    assert "no pair 0-2 or 1-2 of mnist_mlp_short: 2 are trained" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
