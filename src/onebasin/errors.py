"""One family of exceptions. Every message has three parts: what was got, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral


class OneBasinError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        got: what the caller passed, or what happened.
        expected: what would have been accepted.
        do: the next step for the reader.
    """

    def __init__(self, got: str, expected: str, do: str) -> None:
        self.got, self.expected, self.do = got, expected, do
        super().__init__(f"{got}\n  expected: {expected}\n  do this:  {do}")


class ParamsError(OneBasinError, ValueError):
    """Params do not fit: missing, unexpected or misshapen tensors, or values that are not finite."""


class SpecError(OneBasinError, ValueError):
    """A permutation spec, or a permutation for it, is malformed."""


class DiscoveryError(OneBasinError, RuntimeError):
    """A model could not be exported or interpreted."""


class ProofError(DiscoveryError):
    """A permutation spec changes the function of the model it was checked against."""


class CheckpointError(OneBasinError, OSError):
    """A file cannot be read as a checkpoint, or must not be written."""


class UsageError(OneBasinError, ValueError):
    """An argument is wrong: a name that does not import, a setting out of range, a callable of another signature."""


def check_counts(least: int, **counts: object) -> None:
    """Raise `UsageError` at the first setting, name=value, that is no whole number of `least` or more."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < least:
            do = f"pass {name}=1, say, or leave it out"
            raise UsageError(f"{name}={count!r}", f"a whole number, {least} or more", do)


def no_batches() -> UsageError:
    """Return the error to raise where there was not one batch to read."""
    return UsageError(
        "no batches", "at least one batch of inputs", "pass a list or a DataLoader with data, not a used iterator"
    )


def near(name: str, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are spelt like `name`, the nearest first."""
    return get_close_matches(name, list(names), n=3)


def choices(name: str, names: Iterable[str]) -> tuple[str, str]:
    """Return what was expected in the place of a wrong `name`, the nearest of `names` first, and what to do."""
    names = list(names)
    nearest = near(name, names)
    expected = f"one of: {listing(dict.fromkeys([*nearest, *names]))}"
    return expected, f"did you mean {' or '.join(nearest)}?" if nearest else "correct the name"


def listing(items: Iterable[str], limit: int = 20) -> str:
    """Join `items` with commas; beyond `limit` say how many are left out."""
    names = list(items)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names) - limit} more)"
