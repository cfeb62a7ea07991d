"""`onebasin align`: model B in the order of model A."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onebasin.cli.matcher import CHOICE, ChoiceFlags
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
from onebasin.matching import StopReason
from onebasin.matching import align as match
from onebasin.report.tables import alignment_table


def align(
    a: Path,
    b: Path,
    /,
    *,
    output: OutputFlags = OUTPUT,
    architecture: ArchitectureFlags = ARCHITECTURE,
    choice: ChoiceFlags = CHOICE,
    matching: MatchingFlags = MATCHING,
) -> Outcome:
    """Put the units of model B into the order of model A; B computes the same function as before.

    Begin with --dry-run, which checks everything and writes nothing. Written are the permuted weights of B, the
    permutation, the spec and a record of the run: beside OUT if it ends in .safetensors or .pt, else into it.
    Interrupted with Ctrl-C, it writes the best permutation found until then.

    Example: onebasin align a.pt b.pt --model net.py:build --inputs 2x3x32x32 --out b-aligned.pt

    Args:
        a: Weights of the reference: a .safetensors or .pt file, or a model folder.
        b: Weights of the model to be moved.
        output: Where the result goes.
        architecture: Which architecture.
        choice: Which matcher, and the inputs it looks at.
        matching: How the permutation is found.
    """
    output.check(("permutation.json", "spec.json", RECORD))
    module = choice.module(architecture)
    spec = architecture.permutation_spec(module)
    matcher = choice.build(matching, architecture, module)
    reference, moved = read_for(spec, a), read_for(spec, b)
    run = Run(spec, (reference, moved), {"architecture": architecture, "choice": choice, "matcher": matching}, output)
    if output.dry_run:
        return run.plan()
    with progress_bars() as progress:
        found = match(spec, reference.params, moved.params, matcher, progress=progress)
    outcome = run.write(
        found.permutation.apply(moved.params),
        {"alignment": found.to_json()},
        b,
        (alignment_table({str(b): found}), found.why()),
        permutation=found.permutation.to_json(),
        spec=spec.to_json(),
    )
    return replace(outcome, interrupted=found.stop is StopReason.INTERRUPTED)
