"""`onebasin merge`: models aligned to the first one, and averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import RenderableType

from onebasin.cli.matcher import CHOICE, ChoiceFlags
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
from onebasin.cli.run import RECORD, Run
from onebasin.cli.terminal import Outcome, labels, progress_bars
from onebasin.errors import UsageError, listing
from onebasin.matching import Alignment, StopReason
from onebasin.merging import Merge, merge_many, merge_universe
from onebasin.merging import merge as combine
from onebasin.merging.many import MAX_ROUNDS
from onebasin.merging.merge import Moved
from onebasin.merging.repair import check_weights
from onebasin.params import in_dtypes_of
from onebasin.report.tables import alignment_table

METHODS: dict[str, Callable[..., Merge]] = {"reference": combine, "many": merge_many, "universe": merge_universe}


def merge(
    *models: Path,
    output: OutputFlags = OUTPUT,
    method: Literal["reference", "many", "universe"] = "reference",
    weights: tuple[float, ...] = (),
    max_rounds: int = MAX_ROUNDS,
    mending: MendingFlags = MENDING,
    architecture: ArchitectureFlags = ARCHITECTURE,
    choice: ChoiceFlags = CHOICE,
    matching: MatchingFlags = MATCHING,
) -> Outcome:
    """Align models to the first one, or all to each other, and average them.

    Begin with --dry-run, which checks everything and writes nothing. Written are the merged weights and a record of
    the run: beside OUT if it ends in .safetensors or .pt, else into it. Interrupted with Ctrl-C, it merges by the best
    permutations found until then.

    Example: onebasin merge a.pt b.pt --model net.py:build --inputs 2x3x32x32 --out merged.pt

    Args:
        models: Weights of two or more models, the reference first: .safetensors or .pt files, or model folders.
        output: Where the result goes.
        method: "reference": each model is aligned to the first; "many": all alike, in turn, to the mean of the others;
            "universe": the same, begun by Frank-Wolfe steps of all on their weights, which bring them closer together.
        weights: How much a model counts; give it once per model. Default: all the same.
        max_rounds: Of "many" and "universe", in each of which every model has a turn; 100 as in Git Re-Basin's code.
            With a matcher that takes long, such as best, give a few.
        mending: What is done to the merged network.
        architecture: Which architecture.
        choice: Which matcher, and the inputs it looks at.
        matching: How the permutations are found.
    """
    output.check((RECORD,))
    if len(models) < 2:
        raise UsageError(f"{len(models)} models to merge", "two or more", "name them all: merge A B --out MERGED")
    how = _rounds(method, max_rounds)
    module = choice.module(architecture, needed=mending != MENDING, used=mending.used())
    tools = mending.tools(choice.data)
    if mending.repair:
        check_weights(len(models), weights or None)
    spec = architecture.permutation_spec(module)
    matcher = choice.build(matching, architecture, module, repair=mending.repair)
    given = {"architecture": architecture, "choice": choice, "matcher": matching}
    settings = given | {"method": method, "weights": weights, "mending": mending} | how
    run = Run(spec, [read_for(spec, path) for path in models], settings, output)
    if output.dry_run:
        return run.plan()
    with progress_bars() as progress:
        weighted = weights or None
        loaded = [m.params if module is None else ready_for(module, m.params) for m in run.models]
        merged = METHODS[method](spec, loaded, matcher, weights=weighted, progress=progress, **how)
        params, left, cut = merged.params, dict[str, str](), False
        if module is not None:
            ends = [Moved(order, one) for order, one in zip(merged.permutations, loaded, strict=True)]
            try:
                params, left = tools.mend(module, spec, params, ends, weighted, progress)
            except KeyboardInterrupt:
                cut = True
    params = in_dtypes_of(run.models[0].params, params)  # the model may have needed them in others
    tools.remark(spec, "averaged")
    left_alone(left)
    called = labels(models)
    rows = {called[number]: found for number, found in zip(merged.aligned, merged.alignments, strict=True)}
    results = {"alignments": {label: found.to_json() for label, found in rows.items()}, "spread": merged.spread}
    results |= {"not_repaired": left} if tools.repair else {}
    outcome = run.write(params, results, models[0], _view(rows, merged, models, cut=cut))
    return replace(outcome, interrupted=cut or merged.stop is StopReason.INTERRUPTED)


def _rounds(method: str, most: int) -> dict[str, int]:
    """Return what a method is told of rounds."""
    if method != "reference":
        return {"max_rounds": most}
    if most != MAX_ROUNDS:
        do = "add --method many, or leave --max-rounds out"
        raise UsageError("--max-rounds with --method reference", "it with a method that goes in rounds", do)
    return {}


def _view(
    rows: Mapping[str, Alignment], merged: Merge, models: Sequence[Path], *, cut: bool
) -> Iterator[RenderableType]:
    """Yield what people read of a merge; `cut`: an interrupt came before the merged network was mended."""
    if rows:
        yield alignment_table(rows)
    yield from merged.rounds()
    for label, found in rows.items():
        if found.stop is not StopReason.CONVERGED:
            yield f"{label}: {found.why()}"
    waiting = [label for number, label in enumerate(labels(models)) if number and number not in merged.aligned]
    if waiting:
        yield f"Interrupted from the keyboard before the turn of {listing(waiting)}."
    if cut:
        yield "Interrupted from the keyboard before the merged network was mended: it is the plain mean."
