"""`onebasin barrier`: loss and accuracy on the way from A to B, naive and matched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import RenderableType
from rich.text import Text

from onebasin.analysis import Curve
from onebasin.checkpoints import check_target, load_permutation, write_directory
from onebasin.cli.matcher import CHOICE, ChoiceFlags
from onebasin.cli.measuring import Line, evaluation
from onebasin.cli.mending import MENDING, MendingFlags, left_alone
from onebasin.cli.options import (
    ARCHITECTURE,
    MATCHING,
    OUTPUT,
    ArchitectureFlags,
    MatchingFlags,
    OutputFlags,
    read_for,
    ready_for,
)
from onebasin.cli.run import RECORD, Run, finished, wrote
from onebasin.cli.terminal import Outcome, progress_bars
from onebasin.errors import UsageError
from onebasin.matching import align
from onebasin.report.record import dumps
from onebasin.report.tables import alignment_table, barrier_legend, barrier_table

FIGURE = "barrier.png"


def barrier(
    a: Path,
    b: Path,
    /,
    *,
    output: OutputFlags = OUTPUT,
    evaluate: Annotated[str, Parameter(name="--eval")],
    permutation: Path | None = None,
    points: int = 25,
    mending: MendingFlags = MENDING,
    architecture: ArchitectureFlags = ARCHITECTURE,
    choice: ChoiceFlags = CHOICE,
    matching: MatchingFlags = MATCHING,
) -> Outcome:
    """Measure loss and accuracy on the line from A to B: with B as it is (naive) and with B aligned to A (matched).

    With --out a figure and a record of the run are written into a folder; --dry-run checks everything first.

    Example: onebasin barrier a.pt b.pt --model net.py:build --inputs 2x3x32x32 --eval net.py:test_loss

    Args:
        a: Weights at position 0: a .safetensors or .pt file, or a model folder.
        b: Weights at position 1.
        output: Where the result goes.
        evaluate: Function of `predict`, which calls the network at one point of the line; it returns the loss in nats
            per example, or a dict such as {"loss": 0.1, "accuracy": 0.9}.
        permutation: Written by `onebasin align`, used in place of matching.
        points: Number of points, ends included; an odd number has the midpoint among them.
        mending: What is done to the network at every point of the line.
        architecture: Which architecture.
        choice: Which matcher, and the inputs it looks at.
        matching: How the permutation is found.
    """
    if output.out is not None:
        check_target(output.out, force=output.force)
    choice.check(mending.used())
    if permutation is not None and (choice.matcher != CHOICE.matcher or matching != MATCHING):
        got = "--permutation beside --matcher, or a setting of one"
        do = "leave out --permutation to match anew, or else what is about matching"
        raise UsageError(got, "one or the other", do)
    tools, model = mending.tools(choice.data), architecture.build()
    measure = evaluation(evaluate)
    spec = architecture.permutation_spec(model)
    left: dict[str, str] = {}
    line = Line(model, measure, points, tools.batches, tools.path(model, spec, left))
    matcher = choice.build(matching, architecture, line.model, repair=mending.repair)
    given = None if permutation is None else load_permutation(permutation, spec)
    settings: dict[str, Any] = {"architecture": architecture, "permutation": permutation}
    settings |= {"choice": choice, "matcher": matching} if given is None else {"matcher": None}
    settings |= {"eval": evaluate, "points": points, "mending": mending}
    run = Run(spec, (read_for(spec, a), read_for(spec, b)), settings, output)
    if output.dry_run:
        return run.plan()
    reference, moved = (ready_for(line.model, model.params) for model in run.models)
    with progress_bars() as progress:
        found = None if given else finished(align(spec, reference, moved, matcher, progress=progress))
        chosen = given if found is None else found.permutation
        assert chosen is not None
        ends = {"naive": moved, "matched": chosen.apply(moved)}
        curves = {label: line.curve(reference, end, label, progress) for label, end in ends.items()}
    tools.remark(spec, "interpolated")
    left_alone(left)
    alignment = {} if found is None else {"alignment": found.to_json()}
    entry = run.record({label: curve.to_json() for label, curve in curves.items()} | alignment)
    view: list[RenderableType] = [barrier_table(curves), Text(barrier_legend())]
    if found is not None:
        view.append(alignment_table({str(b): found}))
    paths = [] if output.out is None else _write(output.out, curves, entry, force=output.force)
    return Outcome({**entry, "wrote": paths}, [*view, wrote(paths)] if paths else view, output.json)


def _write(out: Path, curves: Mapping[str, Curve], entry: dict[str, Any], *, force: bool) -> list[Path]:
    from onebasin.report.figures import barrier_figure  # drawing is slow to import, and not always asked for

    with write_directory(out, force=force) as folder:
        barrier_figure({"": curves}).savefig(folder / FIGURE, dpi=150)
        (folder / RECORD).write_text(dumps(entry) + "\n", encoding="utf-8")
    return [out / FIGURE, out / RECORD]
