"""The command line: one verb a file, imported only when it is called.

Exit status: 0 done, 1 a bug (with a traceback), 2 wrong input or usage, 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version

from cyclopts import App, CycloptsError, Parameter

from onebasin.cli.terminal import COMMAND, Outcome, console, main_stdout, show, show_error
from onebasin.errors import OneBasinError

OK, USAGE, INTERRUPTED = 0, 2, 130

# Verb -> its line of help; in the order of a first visit. Written here so that --help imports no verb.
VERBS = {
    "inspect": "Show which units of a model may be permuted, and what is frozen and why.",
    "align": "Put the units of model B into the order of model A.",
    "merge": "Align models to the first one and average them.",
    "barrier": "Measure loss and accuracy on the way from A to B, naive and matched.",
    "analyze": "Show why A and B merge or do not: distances, singular vectors, barriers.",
    "demo": "See it work: train, align and merge small networks, in under a minute.",
}


BEGIN = "Begin with `onebasin demo`, or with `onebasin inspect --help` for a model of your own."


def application(verb_in_use: str = "") -> App:
    """Build the command-line application; only the verb in use is imported, and explains itself at length."""
    app = App(
        name="onebasin",
        help="Align and merge independently trained PyTorch networks modulo permutation symmetry.",
        help_epilogue="" if verb_in_use in VERBS else BEGIN,
        version=f"onebasin {version('onebasin')}",
        default_parameter=Parameter(negative=(), show_default=_shown),
        exit_on_error=False,
    )
    for number, (verb, help_text) in enumerate(VERBS.items()):
        short = None if verb == verb_in_use else help_text
        app.command(f"onebasin.cli.{verb}:{verb}", name=verb, help=short, sort_key=number)
    return app


def _shown(default: object) -> str | None:
    """Say a default in the help only if it says something."""
    return None if default is None or default is False or default == () else str(default)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    words, out = list(sys.argv[1:] if argv is None else argv), main_stdout()
    COMMAND.set(shlex.join(["onebasin", *words]))
    try:
        # Whatever a user's model or data loader prints must not mix with the result.
        with redirect_stdout(sys.stderr):
            command, bound, _ = application(*words[:1]).parse_args(
                words, console=out, error_console=console(stderr=True)
            )
            result = command(*bound.args, **bound.kwargs)
        if isinstance(result, Outcome):
            show(result, out)
            return INTERRUPTED if result.interrupted else OK
    except CycloptsError:
        return USAGE  # cyclopts has printed what was wrong
    except OneBasinError as error:
        show_error(error)
        return USAGE
    except KeyboardInterrupt:
        console(stderr=True).print("interrupted: nothing was written")
        return INTERRUPTED
    return OK


if __name__ == "__main__":
    sys.exit(main())
