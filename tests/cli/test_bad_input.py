"""Bad input: a clear error in three parts, exit status 2, no traceback, no file written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from user import Ran, files

from onebasin.checkpoints import load
from onebasin.cli.main import main
from onebasin.cli.merge import METHODS
from onebasin.cli.resolve import load_model

Run = Callable[[str], Ran]
MODEL = "--model net.py:build --inputs 5x3"

MASKED = """
import torch
from torch import nn

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 11), nn.ReLU(), nn.Linear(11, 2))
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))

    def forward(self, x):
        return (self.net(x)[:, None] + self.mask).softmax(-1).mean(1)
"""


@pytest.fixture
def refused(run: Run, folder: Path) -> Callable[..., Ran]:
    """Return a function that runs a line, and checks that it is refused, says `words`, and writes nothing."""

    def call(line: str, *words: str) -> Ran:
        before = files(folder)
        ran = run(line)
        assert (ran.status, ran.stdout) == (2, ""), ran
        assert "Traceback" not in ran.stderr
        for word in ("error: ", "expected: ", "do this: ", *words):
            assert word in ran.stderr
        assert files(folder) == before
        return ran

    return call


Refused = Callable[..., Ran]


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Write the tensors of a.pt to `path`, some replaced (`_` stands for "."), or left out if None."""
    named = {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    changed = {**load(path.parent / "a.pt"), **named}
    torch.save({name: tensor for name, tensor in changed.items() if tensor is not None}, path)


@pytest.mark.parametrize("verb", ["align", "merge", "barrier --eval net.py:loss"])
def test_models_that_do_not_fit_each_other(verb: str, refused: Refused, folder: Path) -> None:
    change(folder / "bad.pt", **{"0_weight": torch.ones(13, 3), "4_bias": None, "5_extra": torch.ones(2)})
    words = ("1 missing: 4.bias", "1 unexpected: 5.extra", "1 misshapen: 0.weight (13, 3)", "bad.pt")
    refused(f"{verb} a.pt bad.pt {MODEL} --out new", *words)
    refused(f"{verb} bad.pt a.pt {MODEL} --out new", *words)


def test_models_of_another_architecture(refused: Refused) -> None:
    refused("align a.pt b.safetensors --model net.py:wider --inputs 5x3 --out new", "misshapen", "0.weight", "0.bias")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, refused: Refused, folder: Path) -> None:
    change(folder / "bad.pt", **{"2_bias": torch.full((7,), value)})
    refused(f"align a.pt bad.pt {MODEL} --out new", "not finite", "2.bias", "bad.pt")


def test_inputs_that_are_not_finite(refused: Refused, folder: Path) -> None:
    more = "\ndef bad():\n    return [IMAGES, IMAGES * float('nan')]\n"
    (folder / "net.py").write_text((folder / "net.py").read_text() + more)
    line = "merge ca.pt cb.pt --model net.py:convnet --inputs 3x2x5x5 --data net.py:bad --out o.pt"
    refused(f"{line} --recompute-batchnorm", "not finite from batch 2 on, of 1 layers: 1")
    refused(f"{line} --repair", "not finite from batch 2 on, of 2 layers: 0, 1")


def test_weights_that_are_not_finite_are_never_written(refused: Refused, run: Run, folder: Path) -> None:
    for name in ("a.pt", "b.safetensors"):
        torch.save({key: tensor.half() for key, tensor in load(folder / name).items()}, folder / f"half-{name[0]}.pt")
    line = f"merge half-a.pt half-b.pt {MODEL} --out o.pt"
    words = "the weights to be written hold values that are not finite, in 6 tensors: 0.weight,"
    refused(f"{line} --weights 1000001 --weights -1000000", words)
    assert run(line).status == 0


def test_buffers_that_are_infinite_on_purpose_are_written(run: Run, folder: Path) -> None:
    (folder / "masked.py").write_text(MASKED)
    for number in range(2):
        torch.save(load_model("masked.py:Masked").state_dict(), folder / f"m{number}.pt")
    for verb in ("align", "merge"):
        assert run(f"{verb} m0.pt m1.pt --model masked.py:Masked --inputs 5x3 --out {verb}.pt").status == 0
        assert torch.equal(load(folder / f"{verb}.pt")["mask"], load(folder / "m0.pt")["mask"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool])
