"""`onebasin inspect`: the symmetries of a model."""

from __future__ import annotations

from dataclasses import asdict
from json import loads
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from onebasin.checkpoints import check_target, save_text
from onebasin.cli.options import ARCHITECTURE, Architecture, ArchitectureFlags, OutPath
from onebasin.cli.terminal import Outcome
from onebasin.report.tables import fixed_axes, fixed_table, group_table, needless
from onebasin.spec import PermutationSpec


def inspect(
    *,
    architecture: ArchitectureFlags = ARCHITECTURE,
    tensor: tuple[str, ...] = (),
    out: OutPath = None,
    force: bool = False,
    json: bool = False,
) -> Outcome:
    """Show which units of a model may be permuted, and what is frozen and why.

    What is shown holds for every set of weights: it is proved in float64 on random ones before it is printed.

    Example: onebasin inspect --model torchvision.models:resnet18 --inputs 2x3x64x64

    Args:
        architecture: Which architecture.
        tensor: Explain every axis of this tensor; may be given several times.
        out: Write the spec here, as JSON for `--spec`.
        force: Write over what is there.
        json: Print one JSON document on stdout instead of tables.
    """
    if out is not None:
        check_target(out, force=force)
    spec = architecture.permutation_spec()
    explained = {name: spec.explain(name) for name in tensor}
    if out is not None:
        save_text(out, spec.to_json(), force=force)
    view: list[RenderableType] = [
        Text(str(architecture.model or architecture.spec), style="bold"),
        str(spec).splitlines()[0],
        *("\n" + text for text in explained.values()),
    ]
    if not explained:
        view += [table for table in (group_table(spec), fixed_table(spec)) if table.row_count]
    return Outcome(_document(spec, architecture, explained), [*view, *([f"wrote {out}"] if out else [])], json)


def _document(spec: PermutationSpec, architecture: Architecture, explained: dict[str, str]) -> dict[str, Any]:
    return {
        "model": architecture.model,
        "proof": spec.proof,
        "covered": spec.covered(),
        "log10_symmetries": spec.log10_symmetries(),
        "groups": {name: asdict(group) for name, group in spec.groups.items()},
        "fixed": [{"why": why, "needless": needless(why), "axes": axes} for why, axes in fixed_axes(spec).items()],
        "explained": explained,
        "spec": loads(spec.to_json()),
    }
