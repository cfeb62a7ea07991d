"""`onebasin demo`: the whole way, on networks small enough to train while one watches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onebasin.analysis import Curve, evaluate_path
from onebasin.batchnorm import recompute_batchnorm
from onebasin.checkpoints import check_target, provenance, save, save_text, write_directory
from onebasin.cli.options import OUT_FLAG
from onebasin.cli.run import RECORD, finished
from onebasin.cli.terminal import COMMAND, Outcome, progress_bars
from onebasin.demo import RECIPES, Recipe, batches, digits, evaluate, train
from onebasin.interpolate import mean
from onebasin.matching import Alignment, WeightMatching, align
from onebasin.params import Params, params_of
from onebasin.progress import Progress
from onebasin.report.record import dumps, record
from onebasin.spec import PermutationSpec
from onebasin.symmetry.discover import permutation_spec

FIGURE, POINTS, INPUTS = "barrier.png", 25, "2x1x8x8"


@dataclass(frozen=True)
class Pair:
    """Two trained networks, and all that followed from them."""

    a: Params
    b: Params
    spec: PermutationSpec
    alignment: Alignment
    merged: Params
    curves: Mapping[str, Curve]


OUT = Path("onebasin-demo")


def demo(*, out: Annotated[Path, OUT_FLAG] = OUT, seed: int = 0, force: bool = False, json: bool = False) -> Outcome:
    """Train, align and merge small networks, and measure the barrier between them, in under a minute.

    Two fully connected and two convolutional networks are trained on 8 x 8 digits, each pair from different seeds.
    Written are the networks, the merged ones, a figure and a record. A second demo replaces what the first one wrote.

    Args:
        out: Where to write.
        seed: Of the first network of each pair; the second has the next one.
        force: Write into a folder that holds something else.
        json: Print one JSON document on stdout instead of tables.
    """
    started = time.perf_counter()
    force = force or _is_demo(out)
    check_target(out, force=force)
    digits()  # before the training, so that a missing scikit-learn is told at once
    with progress_bars() as progress, _one_thread():
        pairs = {name: _pair(recipe, seed, progress) for name, recipe in RECIPES.items()}
    results = {name: _results(pair) for name, pair in pairs.items()}
    entry = record(
        COMMAND.get(), {"verb": "demo", "seed": seed, "recipes": RECIPES}, results, time.perf_counter() - started
    )
    paths = _write(out, pairs, entry, force=force)
    return Outcome({**entry, "wrote": paths}, _view(pairs, paths, entry), json)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: for networks this small more do not help, and where others work too they wait forever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pair(recipe: Recipe, seed: int, progress: Progress) -> Pair:
    """Train two networks, find their symmetries, match, merge, and measure the way between them."""
    a, b = (params_of(train(recipe, number, progress)) for number in (seed, seed + 1))
    model = recipe.build()
    spec = permutation_spec(model, (torch.zeros([int(size) for size in INPUTS.split("x")]),))
    alignment = finished(align(spec, a, b, WeightMatching(), progress=progress))
    moved = alignment.permutation.apply(b)
    statistics = batches() if recipe.batchnorm else None
    merged = recompute_batchnorm(model, mean([a, moved]), batches())

    def told(task: str, done: int, total: int) -> None:
        progress(f"{recipe.build.__name__} {task}", done, total)

    curves = {
        label: evaluate_path(model, a, end, evaluate, POINTS, batchnorm_batches=statistics, progress=told)
        for label, end in (("naive", b), ("matched", moved))
    }
    return Pair(a, b, spec, alignment, merged, curves)


def _is_demo(out: Path) -> bool:
    """Return whether `out` was written by an earlier demo, which a new one may replace."""
    try:
        return bool(loads((out / RECORD).read_text(encoding="utf-8"))["settings"]["verb"] == "demo")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _results(pair: Pair) -> dict[str, Any]:
    return {
        "groups": dict(pair.spec.sizes),
        "log10_symmetries": pair.spec.log10_symmetries(),
        "alignment": pair.alignment.to_json(),
        **{label: curve.to_json() for label, curve in pair.curves.items()},
    }


def _write(out: Path, pairs: Mapping[str, Pair], entry: dict[str, Any], *, force: bool) -> list[Path]:
    from onebasin.report.figures import barrier_figure  # drawing is slow to import

    with write_directory(out, force=force) as folder:
        for name, pair in pairs.items():
            made_by = provenance({"command": entry["command"], "settings": entry["settings"]})
            for label, params in (("a", pair.a), ("b", pair.b), ("merged", pair.merged)):
                save(folder / f"{name}-{label}.safetensors", params, made_by)
        barrier_figure({name: pair.curves for name, pair in pairs.items()}).savefig(folder / FIGURE, dpi=120)
        save_text(folder / RECORD, dumps(entry))
        return [out / file.name for file in sorted(folder.iterdir())]


def _view(pairs: Mapping[str, Pair], paths: list[Path], entry: dict[str, Any]) -> list[RenderableType]:
    found = [_found(name, pair) for name, pair in pairs.items()]
    note = "At the midpoint of the straight line between two networks, on test images they have never seen:"
    names = {name: [path.name for path in paths if path.name.startswith(name)] for name in pairs}
    wrote = [f"wrote {paths[0].parent}/ in {entry['seconds']:.0f} s: {FIGURE}, {RECORD}"]
    wrote += [", ".join(files) for files in names.values()]
    return [*found, "", note, _table(pairs), "\n      ".join(wrote), "", *_next(paths[0].parent)]


def _found(name: str, pair: Pair) -> Text:
    sweeps, seconds = len(pair.alignment.objective) - 1, pair.alignment.seconds
    sizes = " + ".join(map(str, pair.spec.sizes.values()))
    symmetries = f"10^{pair.spec.log10_symmetries():.0f} symmetries proved"
    rest = f"{sizes} units, {symmetries}, matched in {sweeps} sweeps ({seconds:.1f} s)"
    return Text.assemble((f"{name:<8}", "bold"), rest)


def _table(pairs: Mapping[str, Pair]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("", "loss: A", "B", "naive", "matched", "accuracy: A", "B", "naive", "matched"):
        style = {"naive": "red", "matched": "green"}.get(title, "")
        table.add_column(title, justify="right" if title else "left", style=style)
    for name, pair in pairs.items():
        table.add_row(name, *_cells(pair, "loss", "{:.3f}"), *_cells(pair, "accuracy", "{:.1%}"))
    return table


def _cells(pair: Pair, metric: str, form: str) -> list[str]:
    naive, matched = (pair.curves[label].metrics[metric] for label in ("naive", "matched"))
    return [form.format(value) for value in (naive[0], naive[-1], naive[POINTS // 2], matched[POINTS // 2])]


def _next(out: Path) -> list[RenderableType]:
    ends = f"{out}/mlp-a.safetensors {out}/mlp-b.safetensors"
    architecture = f"--model onebasin.demo:mlp --inputs {INPUTS}"
    return [
        Text("Next:", style="bold"),
        Text(f"  onebasin inspect {architecture}"),
        Text(f"  onebasin barrier {ends} \\\n      {architecture} --eval onebasin.demo:evaluate"),
    ]