def test_weights_that_are_integers(dtype: torch.dtype, refused: Refused, folder: Path) -> None:
    change(folder / "bad.pt", **{"2_weight": torch.ones(7, 11, dtype=dtype)})
    for verb in ("align", "merge", "merge --method universe", "barrier --eval net.py:loss"):
        refused(f"{verb} a.pt bad.pt {MODEL} --out new", "bad.pt hold integers", f"2.weight {str(dtype)[6:]}")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 3", "--epochs with --matcher weight"),
        ("--matcher sinkhorn --rate 0.1", "--rate with --matcher sinkhorn"),
        ("--matcher frank-wolfe --rounds 3", "--rounds with --matcher frank-wolfe"),
        ("--statistic correlation", "--matcher activation"),
        ("--matcher straight-through --data net.py:batches --rate -1", "--rate -1"),
        ("--matcher frank-wolfe --solver sinkhorn", "--solver with --matcher frank-wolfe"),
        ("--matcher best --data net.py:batches --features unit", "--features with --matcher best"),
        ("--matcher activation --data net.py:batches --solver sinkhorn", "--solver with --matcher activation"),
        ("--matcher activation --synthetic --max-sweeps 3", "--max-sweeps with --matcher activation"),
        ("--matcher sinkhorn --data net.py:batches --features unit", "--features with --matcher sinkhorn and --data"),
        ("--matcher activation --data net.py:batches --seed 1", "--seed with --matcher activation"),
        ("--seed -1", "--seed -1"),
        ("--seed 99999999999999999999", "below 2^63"),
        ("--max-sweeps -1", "--max-sweeps -1"),
    ],
)
def test_settings_without_effect_or_out_of_range(flags: str, words: str, refused: Refused) -> None:
    for verb in ("align", "merge", "barrier --eval net.py:loss"):
        refused(f"{verb} a.pt b.safetensors {MODEL} {flags} --out new", words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("[]", "gives no batches"),
        ("net.X", "gives a Tensor"),
        ("{'x': net.X}", "gives a dict"),
        ("[(net.X.numpy(), net.Y)]", "a tuple of ndarray, Tensor"),
        ("[(net.X.to(dtype=net.torch.uint8), net.Y)]", "raised RuntimeError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("matcher", ["activation", "straight-through --epochs 1", "sinkhorn --epochs 1", "best"])
def test_data_that_are_no_batches_of_the_model(
    data: str, words: str, matcher: str, refused: Refused, folder: Path
) -> None:
    (folder / "given.py").write_text(f"import net\n\ndef given():\n    return {data}\n")
    refused(f"align a.pt b.safetensors {MODEL} --matcher {matcher} --data given.py:given --out new", words)


SECONDS = re.compile(r'"seconds": [^,}]+')
READING_BATCHES = [
    "align --matcher activation --data",
    "align --matcher straight-through --epochs 1 --data",
    "align --matcher sinkhorn --epochs 1 --data",
    "align --matcher best --data",
    "merge --repair --data",
    "barrier --repair --points 3 --eval net.py:loss --data",
    "analyze --batches",
]


@pytest.mark.parametrize("flags", READING_BATCHES)
def test_a_loader_that_does_not_know_its_length(flags: str, run: Run, refused: Refused, folder: Path) -> None:
    """It has a method for it, which raises TypeError when it is called."""
    (folder / "stream.py").write_text(
        "import net\nfrom torch.utils.data import DataLoader, IterableDataset\n\n"
        "class Rows(IterableDataset):\n"
        "    def __init__(self, rows): self.rows = rows\n"
        "    def __iter__(self): return iter(self.rows)\n\n"
        "def few(): return DataLoader(Rows(list(zip(net.X, net.Y))), batch_size=11)\n"
        "def none(): return DataLoader(Rows([]), batch_size=11)\n"
        "def listed(): return list(few())\n"
    )
    verb, _, rest = flags.partition(" ")
    line = f"{verb} a.pt b.safetensors {MODEL} {rest} stream.py:"
    few, listed = (run(f"{line}{name} --json --out {name} --force") for name in ("few", "listed"))
    assert (few.status, listed.status) == (0, 0), few.stderr + listed.stderr
    found, expected = (json.dumps(ran.document["results"]) for ran in (few, listed))
    assert SECONDS.sub("", found).replace("few", "listed") == SECONDS.sub("", expected)
    refused(f"{line}none --out new", "at least one batch")


@pytest.mark.parametrize("flags", READING_BATCHES)
def test_which_batch_does_not_fit(flags: str, refused: Refused, folder: Path) -> None:
    two = "[(net.X, net.Y), (net.IMAGES, net.Y[:13])]"
    (folder / "given.py").write_text(f"import net\n\ndef given():\n    return {two}\n")
    verb, _, rest = flags.partition(" ")
    words = f"at batch 2 of {flags.rpartition(' ')[2]} given.py:given, of shape (13, 2, 5, 5), (13,)"
    ran = refused(f"{verb} a.pt b.safetensors {MODEL} {rest} given.py:given --out new", words)
    assert "example inputs" not in ran.stderr


@pytest.mark.parametrize("flags", READING_BATCHES)
def test_which_batch_has_no_samples(flags: str, refused: Refused, folder: Path) -> None:
    (folder / "given.py").write_text(
        "import net\n\ndef given():\n    return [(net.X, net.Y), (net.X[:0], net.Y[:0])]\n"
    )
    verb, _, rest = flags.partition(" ")
    words = "a batch without samples", f"at batch 2 of {flags.rpartition(' ')[2]} given.py:given, of shape (0, 3), (0,)"
    refused(f"{verb} a.pt b.safetensors {MODEL} {rest} given.py:given --out new", *words)


def test_a_pickled_module(refused: Refused, folder: Path) -> None:
    torch.save(nn.Linear(3, 5), folder / "bad.pt")
    refused(f"align a.pt bad.pt {MODEL} --out new", "torch.nn.modules.linear.Linear", "model.state_dict()")


@pytest.mark.parametrize("name", ["b.safetensors", "a.pt"])
def test_a_truncated_file(name: str, refused: Refused, folder: Path) -> None:
    cut = folder / f"cut{Path(name).suffix}"
    cut.write_bytes((folder / name).read_bytes()[:-100])
    refused(f"merge a.pt {cut.name} {MODEL} --out new", "is damaged", "download it again")


def test_a_file_that_is_not_there(refused: Refused) -> None:
    refused(f"align a.pt none.pt {MODEL} --out new", "none.pt does not exist")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere.at.all:build", ("ModuleNotFoundError", "nowhere")),
        ("nowhere.py:build", ("no file nowhere.py",)),
        ("broken.py:build", ("SyntaxError",)),
        ("net.py:biuld", ("has no 'biuld'", "build")),
        ("net.py", ("package.module:name",)),
        ("net.py:failing", ("ValueError", "no weights today", "net.py:")),
        ("net.py:nothing", ("returned a NoneType",)),
        ("net.py:number", ("is a int",)),
    ],
)
def test_a_factory_that_does_not_work(model: str, words: tuple[str, ...], refused: Refused, folder: Path) -> None:
    (folder / "broken.py").write_text("def build(:\n")
    refused(f"align a.pt b.safetensors --model {model} --inputs 5x3 --out new", *words)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ("5x4", ("rejects its inputs", "(5, 4)", "correct the example inputs")),
        ("5x3 --inputs 5x3", ("rejects its inputs", "correct the example inputs")),
        ("0x3", ("--inputs 0x3", "no elements", "(0, 3)", "a batch of 2 or more")),
        ("net.py:nobody", ("--inputs net.py:nobody", "(0, 3)")),
        ("5xq", ("5xq", "2x3x32x32")),
        ("5x3:int65", ("5x3:int65",)),
        ("x=5x3 --inputs 5x1", ("all of them with a name or none",)),
        ("net.py:failing", ("no weights today",)),
        ("net.py:none_such", ("none_such",)),
    ],
)
def test_inputs_that_do_not_fit(inputs: str, words: tuple[str, ...], refused: Refused) -> None:
    refused(f"inspect --model net.py:build --inputs {inputs} --out spec.json", *words)


