"""`onebasin merge`: models aligned to the first one, and averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from onebasin.batchnorm import recompute_batchnorm
from onebasin.cli.matcher import CHOICE, ChoiceFlags
from onebasin.cli.options import (
    ARCHITECTURE,
    MATCHING,
    OUTPUT,
    ArchitectureFlags,
    MatchingFlags,
    OutputFlags,
    has_batchnorm,
    on_device_of,
    read_for,
)
from onebasin.cli.resolve import guarded, load_batches
from onebasin.cli.run import RECORD, Run
from onebasin.cli.terminal import Outcome, note, progress_bars
from onebasin.errors import UsageError
from onebasin.matching import StopReason
from onebasin.merging import merge as combine
from onebasin.merging import merge_many as combine_many
from onebasin.report.tables import alignment_table


def merge(
    *models: Path,
    output: OutputFlags = OUTPUT,
    method: Literal["reference", "many"] = "reference",
    weights: tuple[float, ...] = (),
    batchnorm_data: str | None = None,
    architecture: ArchitectureFlags = ARCHITECTURE,
    choice: ChoiceFlags = CHOICE,
    matching: MatchingFlags = MATCHING,
) -> Outcome:
    """Align models to the first one, or all to each other, and average them.

    Begin with --dry-run, which checks everything and writes nothing. Written are the merged weights and a record of
    the run: beside OUT if it ends in .safetensors or .pt, else into it.

    Example: onebasin merge a.pt b.pt --model net.py:build --inputs 2x3x32x32 --out merged.pt

    Args:
        models: Weights of two or more models, the reference first: .safetensors or .pt files, or model folders.
        output: Where the result goes.
        method: "reference": each model is aligned to the first; "many": all alike, in turn, to the mean of the others.
        weights: How much a model counts; give it once per model. Default: all the same.
        batchnorm_data: Callable that returns batches of inputs, from which batch-norm statistics are recomputed.
        architecture: Which architecture.
        choice: Which matcher, and the inputs it looks at.
        matching: How the permutations are found.
    """
    output.check((RECORD,))
    if len(models) < 2:
        raise UsageError(f"{len(models)} models to merge", "two or more", "name them all: merge A B --out MERGED")
    batches = None if batchnorm_data is None else load_batches(batchnorm_data, "--batchnorm-data")
    module = choice.module(architecture, needed=batches is not None)
    spec = architecture.permutation_spec(module)
    matcher = choice.build(matching, architecture, module)
    given = {"architecture": architecture, "choice": choice, "matcher": matching}
    settings = given | {"method": method, "weights": weights, "batchnorm": batchnorm_data}
    run = Run(spec, [read_for(spec, path) for path in models], settings, output)
    if output.dry_run:
        return run.plan()
    with progress_bars() as progress:
        combined = combine if method == "reference" else combine_many
        merged = combined(spec, [m.params for m in run.models], matcher, weights=weights or None, progress=progress)
        if merged.stop is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        # The reference has no alignment.
        labels = map(str, models[len(models) - len(merged.alignments) :])
        rows = dict(zip(labels, merged.alignments, strict=True))
        params = merged.params
        if module is not None and batches is not None:
            average = on_device_of(module, params)
            what = f"--batchnorm-data {batchnorm_data}"
            params = guarded(lambda: recompute_batchnorm(module, average, batches, progress), what)
    if batches is None and has_batchnorm(spec):
        note("batch-norm statistics were averaged; give --batchnorm-data to recompute them for the merged network")
    results = {"alignments": {label: found.to_json() for label, found in rows.items()}, "spread": merged.spread}
    return run.write(params, results, models[0], (alignment_table(rows), *merged.rounds()))
