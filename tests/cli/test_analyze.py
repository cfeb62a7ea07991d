"""`onebasin analyze`: everything its help says, on a user's own files, and nothing on bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from user import Ran, files

from onebasin.analysis import distance, pairwise_curves, spectrum, taylor_barrier
from onebasin.checkpoints import load, save
from onebasin.cli.analyze import names
from onebasin.cli.resolve import load_batches, load_callable, load_model
from onebasin.interpolate import mean
from onebasin.matching import WeightMatching, align
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec
from onebasin.symmetry.discover import permutation_spec

Run = Callable[[str], Ran]
MODEL = "--model net.py:build --inputs 5x3"
CONVNET = "--model net.py:convnet --inputs 3x2x5x5"
TWO, THREE = "a.pt b.safetensors", "a.pt b.safetensors c.pt"


def good(ran: Ran) -> Ran:
    assert ran.status == 0, ran.stderr
    return ran


def models(folder: Path) -> tuple[PermutationSpec, Params, Params, Params]:
    """Return the spec, a, b, and b in the order of a."""
    spec = permutation_spec(load_model("net.py:build"), torch.zeros(5, 3))
    a, b = load(folder / "a.pt"), load(folder / "b.safetensors")
    return spec, a, b, align(spec, a, b, WeightMatching()).permutation.apply(b)


def test_without_data_it_compares_weights(run: Run, folder: Path) -> None:
    results = good(run(f"analyze {TWO} {MODEL} --json")).document["results"]
    spec, a, b, moved = models(folder)
    assert results["models"] == {"A": "a.pt", "B": "b.safetensors"}
    assert results["B"]["distance"] == distance(spec, a, b, moved).to_json()
    merged = mean([a, moved])
    expected = {
        "as trained": (a, b), "matched": (a, moved), "merged and A": (a, merged), "merged and other": (moved, merged),
    }  # fmt: skip
    found = results["B"]["agreement"]
    assert list(found) == list(expected)
    for label, (one, other) in expected.items():
        assert list(found[label]) == ["0", "0.1", "0.2", "0.3", "0.5", "0.7"]
        exact = spectrum(spec, one, other, 0.3)
        assert found[label]["0.3"]["alignment"] == pytest.approx(exact.alignment, rel=1e-9)
        assert found[label]["0.3"]["kept"] == {name: list(pair) for name, pair in exact.kept.items()}
    assert len(results["B"]["spectrum"]["layers"]["0.weight"]["values_a"]) == 3
    assert "curves" not in results["B"]
    assert not {"inputs", "plane", "lines"} & set(results)


def test_the_tables_name_what_they_show(run: Run) -> None:
    ran = good(run(f"analyze {TWO} {MODEL} --gamma 0.25"))
    for words in ("closer by", "values apart", "γ = 0.3", "0.25", "merged and A", "R: agreement"):
        assert words in " ".join(ran.stdout.split())
    assert max(map(len, ran.stdout.splitlines())) <= 100


def test_thresholds_may_be_singular_values(run: Run, folder: Path) -> None:
    line = f"analyze {TWO} {MODEL} --gamma 0.9 --gamma 2 --absolute"
    found = good(run(f"{line} --json")).document["results"]["B"]["agreement"]["matched"]
    spec, a, _, moved = models(folder)
    for gamma in ("0.9", "2"):
        exact = spectrum(spec, a, moved, float(gamma), absolute=True)
        assert found[gamma]["kept"] == {name: list(pair) for name, pair in exact.kept.items()}
        assert found[gamma]["alignment"] == pytest.approx(exact.alignment)
    assert found["0.9"]["kept"] != {name: list(pair) for name, pair in spectrum(spec, a, moved, 0.9).kept.items()}
    told = " ".join(good(run(f"{line} --out why")).stdout.split())
    assert "γ = 2" in told
    assert "by singular value. Values" in told


def test_the_leading_vectors_are_enough_for_a_high_threshold(run: Run, folder: Path) -> None:
    found = good(run(f"analyze {TWO} {MODEL} --gamma 1 --rank 2 --json")).document["results"]["B"]
    spec, a, b, _ = models(folder)
    assert found["agreement"]["as trained"]["1"]["alignment"] == pytest.approx(spectrum(spec, a, b, 1.0).alignment)
    assert len(found["spectrum"]["layers"]["0.weight"]["values_a"]) == 2


def test_of_a_permuted_copy_everything_agrees(run: Run, folder: Path) -> None:
    spec, a, _, _ = models(folder)
    save(folder / "moved.pt", Permutation.random(spec, torch.Generator().manual_seed(1)).apply(a))
    results = good(run(f"analyze a.pt moved.pt {MODEL} --json")).document["results"]["B"]
    assert results["distance"]["reduction_percent"] == pytest.approx(100, abs=1e-3)
    assert results["agreement"]["matched"]["0"]["alignment"] == pytest.approx(1)
    assert results["agreement"]["as trained"]["0"]["alignment"] < 0.9
    assert results["spectrum"]["layers"]["0.weight"]["value_difference"] == pytest.approx(0, abs=1e-6)


def test_with_an_evaluation_it_measures_barriers(run: Run) -> None:
    document = good(run(f"analyze {TWO} {MODEL} --eval net.py:both --points 5 --json")).document["results"]
    barrier = good(run(f"barrier {TWO} {MODEL} --eval net.py:both --points 5 --json")).document["results"]
    assert document["B"]["curves"] == {label: barrier[label] for label in ("naive", "matched")}
    assert "midpoint" in document["B"]["curves"]["matched"]["barriers"]["loss"]
    assert "plane" not in document


def test_with_batches_it_estimates_the_barrier(run: Run, folder: Path) -> None:
    line = f"analyze {TWO} {MODEL} --batches net.py:batches"
    _, a, _, moved = models(folder)
    found = good(run(f"{line} --json")).document["results"]["B"]["taylor"]
    batches = load_batches("net.py:batches", "--batches")
    exact = taylor_barrier(load_model("net.py:build"), a, moved, batches)
    assert found["midpoint"]["full"] == pytest.approx(exact.barrier("full"))
    other = good(run(f"{line} --loss net.py:squared --json")).document["results"]["B"]["taylor"]
    assert other["midpoint"]["full"] != pytest.approx(exact.barrier("full"), rel=1e-3)
    assert "Taylor, stationary" in good(run(line)).stdout


def test_three_models_are_compared_with_each_other_and_span_a_plane(run: Run, folder: Path) -> None:
    ran = good(run(f"analyze {THREE} {MODEL} --eval net.py:loss --points 3 --grid 4 --json"))
    results = ran.document["results"]
    spec, a, _, b = models(folder)
    c = align(spec, a, load(folder / "c.pt"), WeightMatching()).permutation.apply(load(folder / "c.pt"))
    loss = load_callable("net.py:loss", "--eval", ("predict",))
    exact = pairwise_curves(load_model("net.py:build"), {"A": a, "B": b, "C": c}, loss)
    assert list(results["lines"]) == ["A - B", "A - C", "B - C"]
    for (one, other), curve in exact.items():
        midpoint = results["lines"][f"{one} - {other}"]["barriers"]["loss"]["midpoint"]
        assert midpoint == pytest.approx(curve.barrier("midpoint"), abs=1e-6)
    assert len(results["plane"]["metrics"]["loss"]) == 4
    assert {"B", "C"} <= set(results)


def test_figures_and_record_are_written(run: Run, folder: Path) -> None:
    ran = good(
        run(f"analyze {THREE} {MODEL} --eval net.py:loss --points 3 --grid 3 --batches net.py:batches --out why")
    )
    expected = {"alignment", "spectra-B", "spectra-C", "layers-B", "layers-C", "barrier", "inputs", "plane"}
    assert files(folder / "why") == {f"{name}.png" for name in expected} | {"record.json"}
    assert (folder / "why" / "plane.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "why" / "record.json").read_text())
    assert record["settings"]["data"]["evaluate"] == "net.py:loss"
    assert record["results"]["inputs"]["0.weight"]["directions"] == 3
    assert "share of inputs" in ran.stdout
    assert "wrote why/alignment.png" in ran.stdout


def test_convolutions_and_batch_norm(run: Run) -> None:
    line = f"analyze ca.pt cb.pt {CONVNET} --eval net.py:image_loss --points 3 --json"
    interpolated, exact = run(line), run(f"{line} --batchnorm-data net.py:images")
    assert "--batchnorm-data" in good(interpolated).stderr
    assert good(exact).stderr == ""
    curves = [ran.document["results"]["B"]["curves"]["naive"] for ran in (interpolated, exact)]
    assert curves[0] != curves[1]
    assert list(exact.document["results"]["B"]["spectrum"]["layers"]) == ["0.weight", "5.weight"]


def test_it_needs_no_model_where_a_spec_is_enough(run: Run) -> None:
    good(run(f"inspect {MODEL} --out spec.json"))
    results = good(run(f"analyze {TWO} --spec spec.json --json")).document["results"]
    assert results["B"]["distance"] == good(run(f"analyze {TWO} {MODEL} --json")).document["results"]["B"]["distance"]


def test_another_matcher(run: Run) -> None:
    line = f"analyze {TWO} {MODEL} --matcher activation --data net.py:batches --json"
    assert good(run(line)).document["results"]["B"]["alignment"]["matcher"] == "ActivationMatching"


def test_a_dry_run_checks_everything_and_writes_nothing(run: Run, folder: Path) -> None:
    before = files(folder)
    ran = good(run(f"analyze {THREE} {MODEL} --dry-run --out why"))
    assert "2 groups to match" in ran.stdout
    assert run(f"analyze {TWO} --model net.py:wider --inputs 5x3 --dry-run").status == 2
    assert files(folder) == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("analyze a.pt", "1 models to analyze"),
        (f"analyze {TWO} --gamma 1.5", "gamma = 1.5"),
        (f"analyze {TWO} --gamma -1 --absolute", "gamma = -1"),
        (f"analyze {TWO} --rank 0", "rank=0"),
        (f"analyze {TWO} --rank 1", "more singular vectors than were computed"),
        (f"analyze {TWO} --loss net.py:squared", "--loss with --matcher weight"),
        (f"analyze {TWO} --batchnorm-data net.py:images", "--batchnorm-data without --eval"),
        (f"analyze {TWO} --eval net.py:not_finite", "nan"),
        (f"analyze {TWO} --eval net.py:number", "is a int"),
        (f"analyze {TWO} --batches net.py:images", "a batch is a Tensor"),
        (f"analyze {TWO} --batches net.py:failing", "no weights today"),
        (f"analyze {TWO} --batches net.py:batches --loss net.py:no_arguments", "(logits, labels)"),
        (f"analyze {TWO} --batches net.py:batches --loss net.py:nowhere", "nowhere"),
        ("analyze a.pt none.pt", "none.pt does not exist"),
    ],
)
def test_bad_input_is_told_in_three_parts(line: str, words: str, run: Run, folder: Path) -> None:
    before = files(folder)
    ran = run(f"{line} {MODEL} --out why")
    assert (ran.status, ran.stdout) == (2, "")
    for part in ("error: ", "expected: ", "do this: ", words):
        assert part in ran.stderr
    assert files(folder) == before


def test_data_needs_a_model(run: Run) -> None:
    good(run(f"inspect {MODEL} --out spec.json"))
    ran = run(f"analyze {TWO} --spec spec.json --eval net.py:loss")
    assert ran.status == 2
    assert "no model" in ran.stderr


def test_many_models_have_names() -> None:
    found = names(30)
    assert found[:3] == ["A", "B", "C"]
    assert len(set(found)) == 30