def test_no_model_no_inputs_no_place(refused: Refused) -> None:
    refused("inspect", "neither a model nor a spec")
    refused("inspect --model net.py:build", "--inputs missing")
    refused(f"align a.pt b.safetensors {MODEL}", "--out PATH", "--dry-run")
    refused(f"merge a.pt {MODEL} --out new", "1 models to merge")
    refused("barrier a.pt b.safetensors --eval net.py:loss", "no model")


def test_a_name_spelt_wrong_is_told_the_nearest(refused: Refused, folder: Path) -> None:
    nearest = "one of: convnet, constant, build, wider, ", "do this: did you mean convnet or constant?"
    refused("inspect --model net.py:convent --inputs 3x2x5x5", *nearest)
    named = "one of: batches, ", "did you mean batches"
    refused(f"align a.pt b.safetensors {MODEL} --matcher activation --data net.py:bathces --out new", *named)
    own = "one of: build, wider, convnet", "do this: correct the name"
    assert "torch, " not in refused("inspect --model net.py:qqq --inputs 5x3", *own).stderr


def test_only_places_in_the_users_code_are_named(refused: Refused, folder: Path) -> None:
    def told(line: str, *words: str) -> str:
        return refused(f"{line} --out new", *words).stderr

    (folder / "given.py").write_text(
        "import json, net, importlib\n\n"
        "def doubles(): return [net.X.double()]\n"
        "def numbers(): return [1, 2]\n"
        "def late(): json.loads('')\n"
    )
    (folder / "importing.py").write_text("\nimport none_such\n")
    matching = f"align a.pt b.safetensors {MODEL} --matcher activation --data given.py"
    assert "(at " not in told("inspect --model none_such:build --inputs 5x3", "No module named 'none_such'\n")
    told("inspect --model importing:build --inputs 5x3", "No module named 'none_such' (at ", "importing.py:2)")
    told(f"{matching}:late", "JSONDecodeError", "given.py:5)")
    assert "eval_with_key" not in told(f"{matching}:doubles", "same dtype, but got Double and Float, at batch 1 of")
    told(f"{matching}:numbers", "a batch is a int, at batch 1 of --data given.py:numbers\n")


