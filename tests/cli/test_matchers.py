"""Every matcher on the command line does what it does in Python, and merged networks are mended as they are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from helpers import assert_same
from torch import Tensor, nn
from torch.nn import functional
from user import Ran

from onebasin.activations import Activations
from onebasin.batchnorm import recompute_batchnorm
from onebasin.best import Best
from onebasin.checkpoints import load, load_permutation
from onebasin.cli.resolve import load_batches, load_inputs, load_model
from onebasin.functional import labels_of, logits_of, with_params
from onebasin.interpolate import lerp
from onebasin.matching import ActivationMatching, Matcher, SinkhornRebasin, StraightThrough, WeightMatching, align
from onebasin.matching.align import NAMED, MatcherName
from onebasin.merging import merge, merge_many
from onebasin.merging.repair import repair
from onebasin.params import params_of
from onebasin.spec import PermutationSpec
from onebasin.symmetry.discover import permutation_spec
from onebasin.synthetic import synthetic_batches

Run = Callable[[str], Ran]
MODEL = "--model net.py:build --inputs net.py:inputs"
CONVNET = "--model net.py:convnet --inputs 3x2x5x5"
DATA = "--data net.py:batches"


def good(ran: Ran) -> Ran:
    assert ran.status == 0, ran.stderr
    return ran


def net(name: str = "build") -> nn.Module:
    return load_model(f"net.py:{name}").eval()


def batches(name: str = "batches") -> Any:
    return load_batches(f"net.py:{name}", "--data")


def spec() -> PermutationSpec:
    return permutation_spec(net(), torch.zeros(5, 3))


def squared(predict: Any, batch: Any) -> Tensor:
    return (logits_of(predict, batch) - functional.one_hot(labels_of(batch), 2)).square().mean()


def synthetic(seed: int = 0) -> list[Any]:
    return synthetic_batches(net(), load_inputs(["net.py:inputs"]), seed=seed)


MATCHERS: dict[str, Callable[[], Matcher]] = {
    "frank-wolfe --seed 3": lambda: WeightMatching(3, solver="frank-wolfe"),
    "sinkhorn --features unit": lambda: WeightMatching(solver="sinkhorn", features="unit"),
    f"activation --statistic correlation {DATA}": lambda: ActivationMatching(
        Activations(net(), batches()), "correlation"
    ),
    f"straight-through --epochs 7 --rate 0.5 {DATA}": lambda: StraightThrough(net(), batches(), epochs=7, rate=0.5),
    f"straight-through --epochs 7 --rate 0.5 --loss net.py:squared {DATA}": lambda: StraightThrough(
        net(), batches(), squared, epochs=7, rate=0.5
    ),
    f"sinkhorn --epochs 3 --seed 2 {DATA}": lambda: SinkhornRebasin(net(), batches(), epochs=3, seed=2),
    f"best {DATA} --seed 2": lambda: Best(net(), batches(), seed=2),
    f"best {DATA} --rounds 0": lambda: Best(net(), batches(), rounds=0),
    f"best {DATA} --loss net.py:squared": lambda: Best(net(), batches(), squared),
    "best --synthetic --rounds 1": lambda: Best(net(), synthetic(), batchnorm=True, rounds=1),
    "activation --synthetic --seed 4": lambda: ActivationMatching(Activations(net(), synthetic(4), batchnorm=True)),
}


@pytest.mark.parametrize("words", MATCHERS, ids=str)
def test_a_matcher_does_what_it_does_in_python(words: str, run: Run, folder: Path) -> None:
    ran = good(run(f"align a.pt b.safetensors {MODEL} --matcher {words} --out new.pt"))
    a, b = load(folder / "a.pt"), load(folder / "b.safetensors")
    expected = align(spec(), a, b, MATCHERS[words]())
    assert load_permutation(folder / "new.permutation.json", spec()) == expected.permutation
    record = json.loads((folder / "new.record.json").read_text())
    told = record["results"]["alignment"]
    assert told["objective"] == pytest.approx(expected.objective)
    assert (told["matcher"], told["settings"]) == (type(expected.matcher).__name__, expected.to_json()["settings"])
    assert record["settings"]["choice"]["matcher"] == words.split()[0]
    assert expected.why() in ran.stdout


def test_every_matcher_has_a_name_on_the_command_line() -> None:
    assert tuple(NAMED) == get_args(MatcherName)
    assert {words.split()[0] for words in MATCHERS} == {*NAMED} - {"weight"}


def test_barrier_and_merge_of_four_take_the_best(run: Run, folder: Path) -> None:
    torch.save({n: t + 0.01 for n, t in load(folder / "c.pt").items()}, folder / "d.pt")
    models = [load(folder / name) for name in ("a.pt", "b.safetensors", "c.pt", "d.pt")]
    line = f"{MODEL} --matcher best {DATA} --rounds 1"
    good(run(f"merge a.pt b.safetensors c.pt d.pt {line} --weights 1 --weights 2 --weights 1 --weights 1 --out new.pt"))
    expected = merge(spec(), models, Best(net(), batches(), rounds=1), weights=(1, 2, 1, 1))
    assert_same(load(folder / "new.pt"), expected.params)
    good(run(f"merge a.pt b.safetensors c.pt {line} --method many --max-rounds 1 --out many.pt"))
    many = merge_many(spec(), models[:3], Best(net(), batches(), rounds=1), max_rounds=1)
    assert_same(load(folder / "many.pt"), many.params)
    curve = good(run(f"barrier a.pt b.safetensors {line} --eval net.py:loss --points 3 --json")).document["results"]
    middle = lerp(models[0], expected.permutations[1].apply(models[1]), 0.5)
    inputs, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    loss = functional.cross_entropy(with_params(net(), middle)(inputs), labels).item()
    assert curve["matched"]["metrics"]["loss"][1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("flag", ["--recompute-batchnorm --data net.py:images", "--batchnorm-data net.py:images"])
def test_batch_norm_is_recomputed_on_either_data(flag: str, run: Run, folder: Path) -> None:
    a, b, model = load(folder / "ca.pt"), load(folder / "cb.pt"), net("convnet")
    plain = merge(permutation_spec(model, torch.zeros(3, 2, 5, 5)), [a, b]).params
    ran = good(run(f"merge ca.pt cb.pt {CONVNET} {flag} --out new.pt"))
    assert "batch-norm" not in ran.stderr
    assert_same(load(folder / "new.pt"), recompute_batchnorm(model, plain, batches("images")))


def test_best_looks_at_the_repaired_midpoint_if_that_is_what_is_made(run: Run, folder: Path) -> None:
    a, b = (load(folder / name) for name in ("a.pt", "b.safetensors"))
    best = Best(net(), batches(), rounds=1, repair=True)
    merged = merge(spec(), [a, b], best)
    assert merged.permutations[1] != align(spec(), a, b, replace(best, repair=False)).permutation
    line = f"a.pt b.safetensors {MODEL} --matcher best {DATA} --rounds 1 --repair"
    good(run(f"merge {line} --out new.pt"))
    ends = [a, merged.permutations[1].apply(b)]
    assert_same(load(folder / "new.pt"), repair(net(), spec(), merged.params, ends, batches())[0])
    curve = good(run(f"barrier {line} --eval net.py:loss --points 3 --json")).document["results"]
    assert curve["alignment"]["objective"] == list(merged.alignments[0].objective)


def test_merged_units_are_repaired(run: Run, folder: Path) -> None:
    models, model = [load(folder / name) for name in ("a.pt", "b.safetensors", "c.pt")], net()
    merged = merge(spec(), models, weights=(1, 2, 3))
    ends = [p.apply(m) for p, m in zip(merged.permutations, models, strict=True)]
    expected, left = repair(model, spec(), merged.params, ends, batches(), (1, 2, 3))
    assert left == {}
    weights = "--weights 1 --weights 2 --weights 3"
    good(run(f"merge a.pt b.safetensors c.pt {MODEL} {weights} --repair {DATA} --out new.pt"))
    assert_same(load(folder / "new.pt"), expected)
    assert not torch.equal(expected["0.weight"], merged.params["0.weight"])
    assert json.loads((folder / "new.record.json").read_text())["results"]["not_repaired"] == {}


def test_what_is_not_repaired_is_told(run: Run, folder: Path) -> None:
    (folder / "bare.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))\n"
    )
    for name in ("one.pt", "other.pt"):
        torch.save(params_of(load_model("bare.py:build")), folder / name)
    ran = good(run(f"merge one.pt other.pt --model bare.py:build --inputs 2x3 --repair {DATA} --out new.pt"))
    assert "not repaired: 0: has no bias" in ran.stderr
    line = f"barrier one.pt other.pt --model bare.py:build --inputs 2x3 --repair {DATA} --eval net.py:loss --points 3"
    assert "not repaired: 0: has no bias" in good(run(line)).stderr


def test_the_way_between_repaired_networks(run: Run, folder: Path) -> None:
    line = f"barrier a.pt b.safetensors {MODEL} --eval net.py:loss --points 3 --json {DATA} --matcher activation"
    plain, mended = (good(run(f"{line}{flag}")).document["results"] for flag in ("", " --repair"))
    for label in ("naive", "matched"):
        one, other = plain[label]["metrics"]["loss"], mended[label]["metrics"]["loss"]
        assert other[::2] == pytest.approx(one[::2], rel=1e-5)
        assert other[1] != pytest.approx(one[1], rel=1e-3)
    a, b, model = load(folder / "a.pt"), load(folder / "b.safetensors"), net()
    expected, _ = repair(model, spec(), lerp(a, b, 0.5), [a, b], batches())
    inputs, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    loss = functional.cross_entropy(with_params(model, expected)(inputs), labels).item()
    assert mended["naive"]["metrics"]["loss"][1] == pytest.approx(loss, rel=1e-5)


def test_what_changes_nothing_is_told(run: Run, folder: Path) -> None:
    def stderr(line: str) -> str:
        return good(run(line)).stderr

    words, loss = "changed nothing", "--eval net.py:loss --points 3"
    given = "--recompute-batchnorm --data net.py:batches"
    assert words in stderr(f"merge a.pt b.safetensors {MODEL} {given} --out new.pt")
    assert words in stderr(f"barrier a.pt b.safetensors {MODEL} {given} {loss}")
    assert words in stderr(f"analyze a.pt b.safetensors {MODEL} --batchnorm-data net.py:batches {loss} --grid 3")
    assert words not in stderr(f"merge ca.pt cb.pt {CONVNET} --recompute-batchnorm --data net.py:images --out other.pt")
    good(run(f"align a.pt b.safetensors {MODEL} --out moved.pt"))
    line = f"barrier a.pt b.safetensors {MODEL} {loss} --permutation moved.permutation.json"
    assert words not in stderr(line)
    for flag in ("--matcher frank-wolfe", "--max-sweeps 3", "--features unit"):
        ran = run(f"{line} {flag}")
        assert (ran.status, "--permutation beside" in ran.stderr) == (2, True)
