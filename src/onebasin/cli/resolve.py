"""From words on the command line to Python objects: factories, example inputs, evaluations."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from onebasin.errors import OneBasinError, UsageError, choices, listing
from onebasin.functional import empty_shapes

T = TypeVar("T")
SHAPE = re.compile(r"(?:(?P<name>\w+)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")
BATCH_NAMED = re.compile(r"batch \d")  # a message that says which batch it was
# Where Python, its packages, torch and this package are: code that is not the user's.
INSTALLED = {Path(folder) for name, folder in sysconfig.get_paths().items() if name.endswith("lib")}
INSTALLED |= {Path(torch.__file__).parent, Path(__file__).parents[1]}
NAME_FORM = "package.module:name or path/to/file.py:name"
SHAPE_FORM = "a shape such as 2x3x32x32, 2x16:int64 or input_ids=2x16:int64, or a callable as " + NAME_FORM


def load_object(name: str, what: str) -> Any:
    """Import `name`, given as `package.module:attribute` or `file.py:attribute`; `what` it is for, in messages.

    Raises:
        UsageError: the name has another form, does not import, or has no such attribute.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UsageError(f"{what} {name!r}", NAME_FORM, "name a Python object in this way")
    module = guarded(lambda: _import(place), f"importing {place} for {what}")
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{what} {name!r}: {place} has no {part!r}", *choices(part, _public(found, module)))
        found = getattr(found, part)
    return found


def _public(found: Any, module: Any) -> list[str]:
    """Return the public names in `found`: what `module` defines itself before what it imports, modules last."""

    def foreign(name: str) -> tuple[bool, bool]:
        value = named[name]
        return inspect.ismodule(value), getattr(value, "__module__", module.__name__) != module.__name__

    named = {name: value for name, value in getattr(found, "__dict__", {}).items() if not name.startswith("_")}
    return sorted(named, key=foreign)


def load_model(name: str) -> nn.Module:
    """Return the model that the factory called `name` builds; an `nn.Module` object is taken as it is.

    Raises:
        UsageError: as `load_object`; or the factory raises, or returns something else.
    """
    factory = load_object(name, "--model")
    model = factory if isinstance(factory, nn.Module) else guarded(_called(factory, name), f"--model {name}")
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"--model {name} returned a {type(model).__name__}",
            "a torch.nn.Module",
            "name a function without arguments that builds the model",
        )
    return model


def load_inputs(words: Sequence[str]) -> tuple[Any, ...] | dict[str, Any]:
    """Return example inputs: drawn for the shapes in `words`, or what the callable they name returns.

    Floating-point inputs are standard normal, integers 0 or 1 (valid for any vocabulary), with a fixed seed.

    Raises:
        UsageError: a word of another form, names for some inputs only, a callable that fails, or inputs without
            elements.
    """
    given = _inputs(words)
    if empty := empty_shapes(given):
        got = f"--inputs {listing(words)}: no elements in an input of shape {empty}"
        raise UsageError(got, "axes of size 1 or more", "use a batch of 2 or more")
    return given


def _inputs(words: Sequence[str]) -> tuple[Any, ...] | dict[str, Any]:
    matches = [SHAPE.fullmatch(word) for word in words]
    if len(words) == 1 and matches[0] is None and ":" in words[0]:
        given = guarded(_called(load_object(words[0], "--inputs"), words[0]), f"--inputs {words[0]}")
        return (
            dict(given) if isinstance(given, Mapping) else tuple(given) if isinstance(given, tuple | list) else (given,)
        )
    wrong = [word for word, match in zip(words, matches, strict=True) if match is None or not _dtype(match)]
    names = [match["name"] for match in matches if match]
    if wrong or (any(names) and not all(names)) or not words:
        got = f"--inputs {listing(wrong or words) or 'missing'}"
        raise UsageError(got, SHAPE_FORM, "give one --inputs per input, all of them with a name or none")
    generator = torch.Generator().manual_seed(0)
    drawn = [_draw(match, generator) for match in matches if match]
    return dict(zip(names, drawn, strict=True)) if all(names) else tuple(drawn)