def test_a_model_that_cannot_be_traced(refused: Refused) -> None:
    refused("inspect --model net.py:Branching --inputs 5x3 --out spec.json", "cannot trace Branching", "net.py:")


@pytest.mark.parametrize(
    "line", ["align a.pt b.safetensors", "merge a.pt b.safetensors", "barrier a.pt b.safetensors --eval net.py:loss"]
)
def test_a_folder_that_is_not_empty(line: str, refused: Refused, folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("mine")
    refused(f"{line} {MODEL} --out full", "full is not empty", "thesis.txt", "--force")


def test_files_that_exist(refused: Refused, folder: Path) -> None:
    refused(f"align a.pt b.safetensors {MODEL} --out c.pt", "c.pt exists", "--force")
    (folder / "new.record.json").write_text("{}")
    refused(f"align a.pt b.safetensors {MODEL} --out new.pt", "new.record.json exists")
    refused(f"inspect {MODEL} --out net.py", "net.py exists")


def test_a_spec_that_fails_its_proof_is_not_used(refused: Refused, run: Run, folder: Path) -> None:
    assert run(f"inspect {MODEL} --out spec.json").status == 0
    spec = json.loads((folder / "spec.json").read_text())
    spec["tensors"]["2.bias"] = [{"size": 7, "why": "left where it is, though its units move"}]
    (folder / "wrong.json").write_text(json.dumps(spec))
    refused(
        f"align a.pt b.safetensors {MODEL} --spec wrong.json --out new.pt", "changes the outputs", "on their own: 2"
    )


def test_specs_and_permutations_that_do_not_fit(refused: Refused, run: Run, folder: Path) -> None:
    assert run("inspect --model net.py:wider --inputs 5x3 --out wider.json").status == 0
    refused(f"inspect {MODEL} --spec wider.json", "misshapen")
    refused("align a.pt b.safetensors --spec wider.json --out new", "misshapen")
    refused("align a.pt b.safetensors --spec none.json --out new", "none.json cannot be read")
    refused("align a.pt b.safetensors --spec net.py --out new", "not JSON")
    line = f"barrier a.pt b.safetensors {MODEL} --eval net.py:loss --out new"
    refused(f"{line} --permutation wider.json", "permutation")
    refused(f"inspect {MODEL} --tensor 9.weight", "no tensor is called '9.weight'")


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        ("net.py:no_arguments", ("no_arguments()", "(predict)")),
        ("net.py:squared", ("squared(logits, labels)", "(predict)")),
        ("net.py:text", ("returned 'low'",)),
        ("net.py:not_finite", ("lam = 0", "nan")),
        ("net.py:image_loss", ("RuntimeError", "net.py:")),
        ("net.py:number", ("is a int",)),
    ],
)
def test_an_evaluation_that_does_not_work(evaluate: str, words: tuple[str, ...], refused: Refused) -> None:
    refused(f"barrier a.pt b.safetensors {MODEL} --eval {evaluate} --out new", *words)


