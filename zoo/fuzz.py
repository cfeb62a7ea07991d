"""Fuzzing of symmetry discovery: `python -m zoo.fuzz N` draws N random programs and stops at the first wrong group.

Each program is exported and interpreted as `permutation_spec` does it, with nesting, but without its last step, which
would drop a wrong group silently: the groups are tried as they were found.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from onebasin.errors import OneBasinError, ProofError
from onebasin.spec import PermutationSpec
from onebasin.symmetry.export import Exported, export
from onebasin.symmetry.prove import TOLERANCE, Trial
from zoo.control import corruptions
from zoo.programs import load, program
from zoo.setups import discover, largest_difference
from zoo.shrink import shrink

# Groups are permuted all together, this often, with new random parameters every time.
DRAWS = 2
KINDS = ("programs", "wrong", "undecided", "untraced", "groups", "with groups", "nested groups", "with nested groups")


@dataclass(frozen=True)
class Finding:
    """What discovery found on one program.

    Args:
        spec: the groups as found.
        exported: the traced program.
        difference: largest relative change of an output, over all draws; infinite if discovery broke down.
        problem: what is wrong, if anything.
        jumps: whether rounding errors alone change the outputs as much, so that nothing can be compared: an argmax
            that meets equal numbers, say.
    """

    spec: PermutationSpec | None
    exported: Exported | None
    difference: float
    problem: str = ""
    jumps: bool = False

    @property
    def wrong(self) -> bool:
        """Whether discovery broke down, or found a group that changes the outputs."""
        return self.difference > TOLERANCE and not self.jumps


def examine(source: str, seed: int = 0) -> Finding:
    """Discover the groups of a program and permute them at random."""
    model, inputs = load(source, seed)
    try:
        exported = export(model, inputs)
    except OneBasinError as error:
        return Finding(None, None, 0.0, f"not traced: {error}")
    try:
        spec, _ = discover(model, exported)
        trials = [Trial(exported, spec, seed + number) for number in range(DRAWS if spec.sizes else 0)]
        worst = max(map(largest_difference, trials), default=0.0)
        problem = f"{guilty(trials[0])} change the outputs by {worst:.1e} (relative)" if worst > TOLERANCE else ""
    except ProofError as error:  # the outputs are not finite
        return Finding(None, exported, float("inf"), str(error), jumps=True)
    except Exception as error:  # whatever it is, discovery must not break down
        return Finding(None, exported, float("inf"), f"{type(error).__name__}: {error} at {_place(error)}")
    return Finding(spec, exported, worst, problem, worst > TOLERANCE and any(map(jumps, trials)))


def jumps(trial: Trial) -> bool:
    """Say whether rounding errors along the way change the outputs visibly."""
    for number in range(3):
        with RoundingErrors(number):
            changed = trial.function(trial.params, trial.inputs)
        if any((a - b).abs().max() > TOLERANCE * b.abs().max() for a, b in zip(changed, trial.outputs, strict=True)):
            return True
    return False


class RoundingErrors(TorchDispatchMode):
    """Adds noise of the size of rounding errors to the result of every operation."""

    SIZE = 1e-14

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(result.alias_info for result in func._schema.returns):
            return out
        return tree_map(self._disturbed, out)

    def _disturbed(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, generator=self.generator, dtype=value.dtype)
        return value + self.SIZE * (1 + value.abs()) * noise


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def guilty(trial: Trial) -> str:
    """Name the groups that change the outputs on their own."""
    found = [name for name in trial.spec.sizes if trial.difference([name]) > TOLERANCE]
    return ", ".join(f"{name} under {trial.spec.parents.get(name, ())}" for name in found) or "groups only together"


def shortest(source: str, seed: int) -> str:
    """Return a short program that still fails."""

    def fails(shorter: str) -> bool:
        try:
            return examine(shorter, seed).wrong
        except Exception:  # it does not run any more
            return False

    return shrink(source, fails)


def caught(finding: Finding, seed: int) -> Counter[str]:
    """Make the spec of a finding wrong in several ways; count which of them the check catches."""
    counts: Counter[str] = Counter()
    if finding.spec is None or finding.exported is None:
        return counts
    for _, wrong in corruptions(finding.spec, seed):
        counts["made wrong"] += 1
        try:
            counts["caught"] += largest_difference(Trial(finding.exported, wrong, seed)) > TOLERANCE
        except KeyError:  # under a parent that is not there units cannot even be looked up
            counts["caught"] += 1
        except ProofError:  # the outputs are not finite
            counts["made wrong"] -= 1
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Draw programs, examine them and report; return 1 if a group is wrong."""
    parser = argparse.ArgumentParser(prog="python -m zoo.fuzz", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000, help="number of programs (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first program (default 0)")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first wrong group")
    parser.add_argument("--control", action="store_true", help="make every spec wrong too; count what is caught")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    begin = time.perf_counter()
    seeds = range(options.first, options.first + options.count)
    for seed in track(seeds, "programs", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        with warnings.catch_warnings(action="ignore"):
            finding = examine(program(seed), seed)
        counts += _tally(finding)
        if options.control:
            counts += caught(finding, seed)
        if finding.wrong:
            source = shortest(program(seed), seed)
            print(f"# seed {seed}: {examine(source, seed).problem}\n{source}", flush=True)
        if finding.wrong and not options.go_on:
            break
    print(_report(counts, time.perf_counter() - begin))
    return int(counts["wrong"] > 0)


def _tally(finding: Finding) -> Counter[str]:
    counts = Counter(programs=1, wrong=int(finding.wrong), undecided=int(finding.jumps))
    counts["untraced"] = int(finding.exported is None and not finding.wrong)
    if finding.spec is not None:
        counts["groups"] = len(finding.spec.sizes)
        counts["with groups"] = int(bool(finding.spec.sizes))
        counts["nested groups"] = len(finding.spec.parents)
        counts["with nested groups"] = int(bool(finding.spec.parents))
    return counts


def _report(counts: Counter[str], seconds: float) -> str:
    lines = [
        "{programs} programs, {wrong} wrong, {undecided} undecided (rounding errors alone change their outputs), "
        "{untraced} not traced; {seconds:.0f} s",
        "{with groups} have {groups} groups, {with nested groups} of them {nested groups} nested ones",
    ]
    if counts["made wrong"]:
        lines.append("{made wrong} specs made wrong, {caught} caught")
    return "\n".join(lines).format_map({**dict.fromkeys(KINDS, 0), **counts, "seconds": seconds})


if __name__ == "__main__":
    sys.exit(main())
