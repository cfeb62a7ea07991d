"""The demo, cut short: what it writes, what it says, and what it leaves alone."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import conv2d
from user import Ran, files

from onebasin import demo
from onebasin.checkpoints import load
from onebasin.cli.main import main

Run = Callable[[str], Ran]
WRITTEN = {f"{name}-{label}.safetensors" for name in ("mlp", "convnet") for label in ("a", "b", "merged")}
WRITTEN |= {"barrier.png", "record.json"}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Ran]]:
    """Run the demo once, with one epoch a network and three points a path; return its folder and what it said."""
    pytest.importorskip("sklearn")
    folder, out = tmp_path_factory.mktemp("user"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(folder)
        for name, recipe in list(demo.RECIPES.items()):
            patch.setitem(demo.RECIPES, name, replace(recipe, epochs=1))
        patch.setattr("onebasin.cli.demo.POINTS", 3)
        status = main(["demo"])
        yield folder, Ran(status, out.getvalue(), "")


def test_the_demo_shows_and_writes_what_it_did(shown: tuple[Path, Ran]) -> None:
    folder, ran = shown
    assert ran.status == 0
    for words in ("mlp", "convnet", "naive", "matched", "onebasin barrier"):
        assert words in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 100
    assert files(folder / "onebasin-demo") == WRITTEN
    results = json.loads((folder / "onebasin-demo" / "record.json").read_text())["results"]
    for name in ("mlp", "convnet"):
        naive, matched = (results[name][label]["barriers"]["loss"]["mean"] for label in ("naive", "matched"))
        assert matched < naive


def test_the_commands_the_demo_proposes_work(shown: tuple[Path, Ran], capsys: pytest.CaptureFixture[str]) -> None:
    _, ran = shown
    proposed = ran.stdout.split("Next:\n")[1].replace("\\\n", " ").strip().splitlines()
    assert len(proposed) == 2
    for line in proposed:
        assert main(line.split()[1:]) == 0
    assert "loss, matched" in capsys.readouterr().out


def test_a_merged_network_with_batch_norm_has_statistics_of_its_own(shown: tuple[Path, Ran]) -> None:
    merged = load(shown[0] / "onebasin-demo" / "convnet-merged.safetensors")
    seen = conv2d(torch.cat(demo.batches()), merged["conv1.weight"], padding=1)
    torch.testing.assert_close(merged["norm1.running_mean"], seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_second_demo_replaces_the_first(shown: tuple[Path, Ran], capsys: pytest.CaptureFixture[str]) -> None:
    out = shown[0] / "onebasin-demo"
    assert main(["demo", "--seed", "5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert files(out) == WRITTEN
    record = json.loads((out / "record.json").read_text())
    assert record["settings"]["seed"] == 5
    assert {key: document[key] for key in record} == record


def test_the_demo_leaves_a_folder_of_something_else_alone(run: Run, folder: Path) -> None:
    (folder / "onebasin-demo").mkdir()
    (folder / "onebasin-demo" / "record.json").write_text('{"settings": {"verb": "barrier"}}')
    ran = run("demo")
    assert ran.status == 2
    assert "is not empty" in ran.stderr
    assert files(folder / "onebasin-demo") == {"record.json"}


def test_without_scikit_learn_the_demo_says_what_to_install(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    demo.digits.cache_clear()
    before = files(folder)
    ran = run("demo")
    assert ran.status == 2
    assert "pip install onebasin[demo]" in ran.stderr
    assert files(folder) == before


def test_training_depends_on_its_seed_alone() -> None:
    pytest.importorskip("sklearn")
    demo.digits.cache_clear()
    recipe = replace(demo.RECIPES["mlp"], epochs=1)
    state = torch.random.get_rng_state()
    one, same, other = (demo.train(recipe, seed).state_dict()["fc1.weight"] for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