@pytest.mark.parametrize("points", ["0", "1", "-3"])
def test_too_few_points_are_refused_before_matching(
    points: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onebasin.cli.barrier.align", lambda *_, **__: pytest.fail("it was matched"))
    monkeypatch.setattr("onebasin.cli.analyze.align", lambda *_, **__: pytest.fail("it was matched"))
    for verb in ("barrier", "analyze"):
        line = f"{verb} a.pt b.safetensors {MODEL} --eval net.py:loss --points={points} --out new"
        refused(line, f"a path of {points} points", "at least the two ends")


def test_batches_that_do_not_fit(refused: Refused) -> None:
    convnet = "--model net.py:convnet --inputs 3x2x5x5"
    refused(f"merge ca.pt cb.pt {convnet} --batchnorm-data net.py:inputs --out new", "gives a Tensor")
    refused(f"merge ca.pt cb.pt {convnet} --batchnorm-data net.py:number --out new", "a int")
    refused(f"merge a.pt b.safetensors {MODEL} --weights 1 --out new", "2 models and the weights")
    refused(f"merge a.pt b.safetensors {MODEL} --max-rounds 3 --out new", "--max-rounds with --method reference")
    refused(f"merge a.pt b.safetensors {MODEL} --method many --max-rounds 0 --out new", "at least one round")
    refused(f"merge a.pt b.safetensors {MODEL} --data net.py:batches --out new", "--data with --matcher weight")
    negative = "--weights 2 --weights=-1"
    refused(f"merge a.pt b.safetensors {MODEL} {negative} --repair --data net.py:batches --out new", "negative")
    for flag in ("--repair", "--recompute-batchnorm"):
        for verb in ("merge", "barrier --eval net.py:loss"):
            line = f"{verb} ca.pt cb.pt {convnet} {flag}"
            refused(f"{line} --out new", f"{flag} without inputs", "--data or --batchnorm-data")
            refused(f"{line} --data net.py:number --out new", "a int")
    refused(f"merge ca.pt cb.pt {convnet} --repair --data net.py:batches --out new", "--data net.py:batches raised")
    words = "without samples", "at batch 1 of --data net.py:no_images, of shape (0, 2, 5, 5)"
    refused(f"merge ca.pt cb.pt {convnet} --recompute-batchnorm --data net.py:no_images --out new", *words)


@pytest.mark.parametrize(
    "line",
    [
        "align a.pt",
        "algin a.pt b.safetensors",
        "align a.pt b.safetensors --sed 3",
        "align a.pt b.safetensors --seed three",
        "barrier a.pt b.safetensors --out new",
        "inspect --tensor",
    ],
)
def test_wrong_usage(line: str, run: Run, folder: Path) -> None:
    before = files(folder)
    ran = run(line)
    assert (ran.status, ran.stdout) == (2, "")
    assert "Error" in ran.stderr
    assert files(folder) == before


def test_the_installed_program_fails_in_the_same_way(folder: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("onebasin")),
        "align",
        "a.pt",
        "none.pt",
        *MODEL.split(),
        "--out",
        "new",
    ]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: none.pt does not exist")


