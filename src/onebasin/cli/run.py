"""One run of a verb: its inputs, its settings, when it began, and what becomes of its result."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from onebasin.checkpoints import Checkpoint
from onebasin.cli.options import Output
from onebasin.cli.terminal import COMMAND, Outcome
from onebasin.cli.writing import sources, write_weights
from onebasin.matching import Alignment, StopReason
from onebasin.matching.align import check_numbers
from onebasin.params import Params
from onebasin.report.record import dumps, record
from onebasin.spec import PermutationSpec

RECORD = "record.json"
OVERFLOWN = "look at --weights, or convert checkpoints of half precision to float32; nothing was written"


@dataclass(frozen=True)
class Run:
    """What a verb works on.

    Args:
        spec: the symmetries of the architecture.
        models: the weights, the reference first.
        settings: every setting the result depends on.
        output: where the result goes.
        started: when the run began, by `time.perf_counter`.
    """

    spec: PermutationSpec
    models: Sequence[Checkpoint]
    settings: dict[str, Any]
    output: Output
    started: float = field(default_factory=time.perf_counter)

    def plan(self) -> Outcome:
        """Return the result of a dry run: everything fits, nothing was done."""
        names = " and ".join(str(model.path) for model in self.models)
        text = f"{names} fit: {len(self.spec.tensors)} tensors, {len(self.spec.sizes)} groups to match"
        wrote = f"nothing was written (--dry-run); it would go to {self.output.out or '--out'}"
        return Outcome(
            {"dry_run": True, "groups": dict(self.spec.sizes), **self.settings}, (text, wrote), self.output.json
        )

    def record(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return the record of this run with its `results`."""
        sourced = {"sources": sources(self.models), **results}
        return record(COMMAND.get(), self.settings, sourced, time.perf_counter() - self.started)

    def write(
        self, params: Params, results: dict[str, Any], companions: Path, view: Iterable[RenderableType], **texts: str
    ) -> Outcome:
        """Write weights, their documents (name -> JSON text) and the record of this run, and return its outcome.

        Raises:
            ParamsError: weights or running statistics are not finite: no verb reads such weights.
        """
        check_numbers(self.spec, params, "the weights to be written", OVERFLOWN)
        entry = self.record(results)
        made_by = {key: entry[key] for key in ("command", "settings")} | {"sources": entry["results"]["sources"]}
        documents = {f"{name}.json": text for name, text in texts.items()} | {RECORD: dumps(entry)}
        paths = write_weights(
            self.output.target(), params, made_by, documents, force=self.output.force, companions=companions
        )
        return Outcome({**entry, "wrote": paths}, (*view, wrote(paths)), self.output.json)


def wrote(paths: Sequence[Path]) -> str:
    """Return the line that says what was written."""
    return "wrote " + "\n      ".join(map(str, paths))


def finished(alignment: Alignment) -> Alignment:
    """Return `alignment`; raise `KeyboardInterrupt` if it was cut short, where half a result is of no use."""
    if alignment.stop is StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    return alignment
