"""Every verb does what its help says, on a user's own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import assert_same
from user import Ran, files

from onebasin.activations import Activations
from onebasin.checkpoints import load, load_permutation, load_spec, read, save
from onebasin.cli.resolve import load_batches, load_model
from onebasin.functional import with_params
from onebasin.matching import ActivationMatching
from onebasin.merging import Merge, merge, merge_many, merge_universe
from onebasin.permutation import Permutation
from onebasin.symmetry.discover import permutation_spec

Run = Callable[[str], Ran]
MODEL = "--model net.py:build --inputs 5x3"
CONVNET = "--model net.py:convnet --inputs 3x2x5x5"


def good(ran: Ran) -> Ran:
    assert ran.status == 0, ran.stderr
    return ran


def assert_same_function(one: Path, other: Path, factory: str = "build", shape: tuple[int, ...] = (5, 3)) -> None:
    x, model = torch.randn(shape), load_model(f"net.py:{factory}").eval()
    before, after = (with_params(model, load(path))(x) for path in (one, other))
    torch.testing.assert_close(after, before)


def test_inspect_prints_groups_and_reasons(run: Run) -> None:
    ran = good(run(f"inspect {MODEL}"))
    for words in ("2 groups", "proved in float64", "0.weight[0]", "model input", "model output"):
        assert words in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 100
    assert ran.stderr == ""


def test_inspect_json_is_complete(run: Run) -> None:
    document = good(run(f"inspect {MODEL} --json")).document
    assert document["groups"]["0"] == {
        "size": 11,
        "parents": [],
        "axes": [["0.weight", 0], ["0.bias", 0], ["2.weight", 1]],
    } | {"taps": document["groups"]["0"]["taps"]}
    assert document["proof"] < 1e-10
    assert {why["why"]: why["axes"] for why in document["fixed"]}["model input"] == ["0.weight[1]"]


def test_inspect_explains_a_tensor(run: Run) -> None:
    ran = good(run(f"inspect {MODEL} --tensor 2.weight --tensor 0.weight"))
    assert "axis 0: 2 - moved by 2" in ran.stdout
    assert "fixed: model input" in ran.stdout


def test_inspect_writes_a_spec_that_works_without_the_model(run: Run, folder: Path) -> None:
    good(run(f"inspect {MODEL} --out spec.json"))
    assert set(load_spec(folder / "spec.json").sizes.values()) == {11, 7}
    assert "2 groups" in good(run("inspect --spec spec.json")).stdout
    good(run("align a.pt b.safetensors --spec spec.json --out aligned.pt"))
    assert_same_function(folder / "b.safetensors", folder / "aligned.pt")


@pytest.mark.parametrize(
    ("factory", "inputs"),
    [
        ("build", "net.py:inputs"),
        ("build", "5x3:bfloat16"),
        ("Named", "net.py:named_inputs"),
        ("Named", "x=5x3 --inputs scale=5x1"),
    ],
)
def test_inputs_are_shapes_or_a_callable(factory: str, inputs: str, run: Run) -> None:
    assert "2 groups" in good(run(f"inspect --model net.py:{factory} --inputs {inputs}")).stdout


def test_a_model_without_weights_has_a_spec_that_is_not_proved(run: Run) -> None:
    ran = good(run("inspect --model net.py:without_weights --inputs 5x3"))
    assert "2 groups" in ran.stdout
    assert "not proved" in ran.stdout
    assert good(run("inspect --model net.py:without_weights --inputs 5x3 --json")).document["proof"] is None


def test_a_model_can_be_named_as_a_module_in_the_current_folder(run: Run, folder: Path) -> None:
    (folder / "a_module_of_mine.py").write_text("from torch import nn\nbuild = lambda: nn.Linear(3, 5)\n")
    assert good(run("inspect --model a_module_of_mine:build --inputs 2x3 --json")).document["groups"] == {}


def test_what_a_model_prints_does_not_reach_stdout(run: Run) -> None:
    ran = good(run("inspect --model net.py:loud --inputs 5x3 --json"))
    assert ran.document["model"] == "net.py:loud"
    assert "this must not reach stdout" in ran.stderr


@pytest.mark.parametrize("out", ["aligned.safetensors", "aligned.pt", "aligned"])
def test_align_recovers_a_permuted_copy(out: str, run: Run, folder: Path) -> None:
    good(run(f"inspect {MODEL} --out spec.json"))
    spec = load_spec(folder / "spec.json")
    shuffle = Permutation.random(spec, torch.Generator().manual_seed(3))
    save(folder / "shuffled.pt", shuffle.apply(load(folder / "a.pt")))
    document = good(run(f"align a.pt shuffled.pt {MODEL} --out {out} --json")).document
    stem = folder / out / "onebasin" / "x" if "." not in out else folder / out
    place = {
        name: stem.with_name(f"{name}.json" if "." not in out else f"aligned.{name}.json")
        for name in ("permutation", "spec", "record")
    }
    assert load_permutation(place["permutation"], load_spec(place["spec"])) == shuffle.inverse()
    for name, tensor in load(folder / "a.pt").items():
        torch.testing.assert_close(load(folder / out)[name], tensor, rtol=0, atol=0)
    record = json.loads(place["record"].read_text())
    assert record["results"]["alignment"]["stop"] == "CONVERGED"
    assert {key: document[key] for key in record} == record
    made = json.loads(read(folder / out).metadata["onebasin"])
    assert made["command"] == f"onebasin align a.pt shuffled.pt {MODEL} --out {out} --json"
    assert [source["path"] for source in made["sources"]] == ["a.pt", "shuffled.pt"]


def test_align_keeps_the_function_with_batch_norm(run: Run, folder: Path) -> None:
    ran = good(run(f"align ca.pt cb.pt {CONVNET} --out aligned.pt"))
    assert "wrote aligned.pt" in ran.stdout
    assert_same_function(folder / "cb.pt", folder / "aligned.pt", "convnet", (3, 2, 5, 5))


def test_align_says_what_was_unwrapped(run: Run, folder: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in load(folder / "b.safetensors").items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "training.ckpt")
    ran = good(run(f"align a.pt training.ckpt {MODEL} --out aligned.pt"))
    assert "'state_dict'" in ran.stderr
    assert "'module.' stripped" in ran.stderr
    assert_same_function(folder / "b.safetensors", folder / "aligned.pt")


def test_align_to_a_folder_keeps_configuration_files(run: Run, folder: Path) -> None:
    save(folder / "model_b", load(folder / "b.safetensors"))
    (folder / "model_b" / "config.json").write_text('{"kept": true}')
    good(run(f"align a.pt model_b {MODEL} --out aligned"))
    assert json.loads((folder / "aligned" / "config.json").read_text()) == {"kept": True}
    assert_same_function(folder / "model_b", folder / "aligned")


@pytest.mark.parametrize(
    "line", ["align a.pt b.safetensors", "merge a.pt b.safetensors", "barrier a.pt b.safetensors --eval net.py:loss"]
)
def test_a_dry_run_checks_everything_and_writes_nothing(line: str, run: Run, folder: Path) -> None:
    before = files(folder)
    for out in ("", " --out new"):
        ran = good(run(f"{line} {MODEL} --dry-run{out}"))
        assert "2 groups to match" in ran.stdout
        assert good(run(f"{line} {MODEL} --dry-run{out} --json")).document["dry_run"] is True
    assert run(f"{line} --model net.py:wider --inputs 5x3 --dry-run").status == 2
    assert files(folder) == before


def test_merge_is_the_mean_of_the_aligned_models(run: Run, folder: Path) -> None:
    good(run(f"align a.pt b.safetensors {MODEL} --out b-aligned.pt"))
    good(run(f"align a.pt c.pt {MODEL} --out c-aligned.pt"))
    good(run(f"merge a.pt b.safetensors c.pt {MODEL} --out merged.safetensors"))
    good(run(f"merge a.pt b.safetensors {MODEL} --weights 3 --weights 1 --out weighted.pt"))
    a, b, c = (load(folder / name) for name in ("a.pt", "b-aligned.pt", "c-aligned.pt"))
    merged, weighted = load(folder / "merged.safetensors"), load(folder / "weighted.pt")
    for name in a:
        torch.testing.assert_close(merged[name], (a[name] + b[name] + c[name]) / 3)
        torch.testing.assert_close(weighted[name], (3 * a[name] + b[name]) / 4)


def test_a_model_that_is_named_twice_is_told_twice(run: Run) -> None:
    for method, names in (("reference", ["b.safetensors (model 2)", "b.safetensors (model 3)"]), ("many", None)):
        line = f"merge a.pt b.safetensors b.safetensors {MODEL} --method {method} --out {method}.pt --json"
        alignments = good(run(line)).document["results"]["alignments"]
        assert list(alignments) == (names or ["a.pt", "b.safetensors (model 2)", "b.safetensors (model 3)"])
    shown = good(run(f"analyze a.pt b.safetensors b.safetensors {MODEL}")).stdout
    assert "b.safetensors (model 2)" in shown
    assert "b.safetensors (model 3)" in shown


@pytest.mark.parametrize("inputs", ["--data net.py:images", "--synthetic", "--synthetic --statistic correlation"])
def test_activation_matching_undoes_a_permutation(run: Run, folder: Path, inputs: str) -> None:
    theta, model = load(folder / "ca.pt"), load_model("net.py:convnet")
    spec = permutation_spec(model, torch.zeros(3, 2, 5, 5))
    drawn = Permutation.random(spec, torch.Generator().manual_seed(1))
    save(folder / "moved.pt", drawn.apply(theta))
    good(run(f"align ca.pt moved.pt {CONVNET} --matcher activation {inputs} --out back.pt"))
    assert load_permutation(folder / "back.permutation.json", spec) == drawn.inverse()
    record = json.loads((folder / "back.record.json").read_text())
    assert record["results"]["alignment"]["matcher"] == "ActivationMatching"
    assert record["settings"]["choice"]["matcher"] == "activation"


def test_activation_matching_on_the_way_and_in_a_merge(run: Run, folder: Path) -> None:
    found = "--matcher activation --data net.py:batches"
    document = good(run(f"barrier a.pt b.safetensors {MODEL} --eval net.py:loss --points 3 {found} --json")).document
    assert document["results"]["alignment"]["matcher"] == "ActivationMatching"
    good(run(f"merge a.pt b.safetensors c.pt {MODEL} {found} --method many --out many.pt"))
    good(run(f"merge a.pt b.safetensors c.pt {MODEL} {found} --out merged.pt"))
    matcher = ActivationMatching(Activations(load_model("net.py:build"), load_batches("net.py:batches", "--data")))
    models = [load(folder / name) for name in ("a.pt", "b.safetensors", "c.pt")]
    spec = permutation_spec(load_model("net.py:build"), torch.zeros(5, 3))
    assert_same(load(folder / "merged.pt"), merge(spec, models, matcher).params)
    assert_same(load(folder / "many.pt"), merge_many(spec, models, matcher).params)


@pytest.mark.parametrize(("method", "combined"), [("many", merge_many), ("universe", merge_universe)])
def test_merge_treats_all_models_alike(run: Run, folder: Path, method: str, combined: Callable[..., Merge]) -> None:
    ran = good(run(f"merge a.pt b.safetensors c.pt {MODEL} --method {method} --out merged.pt"))
    assert "mean squared distance to the mean" in ran.stdout
    models = [load(folder / name) for name in ("a.pt", "b.safetensors", "c.pt")]
    spec = permutation_spec(load_model("net.py:build"), torch.zeros(5, 3))
    assert_same(load(folder / "merged.pt"), combined(spec, models).params)
    record = json.loads((folder / "merged.record.json").read_text())
    assert list(record["results"]["alignments"]) == ["a.pt", "b.safetensors", "c.pt"]
    assert record["results"]["spread"] == sorted(record["results"]["spread"], reverse=True)
    assert record["settings"]["method"] == method


def test_merge_recomputes_batch_norm_when_given_data(run: Run, folder: Path) -> None:
    averaged = good(run(f"merge ca.pt cb.pt {CONVNET} --out averaged.pt"))
    assert "--batchnorm-data" in averaged.stderr
    exact = good(run(f"merge ca.pt cb.pt {CONVNET} --out exact.pt --batchnorm-data net.py:images"))
    assert exact.stderr == ""
    images = load_model("net.py:convnet")[0]
    merged = load(folder / "exact.pt")
    images.load_state_dict({"weight": merged["0.weight"], "bias": merged["0.bias"]})
    generator = torch.Generator().manual_seed(0)
    torch.randn(23, 3, generator=generator), torch.randint(0, 2, (23,), generator=generator)
    seen = images(torch.randn(13, 2, 5, 5, generator=generator)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(merged["1.running_mean"], seen.mean(1))
    torch.testing.assert_close(merged["1.running_var"], seen.var(1))
    assert not torch.allclose(load(folder / "averaged.pt")["1.running_mean"], seen.mean(1))


def test_barrier_prints_three_definitions_and_writes_figure_and_record(run: Run, folder: Path) -> None:
    ran = good(run(f"barrier a.pt b.safetensors {MODEL} --eval net.py:both --points 5 --out line"))
    for words in ("loss, naive", "loss, matched", "accuracy, matched", "barrier: mean", "chord", "midpoint"):
        assert words in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 100
    assert files(folder / "line") == {"barrier.png", "record.json"}
    assert (folder / "line" / "barrier.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((folder / "line" / "record.json").read_text())["results"]
    assert results["naive"]["lams"] == [0, 0.25, 0.5, 0.75, 1]
    assert results["naive"]["metrics"]["loss"][0] == results["matched"]["metrics"]["loss"][0]
    assert results["naive"]["metrics"]["loss"][-1] == pytest.approx(results["matched"]["metrics"]["loss"][-1])
    assert results["naive"]["metrics"]["loss"][2] != results["matched"]["metrics"]["loss"][2]


def test_barrier_takes_a_permutation_found_before(run: Run) -> None:
    good(run(f"align a.pt b.safetensors {MODEL} --out b.pt"))
    line = f"barrier a.pt b.safetensors {MODEL} --eval net.py:loss --points 4 --json"
    matched = good(run(line)).document["results"]
    given = good(run(f"{line} --permutation b.permutation.json")).document["results"]
    assert given["matched"] == matched["matched"]
    assert "alignment" not in given
    assert given["matched"]["barriers"]["loss"].keys() == {"mean", "chord"}


def test_barrier_recomputes_batch_norm_when_given_data(run: Run) -> None:
    line = f"barrier ca.pt cb.pt {CONVNET} --eval net.py:image_loss --points 3 --json"
    interpolated, exact = run(line), run(f"{line} --batchnorm-data net.py:images")
    assert "--batchnorm-data" in good(interpolated).stderr
    assert good(exact).stderr == ""
    assert interpolated.document["results"]["naive"] != exact.document["results"]["naive"]


def test_force_writes_over_an_earlier_result(run: Run, folder: Path) -> None:
    good(run(f"align a.pt b.safetensors {MODEL} --out new.pt"))
    assert run(f"align a.pt c.pt {MODEL} --out new.pt").status == 2
    assert_same_function(folder / "b.safetensors", folder / "new.pt")
    good(run(f"align a.pt c.pt {MODEL} --out new.pt --force"))
    assert_same_function(folder / "c.pt", folder / "new.pt")
    good(run(f"barrier a.pt b.safetensors {MODEL} --eval net.py:loss --points 2 --out line"))
    good(run(f"barrier a.pt b.safetensors {MODEL} --eval net.py:loss --points 3 --out line --force"))
    assert len(json.loads((folder / "line" / "record.json").read_text())["results"]["naive"]["lams"]) == 3