@pytest.mark.parametrize("verb", ["align", "merge", "barrier --eval net.py:loss"])
@pytest.mark.parametrize("matcher", ["activation", "best"])
def test_matching_without_inputs_or_with_wrong_ones(refused: Refused, verb: str, matcher: str) -> None:
    line = f"{verb} a.pt b.safetensors {MODEL} --out new"
    refused(f"{line} --matcher {matcher}", f"{matcher} without inputs", "--data", "--synthetic")
    refused(f"{line} --matcher {matcher} --data net.py:batches --synthetic", "both --data and --synthetic")
    refused(f"{line} --synthetic", "--matcher activation or best")
    refused(f"{line} --matcher frank-wolfe --data net.py:batches", "--matcher activation or straight-through")
    refused(f"{line} --matcher {matcher} --data net.py:nowhere", "--data 'net.py:nowhere'")
    refused(f"{line} --matcher {matcher} --data net.py:images", "(6, 2, 5, 5)")


def test_following_a_loss_that_does_not_work(refused: Refused, folder: Path) -> None:
    (folder / "unlabelled.py").write_text("import net\n\ndef given():\n    return [net.X]\n")
    line = f"align a.pt b.safetensors {MODEL} --out new"
    given = f"{line} --data net.py:batches"
    refused(f"{line} --matcher straight-through", "without inputs", "--data")
    refused(f"{line} --matcher straight-through --synthetic", "--synthetic with --matcher straight-through")
    refused(f"{line} --loss net.py:squared", "--loss with --matcher weight")
    for matcher in ("straight-through --epochs 1", "sinkhorn --epochs 1", "best"):
        refused(f"{given} --matcher {matcher} --loss net.py:loss", "loss(predict)", "(logits, labels)")
        refused(f"{given} --matcher {matcher} --loss net.py:broken", "--loss net.py:broken raised KeyError", "net.py:")
        refused(f"{given} --matcher {matcher} --loss net.py:infinite", "inf")
    for matcher in ("straight-through", "sinkhorn"):
        refused(f"{given} --matcher {matcher} --loss net.py:constant", "cannot be differentiated")
        refused(f"{line} --matcher {matcher} --data net.py:images", "--data net.py:images raised RuntimeError")
        refused(f"{line} --matcher {matcher} --data unlabelled.py:given", "a batch is a Tensor", "labels")
    refused(f"{line} --data net.py:batches --matcher straight-through --epochs 0", "epochs=0")
    refused(f"{given} --matcher best --rounds -1", "rounds=-1")


def test_activation_matching_without_a_model(refused: Refused, run: Run) -> None:
    run(f"inspect {MODEL} --out spec.json")
    refused("align a.pt b.safetensors --spec spec.json --matcher activation --synthetic --out new", "no model")
    refused(
        "align a.pt b.safetensors --spec spec.json --model net.py:build --matcher activation --synthetic --out new",
        "--inputs missing",
    )


def test_ctrl_c_ends_with_a_line_and_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(METHODS, "reference", interrupted)
    before = files(folder)
    ran = run(f"merge a.pt b.safetensors {MODEL} --out new")
    assert (ran.status, ran.stdout, ran.stderr) == (130, "", "interrupted: nothing was written\n")
    assert files(folder) == before


def test_ctrl_c_in_matching_keeps_the_best_permutation_so_far(
    folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    def interrupted(task: str, done: int, total: int) -> None:
        if task == "matching" and not pressed:
            pressed.append(task)
            raise KeyboardInterrupt

    pressed: list[str] = []
    for verb in ("align", "merge"):
        monkeypatch.setattr(f"onebasin.cli.{verb}.progress_bars", lambda: nullcontext(interrupted))
    for line in ("align a.pt b.safetensors", "merge a.pt b.safetensors", "merge a.pt b.safetensors c.pt --method many"):
        ran = run(f"{line} {MODEL} --out new.pt --force")
        assert ran.status == 130
        assert "best permutation" in ran.stdout
        assert "wrote new.pt" in ran.stdout
        assert set(load(folder / "new.pt")) == set(load(folder / "a.pt"))
        assert pressed.pop() == "matching"


def test_safetensors_with_other_names(refused: Refused, folder: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(3)}, folder / "bad.safetensors")
    refused(f"align a.pt bad.safetensors {MODEL} --out new", "6 missing", "1 unexpected: x")


def test_a_bug_is_no_wrong_input(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("onebasin.cli.align.read_for", bug)
    with pytest.raises(ZeroDivisionError):
        main(f"align a.pt b.safetensors {MODEL} --out new".split())
