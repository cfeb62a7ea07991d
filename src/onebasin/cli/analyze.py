"""`onebasin analyze`: why networks merge or do not, from their weights alone and, with data, from their losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import RenderableType
from rich.text import Text
from torch import nn
from torch.nn.functional import cross_entropy

from onebasin.checkpoints import check_target, write_directory
from onebasin.cli.comparing import Derivatives, Pair, Together, Vectors, compare, measure_together
from onebasin.cli.matcher import CHOICE, ChoiceFlags
from onebasin.cli.measuring import Line, evaluation
from onebasin.cli.options import (
    ARCHITECTURE,
    MATCHING,
    OUTPUT,
    ArchitectureFlags,
    MatchingFlags,
    OutputFlags,
    has_batchnorm,
    read_for,
    ready_for,
)
from onebasin.cli.resolve import load_batches, load_callable
from onebasin.cli.run import RECORD, Run, finished, wrote
from onebasin.cli.terminal import Outcome, labels, note, progress_bars
from onebasin.errors import UsageError
from onebasin.matching import align
from onebasin.report.record import dumps
from onebasin.report.tables import alignment_table, barrier_legend, barrier_table
from onebasin.report.tables_analysis import (
    distance_table,
    inputs_table,
    legend,
    pairs_table,
    sweep_table,
    taylor_table,
    vectors_table,
)
from onebasin.symmetry.export import Outputs

VectorFlags = Annotated[Vectors, Parameter(name="*", group="Singular vectors")]
VECTORS = Vectors()


@dataclass(frozen=True)
class Data:
    """What is measured on data.

    Args:
        evaluate: Function of `predict`, as for `onebasin barrier`; with it barriers are measured, and for three or more
            models those between every two, and the plane through the first three.
        points: Number of points on each line, ends included; an odd number has the midpoint among them.
        grid: Number of points along either axis of the plane.
        batchnorm_data: Callable that returns batches of inputs; batch-norm statistics are recomputed at every point.
        batches: Callable that returns batches of (inputs, labels); with it the barrier is estimated from derivatives,
            and the inputs of every layer of the first model are laid along its singular vectors. The loss is --loss, or
            cross entropy.
    """

    evaluate: Annotated[str | None, Parameter(name="--eval")] = None
    points: int = 25
    grid: int = 17
    batchnorm_data: str | None = None
    batches: str | None = None

    def check(self) -> None:
        """Raise `UsageError` if a flag is given without the one it belongs to."""
        if self.batchnorm_data is not None and self.evaluate is None:
            raise UsageError("--batchnorm-data without --eval", "something to evaluate", "add --eval, or leave it out")

    def line(self, model: nn.Module | None) -> Line | None:
        """Return how lines between networks are measured; None without an evaluation."""
        if model is None or self.evaluate is None:
            return None
        data = None if self.batchnorm_data is None else load_batches(self.batchnorm_data, "--batchnorm-data")
        return Line(model, evaluation(self.evaluate), self.points, data)

    def derivatives(self, model: nn.Module | None, outputs: Outputs, loss: str | None) -> Derivatives | None:
        """Return how derivatives and inputs of layers are measured; None without batches."""
        if model is None or self.batches is None:
            return None
        batches = load_batches(self.batches, "--batches")
        function = cross_entropy if loss is None else load_callable(loss, "--loss", ("logits", "labels"))
        return Derivatives(model, batches, function, f"--batches {self.batches}", outputs)


DataFlags = Annotated[Data, Parameter(name="*", group="Measured on data")]
DATA = Data()


def analyze(
    *models: Path,
    output: OutputFlags = OUTPUT,
    vectors: VectorFlags = VECTORS,
    data: DataFlags = DATA,
    architecture: ArchitectureFlags = ARCHITECTURE,
    choice: ChoiceFlags = CHOICE,
    matching: MatchingFlags = MATCHING,
) -> Outcome:
    """Show why models merge or do not: how near matching brings them, and how far their singular vectors then agree.

    Every model is matched to the first. Without data: distances and singular vectors, layer by layer, as trained and
    matched, and those of the merged network. With --eval also barriers; with --batches an estimate of them from
    derivatives, and what every layer sees. With --out figures and a record are written into a folder; --dry-run checks
    everything first.

    Example: onebasin analyze a.pt b.pt --model net.py:build --inputs 2x3x32x32 --out why

    Args:
        models: Weights of two or more models, the reference first: .safetensors or .pt files, or model folders.
        output: Where the result goes.
        vectors: Which singular vectors count.
        data: What is measured on data.
        architecture: Which architecture.
        choice: Which matcher, and the inputs it looks at.
        matching: How the permutations are found.
    """
    if output.out is not None:
        check_target(output.out, force=output.force)
    if len(models) < 2:
        raise UsageError(f"{len(models)} models to analyze", "two or more", "name them all: analyze A B")
    vectors.check()
    data.check()
    used = () if data.batches is None else ("--loss",)
    module = choice.module(architecture, needed=data.evaluate is not None or data.batches is not None, used=used)
    line, derivatives = data.line(module), data.derivatives(module, architecture.held(), choice.loss)
    spec = architecture.permutation_spec(module)
    matcher = choice.build(matching, architecture, module)
    settings = {"architecture": architecture, "choice": choice, "matcher": matching, "data": data, "vectors": vectors}
    run = Run(spec, [read_for(spec, path) for path in models], settings, output)
    if output.dry_run:
        return run.plan()
    weights = [found.params if module is None else ready_for(module, found.params) for found in run.models]
    reference, others = weights[0], dict(zip(names(len(models))[1:], weights[1:], strict=True))
    with progress_bars() as progress:
        pairs: dict[str, Pair] = {}
        for name, model in others.items():
            alignment = finished(align(spec, reference, model, matcher, progress=progress))
            pairs[name] = compare(spec, reference, model, alignment, vectors, progress)
            if line is not None:
                ends = {"naive": model, "matched": pairs[name].moved}
                curves = {label: line.curve(reference, end, f"{name} {label}", progress) for label, end in ends.items()}
                pairs[name] = replace(pairs[name], curves=curves)
            if derivatives is not None:
                taylor = derivatives.taylor(reference, pairs[name].moved, progress)
                pairs[name] = replace(pairs[name], taylor=taylor)
        matched = {"A": reference} | {name: pair.moved for name, pair in pairs.items()}
        together = Together() if line is None else measure_together(line, matched, data.grid, progress)
        if derivatives is not None:
            together = replace(together, inputs=derivatives.inputs(reference, progress))
    if line is not None and (line.batches is None) == has_batchnorm(spec):
        done = "were interpolated; give --batchnorm-data to recompute them at every point"
        note(f"batch-norm statistics {done if line.batches is None else 'are none; --batchnorm-data changed nothing'}")
    results = {"models": dict(zip(matched, map(str, models), strict=True))}
    entry = run.record(
        results | {name: pair.to_json(vectors.gamma) for name, pair in pairs.items()} | together.to_json()
    )
    view = _view(dict(zip(matched, models, strict=True)), pairs, together, vectors)
    paths = [] if output.out is None else _write(output.out, pairs, together, vectors, entry, force=output.force)
    return Outcome({**entry, "wrote": paths}, [*view, wrote(paths)] if paths else view, output.json)


def names(count: int) -> list[str]:
    """Return A, B, C, ...: short names of models for tables and figures."""
    return [chr(ord("A") + number) if number < 26 else f"M{number + 1}" for number in range(count)]


def _view(
    paths: Mapping[str, Path], pairs: Mapping[str, Pair], together: Together, vectors: Vectors
) -> list[RenderableType]:
    view: list[RenderableType] = []
    for name, pair in pairs.items():
        view += [Text(f"{name}: {paths[name]}, matched to A: {paths['A']}", style="bold")]
        naive, matched, *_ = pair.spectra.values()
        view += [distance_table(pair.distance), vectors_table(naive, matched, vectors.shown)]
        view += [sweep_table(pair.spectra, vectors.gamma)]
        view += [barrier_table(pair.curves), Text(barrier_legend())] if pair.curves else []
    view.append(Text(legend(absolute=vectors.absolute)))
    taylor = {name: pair.taylor for name, pair in pairs.items() if pair.taylor is not None}
    if taylor:
        midpoints = {name: pair.midpoint for name, pair in pairs.items() if pair.midpoint is not None}
        view.append(taylor_table(taylor, midpoints))
    if together.inputs is not None:
        view.append(inputs_table(together.inputs))
    if together.lines:
        view.append(pairs_table(together.lines))
    called = dict(zip(paths, labels(paths.values()), strict=True))
    return [*view, alignment_table({called[name]: pair.alignment for name, pair in pairs.items()})]


def _write(
    out: Path,
    pairs: Mapping[str, Pair],
    together: Together,
    vectors: Vectors,
    entry: dict[str, Any],
    *,
    force: bool,
) -> list[Path]:
    from onebasin.report.figures import barrier_figure  # drawing is slow to import, and not always asked for
    from onebasin.report.figures_analysis import (
        alignment_figure,
        heat_figure,
        input_figure,
        plane_figure,
        spectrum_figure,
    )

    compared = {f"{name} and A": dict(pair.spectra) for name, pair in pairs.items()}
    figures = {"alignment": alignment_figure(compared, vectors.shown)}
    for name, pair in pairs.items():
        figures[f"spectra-{name}"] = spectrum_figure(pair.spectra["as trained"], ("A", name))
        figures[f"layers-{name}"] = heat_figure(dict(list(pair.spectra.items())[:2]), vectors.gamma)
    if any(pair.curves for pair in pairs.values()):
        figures["barrier"] = barrier_figure({f"{name} and A": pair.curves for name, pair in pairs.items()})
    if together.inputs is not None:
        figures["inputs"] = input_figure(together.inputs)
    if together.plane is not None:
        figures["plane"] = plane_figure(together.plane, ["A", *(f"π({name})" for name in list(pairs)[:2])])
    with write_directory(out, force=force) as folder:
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
        (folder / RECORD).write_text(dumps(entry) + "\n", encoding="utf-8")
    return [*(out / f"{name}.png" for name in figures), out / RECORD]