def load_callable(name: str, what: str, takes: Sequence[str]) -> Callable[..., Any]:
    """Return the callable called `name`, which is to be called with what `takes` names.

    Raises:
        UsageError: as `load_object`; or it cannot be called in this way.
    """
    found = load_object(name, what)
    if not callable(found):
        raise UsageError(f"{what} {name} is a {type(found).__name__}", "a function", "name a function")
    try:
        signature = inspect.signature(found)
        signature.bind(*takes)
    except ValueError:  # written in C, without a signature
        pass
    except TypeError as error:
        expected = f"a function that can be called with ({', '.join(takes)})"
        raise UsageError(
            f"{what} {name}{signature}: {error}", expected, "change its arguments, or give others a default"
        ) from None
    return found


@dataclass(eq=False)
class Batches:
    """Batches that know which of them was given out last, for messages; empty once all were.

    Args:
        given: the batches.
        what: what gave them.
    """

    given: Any
    what: str
    last: str = ""

    def __len__(self) -> int:
        return len(self.given)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.given, 1):
            shapes = [tuple(leaf.shape) for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
            self.last = f"batch {number} of {self.what}" + (f", of shape {listing(map(str, shapes))}" if shapes else "")
            yield batch
        self.last = ""


def load_batches(name: str, what: str) -> Iterable[Any]:
    """Return the batches that the callable (or iterable) called `name` gives, readable many times.

    Raises:
        UsageError: as `load_object`; or it fails, or gives nothing that can be iterated over.
    """
    found = load_object(name, what)
    batches = guarded(_called(found, name), f"{what} {name}") if callable(found) else found
    # One tensor, or a dict, can be iterated over, but what comes out are no batches.
    if not isinstance(batches, Iterable) or isinstance(batches, torch.Tensor | Mapping | str):
        got, do = f"{what} {name} gives a {type(batches).__name__}", "return a list or loader; [batch] if there is one"
        raise UsageError(got, "batches of inputs", do)
    # A loader over an iterable dataset has a length, but raises TypeError when asked for it.
    if not length_hint(batches, 1):
        raise UsageError(f"{what} {name} gives no batches", "at least one batch of inputs", "check what it returns")
    # A generator is empty after one pass; a loader may be too large to keep.
    found = guarded(lambda: list(batches), f"{what} {name}") if isinstance(batches, Iterator) else batches
    return Batches(found, f"{what} {name}")


def guarded(function: Callable[[], T], doing: str, batches: Iterable[Any] | None = None) -> T:
    """Call the user's code; what it raises becomes a `UsageError` that says where, since no traceback is shown.

    With `batches`, those that are being read, any error says at which of them it came up.
    """
    try:
        return function()
    except OneBasinError as error:
        last = "" if BATCH_NAMED.search(error.got) else _last(batches)
        if not last:
            raise
        raise type(error)(f"{error.got}{last}", error.expected, error.do) from error
    except Exception as error:
        raise UsageError(
            f"{doing} raised {type(error).__name__}: {error}{_place(error)}{_last(batches)}",
            "code that runs",
            "correct it, or the name given on the command line",
        ) from error


def _last(batches: Iterable[Any] | None) -> str:
    """Return where in `batches` reading them has come to, if that is known."""
    return f", at {batches.last}" if isinstance(batches, Batches) and batches.last else ""


def _place(error: Exception) -> str:
    """Return where in the user's code `error` came up: the deepest frame in it; "" if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(Path(frame.filename))]
    return f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _is_users(path: Path) -> bool:
    """Return whether this is a file (generated code has none) that belongs neither to Python nor to a package."""
    return path.is_file() and not any(folder in path.parents for folder in INSTALLED)


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        _search_first(Path.cwd())  # as `python -m` does: a script in the current folder can be named
        return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {place}", "a Python file", "correct the path, from the folder you are in")
    _search_first(path.parent)
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise ImportError(f"{place} cannot be loaded")
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module  # dataclasses and pickles look their module up by name
    found.loader.exec_module(module)
    return module


def _search_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _called(function: Any, name: str) -> Callable[[], Any]:
    if not callable(function):
        raise UsageError(f"{name} is a {type(function).__name__}", "a function without arguments", "name a function")
    return lambda: function()


def _dtype(match: re.Match[str]) -> torch.dtype | None:
    found = getattr(torch, match["dtype"] or "float32", None)
    return found if isinstance(found, torch.dtype) else None


def _draw(match: re.Match[str], generator: torch.Generator) -> torch.Tensor:
    shape, dtype = [int(size) for size in match["sizes"].split("x")], _dtype(match)
    assert dtype is not None
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)
