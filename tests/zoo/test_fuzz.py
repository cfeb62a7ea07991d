"""Random programs: every group found leaves the outputs alone, wrong ones do not; and the fuzzer itself."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from torch import nn
from zoo import fuzz
from zoo.fuzz import Finding, caught, examine, jumps
from zoo.programs import load, program
from zoo.setups import discover, largest_difference
from zoo.shrink import shrink

from onebasin.symmetry.export import export
from onebasin.symmetry.prove import TOLERANCE, Trial

SEEDS = range(60)


@cache
def finding(seed: int) -> Finding:
    return examine(program(seed), seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_of_a_random_program_leave_its_outputs_alone(seed: int) -> None:
    assert not finding(seed).wrong, f"{finding(seed).problem}\n{program(seed)}"


def test_most_programs_have_groups_and_some_are_nested() -> None:
    specs = [found.spec for found in map(finding, SEEDS) if found.spec is not None]
    assert len(specs) > 0.9 * len(SEEDS), "few programs cannot be traced or jump with rounding errors"
    assert sum(bool(spec.sizes) for spec in specs) > 0.7 * len(SEEDS)
    assert sum(bool(spec.parents) for spec in specs) >= 3


def test_specs_made_wrong_are_caught() -> None:
    """Not all: no output feels the order of a bias of keys, or of what only an argmax sees."""
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        counts += caught(finding(seed), seed)
    assert counts["made wrong"] > 50
    assert counts["caught"] > 0.8 * counts["made wrong"]


def test_a_program_is_the_same_for_the_same_seed() -> None:
    assert program(3) == program(3) != program(4)
    assert program(3, length=2).splitlines()[:10] == program(3, length=2).splitlines()[:10]


def test_a_program_runs_as_it_is_printed() -> None:
    model, inputs = load(program(5))
    assert isinstance(model, nn.Module)
    assert all(torch.isfinite(value).all() for value in model(*inputs))


class Jump(nn.Module):
    """The number of the first of two equal rows, which rounding errors tell apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.sum(1), x.sum(1)], 1).argmax(1) * torch.ones(1)


class Smooth(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.sum(1), x.sum(1)], 1).amax(1)


@pytest.mark.parametrize(("model", "expected"), [(Jump(), True), (Smooth(), False)])
def test_outputs_that_jump_are_told_apart(model: nn.Module, expected: bool) -> None:
    exported = export(model, (torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),))
    spec, _ = discover(model, exported)
    assert jumps(Trial(exported, spec, 0)) == expected


def test_two_groups_of_two_units_that_are_mixed_up_are_caught() -> None:
    """When all groups move, those of two units all move alike: only moving some of them tells them apart."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3))
    exported = export(model, (torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),))
    spec, _ = discover(model, exported)
    one, other = spec.sizes
    mixed = spec.from_axes(
        {
            "0.weight": (one, None),
            "0.bias": (other,),
            "2.weight": (other, one),
            "2.bias": (other,),
            "4.weight": (None, other),
        },
        spec.shapes,
    )
    assert largest_difference(Trial(exported, spec, 0)) < TOLERANCE
    assert largest_difference(Trial(exported, mixed, 0)) > TOLERANCE


def test_a_failing_program_is_made_short() -> None:
    source = program(5)
    needed = next(line for line in source.splitlines() if "= self.a0" in line)

    def fails(shorter: str) -> bool:
        try:
            model, inputs = load(shorter)
            model(*inputs)
        except Exception:
            return False
        return needed in shorter

    short = shrink(source, fails)
    assert fails(short)
    assert len(short.splitlines()) < len(source.splitlines())
    assert not any(fails("\n".join(short.splitlines()[:n] + short.splitlines()[n + 1 :])) for n in _statements(short))


def _statements(source: str) -> list[int]:
    return [n for n, line in enumerate(source.splitlines()) if line.startswith("        v")]


def test_the_command_fails_on_a_wrong_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "examine", lambda source, seed: Finding(None, None, 1.0, "everything"))
    monkeypatch.setattr(fuzz, "shortest", lambda source, seed: source)
    assert fuzz.main(["2", "--first", "7"]) == 1
    printed = capsys.readouterr().out
    assert "seed 7: everything" in printed
    assert "class Program(nn.Module)" in printed
    assert "seed 8" not in printed, "it stops at the first"


def test_the_command_reports_what_it_drew(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["2", "--first", "3"]) == 0
    assert "2 programs, 0 wrong" in capsys.readouterr().out
