"""`onebasin merge`: models aligned to the first one, and averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

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
)
from onebasin.cli.run import RECORD, Run
from onebasin.cli.terminal import Outcome, progress_bars
from onebasin.errors import UsageError
from onebasin.matching import StopReason
from onebasin.merging import Merge, merge_many, merge_universe
from onebasin.merging import merge as combine
from onebasin.report.tables import alignment_table

METHODS: dict[str, Callable[..., Merge]] = {"reference": combine, "many": merge_many, "universe": merge_universe}


def merge(
    *models: Path,
    output: OutputFlags = OUTPUT,
    method: Literal["reference", "many", "universe"] = "reference",
    weights: tuple[float, ...] = (),
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
        mending: What is done to the merged network.
        architecture: Which architecture.
        choice: Which matcher, and the inputs it looks at.
        matching: How the permutations are found.
    """
    output.check((RECORD,))
    if len(models) < 2:
        raise UsageError(f"{len(models)} models to merge", "two or more", "name them all: merge A B --out MERGED")
    module = choice.module(architecture, needed=mending != MENDING, used=mending.used())
    tools = mending.tools(choice.data)
    spec = architecture.permutation_spec(module)
    matcher = choice.build(matching, architecture, module)
    given = {"architecture": architecture, "choice": choice, "matcher": matching}
    settings = given | {"method": method, "weights": weights, "mending": mending}
    run = Run(spec, [read_for(spec, path) for path in models], settings, output)
    if output.dry_run:
        return run.plan()
    with progress_bars() as progress:
        weighted = weights or None
        merged = METHODS[method](spec, [m.params for m in run.models], matcher, weights=weighted, progress=progress)
        params, left = merged.params, dict[str, str]()
        if module is not None:
            moved = (p.apply(m.params) for p, m in zip(merged.permutations, run.models, strict=True))
            params, left = tools.mend(module, spec, params, list(moved) if tools.repair else [], weighted, progress)
    tools.remark(spec, "averaged")
    left_alone(left)
    labels = [str(path) for path in (models[1:] if method == "reference" else models)]
    if len(labels) > len(merged.alignments):  # interrupted before all had their turn
        labels = [f"alignment {number}" for number in range(1, len(merged.alignments) + 1)]
    rows = dict(zip(labels, merged.alignments, strict=True))
    results = {"alignments": {label: found.to_json() for label, found in rows.items()}, "spread": merged.spread}
    results |= {"not_repaired": left} if tools.repair else {}
    told = [f"{label}: {found.why()}" for label, found in rows.items() if found.stop is not StopReason.CONVERGED]
    outcome = run.write(params, results, models[0], [alignment_table(rows), *merged.rounds(), *told])
    stops = {merged.stop, *(found.stop for found in rows.values())}
    return replace(outcome, interrupted=StopReason.INTERRUPTED in stops)
