"""The program itself: help, versions, and what is imported for them."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from importlib import import_module

import pytest
from rich.console import Console

from onebasin.cli import terminal
from onebasin.cli.main import VERBS, main
from onebasin.cli.terminal import Outcome, show

# What --help must not wait for.
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "huggingface_hub", "safetensors")


def test_help_names_every_verb_in_the_order_of_a_first_visit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert list(VERBS) == ["inspect", "align", "merge", "barrier", "analyze", "demo"]
    positions = [out.index(text) for text in VERBS.values()]
    assert positions == sorted(positions)


def test_help_is_shown_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: onebasin" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_explains_every_flag(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    documented = import_module(f"onebasin.cli.{verb}").__dict__[verb].__doc__.split("\n\n    Args:")[0]
    assert " ".join(documented.split()) in " ".join(out.split())
    flags = [line for line in out.splitlines() if line.startswith(("│ --", "│ *"))]
    assert flags
    for line in flags:
        assert len(line.strip("│ ").split("  ", 1)) == 2, f"no help: {line}"
    assert max(map(len, out.splitlines())) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("onebasin 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_out_has_a_short_form(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert "--out -o" in capsys.readouterr().out


def test_the_package_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "onebasin", "align", "-o", "x"], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from onebasin.cli.main import main; main(['--help']); main(['--version']);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"


def test_paths_are_neither_wrapped_nor_read_as_markup() -> None:
    out = io.StringIO()
    path = "wrote " + "very/long/" * 20 + "[bold]name[/].pt"
    show(Outcome({}, (path,)), Console(file=out, width=40))
    assert out.getvalue() == path + "\n"


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress_bars() as progress:
        progress("task", 1, 2)
        progress("task", 2, 2)
        progress("unknown total", 1, 0)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[terminal.Bars]:
    """The bars that are drawn on a terminal, once there are any."""
    shown = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(terminal, "console", lambda *, stderr: shown)
    made: list[terminal.Bars] = []

    class Kept(terminal.Bars):
        def __enter__(self) -> terminal.Bars:
            made.append(self)
            return super().__enter__()

    monkeypatch.setattr(terminal, "Bars", Kept)
    return made


def test_a_bar_begins_anew_for_the_next_model(bars: list[terminal.Bars]) -> None:
    """The time left of the second model is its own, not that of the first, which is done."""
    with terminal.progress_bars() as progress:
        progress("relaxing", 3, 3)
        assert [bar.finished for bar in bars[0].tasks] == [True]
        progress("relaxing", 1, 3)
        (bar,) = bars[0].tasks
        assert (bar.finished, bar.completed, bar.time_remaining) == (False, 1, None)


def test_the_bars_of_a_candidate_go_when_it_is_done(bars: list[terminal.Bars]) -> None:
    def shown() -> list[str]:
        return [f"{task.description} {task.completed:g}" for task in bars[0].tasks]

    with terminal.progress_bars() as progress:
        progress("statistics", 1, 1)
        for number in (1, 2, 3):
            for step in range(1, number + 1):
                progress("relaxing", step, 40)
            assert shown()[-1] == f"relaxing {number}"
            progress("candidates", number, 3)
            progress("candidates", number, 3)  # told twice, it goes no further
        assert shown() == ["statistics 1", "candidates 3"]
        progress("polish", 1, 10)
        assert shown() == ["statistics 1", "candidates 3", "polish 1"]


def test_progress_draws_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(terminal, "console", lambda *, stderr: shown)
    with terminal.progress_bars() as progress:
        progress("naive path", 3, 7)
        progress("naive path", 7, 7)
    assert isinstance(shown.file, io.StringIO)
    assert "naive path" in shown.file.getvalue()
    assert "7/7" in shown.file.getvalue()


@pytest.mark.parametrize("verb", ["align", "merge", "barrier", "analyze"])
def test_help_speaks_of_flags_not_of_code(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([verb, "--help"])
    _, _, text = capsys.readouterr().out.partition("Weight matching")
    assert "--solver" in text
    for word in ("code", "Python", "SOLVER", "FEATURES", "CoordinateDescent", "FrankWolfe", "Covariance"):
        assert word not in text
    options = re.findall(r"│ --\S+ +\S+ +(\S)", text)
    assert len(options) == 5
    assert all(letter.isupper() or letter == '"' for letter in options)
