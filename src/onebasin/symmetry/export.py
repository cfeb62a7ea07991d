"""The only file that knows torch.export: from a module to a graph, its parameters and its outputs."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from onebasin.errors import DiscoveryError, UsageError, listing
from onebasin.functional import empty_shapes, eval_mode

ExampleInputs = tuple[Any, ...] | Mapping[str, Any] | Tensor
CORRECT_EXAMPLES = "correct the example inputs (batch size 2 or more)"
TORCH = Path(torch.__file__).parent
MAX_QUOTE = 200  # of what another library says in an error


@dataclass(frozen=True)
class Exported:
    """A traced model.

    Args:
        program: what torch.export returned.
        inputs: positional and keyword example inputs.
        sources: placeholder name -> qualified name of the parameter or buffer it stands for.
        buffers: those of the qualified names that are buffers.
        constants: placeholder name -> tensor that is neither parameter, persistent buffer nor input.
        held: nodes whose values must be preserved: the chosen outputs.
    """

    program: ExportedProgram
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    sources: dict[str, str]
    buffers: frozenset[str]
    constants: dict[str, Tensor]
    held: tuple[fx.Node, ...]

    @property
    def graph(self) -> fx.Graph:
        """The traced graph."""
        return self.program.graph_module.graph


def export(
    model: nn.Module, example_inputs: ExampleInputs, outputs: Outputs = None, *, remedy: str = CORRECT_EXAMPLES
) -> Exported:
    """Trace `model` in eval mode; the model is left as it was. `remedy` is what to do if it rejects the inputs.

    Raises:
        UsageError: this is no model, or the inputs have no elements.
        DiscoveryError: the model rejects the inputs, or torch.export cannot trace it (with the construct and line).
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"a {type(model).__name__} as model", "a torch.nn.Module", "build the model first")
    args, kwargs = _split(example_inputs)
    if empty := empty_shapes((args, kwargs)):  # on nothing every permutation leaves the outputs as they are
        got = f"inputs without elements, of shape {empty}"
        raise UsageError(got, "axes of size 1 or more", "use a batch of 2 or more")
    with eval_mode(model), torch.no_grad():
        program = _trace(model, args, kwargs, remedy)
    return wrap(program, (args, kwargs), outputs)


Outputs = int | str | tuple[int | str, ...] | None


def wrap(program: ExportedProgram, inputs: tuple[tuple[Any, ...], dict[str, Any]], outputs: Outputs) -> Exported:
    """Read off an exported program what the interpreter needs."""
    persistent = {InputKind.PARAMETER: True, InputKind.BUFFER: True}
    sources, constants = {}, {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in persistent and spec.persistent is not False:
            sources[spec.arg.name] = str(spec.target)
        elif spec.kind is not InputKind.USER_INPUT:
            value = program.constants.get(str(spec.target))
            if isinstance(value, Tensor):
                constants[spec.arg.name] = value
    buffers = frozenset(program.graph_signature.inputs_to_buffers.values())
    return Exported(program, inputs, sources, buffers, constants, _held(program, outputs))


def decompose(exported: Exported, ops: list[Any], outputs: Outputs) -> Exported | None:
    """Replace the given operators, and only these, by torch's own decompositions; None where there are none."""
    table = torch.export.default_decompositions()
    chosen = {op: table[op] for op in ops if op in table}
    if not chosen:
        return None
    with quiet(), torch.no_grad():
        return wrap(exported.program.run_decompositions(chosen), exported.inputs, outputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch.export warns and logs of its own accord; its errors are told in our words."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def location(node: fx.Node) -> str:
    """Return "file.py:line" of the user's code that made `node`; else the module that ran it; else ""."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(path, line) for path, line in frames if TORCH not in Path(path).parents]
    if own:
        path, line = own[-1]
        return "/".join(Path(path).parts[-2:]).lstrip("/") + f":{line}"
    modules = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values() if name]
    return f"module {modules[-1]}" if modules else ""


def _split(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise UsageError(
        f"example inputs of type {type(example_inputs).__name__}",
        "a tuple of inputs, or a dict of keyword inputs",
        "pass what the model is called with: (x,) for model(x)",
    )


def _trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], remedy: str) -> ExportedProgram:
    try:
        with quiet():
            return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        _check_inputs(model, args, kwargs, remedy)
        cause, advice = _diagnose(error)
        raise DiscoveryError(
            f"torch.export cannot trace {type(model).__name__}: {cause}",
            "a forward whose operations do not depend on the values of its tensors",
            advice,
        ) from error


def _check_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], remedy: str) -> None:
    """Tell inputs that the model rejects by itself from what only tracing cannot do."""
    try:
        model(*args, **kwargs)
    except Exception as error:
        if any(value.is_meta for value in model.parameters()):
            return  # without values a forward pass may fail where tracing would not
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in (*args, *kwargs.values())]
        raise DiscoveryError(
            f"the model rejects its inputs {shapes}: {type(error).__name__}: {_first_line(error)}",
            "inputs that model(*inputs) or model(**inputs) accepts",
            remedy,
        ) from error


# What torch.export says -> what it means, and the way out. Looked up in order; the first that fits is shown.
DIAGNOSES = (
    ("data-dependent", "data-dependent control flow", "replace the branch by torch.where or torch.cond"),
    (
        "DynamicCache",
        "a cache object in the output",
        "pass use_cache=False in the example inputs, or set model.config.use_cache = False",
    ),
    (
        "no fake impl registered",
        "a custom operator of which only the result is known, not its shape",
        "describe its shape with torch.library.register_fake, and its axes with onebasin.rule",
    ),
    (
        "in output, which is not a known type",
        "an output that is no tensor",
        "return tensors, or wrap the model and return only those",
    ),
    ("FakeTensorDeviceMismatch", "tensors on several devices", "put model and inputs on one device"),
)


def _diagnose(error: Exception) -> tuple[str, str]:
    text = f"{type(error).__name__}: {error}"
    where = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [f"{Path(path).name}:{line}" for path, line in where if TORCH not in Path(path).parents]
    at = f" at {own[-1]}" if own else _raised_at(error)
    for sign, meaning, advice in DIAGNOSES:
        if sign.lower() in text.lower():
            return f"{meaning}{at} ({_first_line(error)})", advice
    return f"{_first_line(error)}{at}", "rewrite that construct in plain tensor operations"


def _raised_at(error: Exception) -> str:
    trace, own = error.__traceback__, ""
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if TORCH not in path.parents and path.parent.parent != Path(__file__).parent.parent and path.exists():
            own = f" at {path.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return own


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= MAX_QUOTE else line[:MAX_QUOTE] + "..."


def _held(program: ExportedProgram, outputs: Outputs) -> tuple[fx.Node, ...]:
    names = [s.arg.name for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT and s.arg]
    nodes = {node.name: node for node in program.graph_module.graph.nodes}
    if outputs is None:
        return tuple(nodes[name] for name in names if name in nodes)
    keys = _output_keys(program, len(names))
    wanted = outputs if isinstance(outputs, tuple) else (outputs,)
    unknown = [str(key) for key in wanted if key not in keys]
    if unknown:
        raise DiscoveryError(
            f"no output is called {listing(unknown)}", f"one of: {listing(map(str, keys))}", "correct `outputs`"
        )
    return tuple(nodes[name] for key in wanted for name in names[keys[key]] if name in nodes)


def _output_keys(program: ExportedProgram, count: int) -> dict[int | str, slice]:
    """Return number or name of an output -> its tensors; one that is named may hold several."""
    keys: dict[int | str, slice] = {number: slice(number, number + 1) for number in range(count)}
    tree = program.call_spec.out_spec
    if tree is not None and isinstance(tree.context, (list, tuple)):
        start = 0
        for name, child in zip(_names(tree.context), tree.children(), strict=False):
            keys[name] = slice(start, start + child.num_leaves)
            start += child.num_leaves
    return keys


def _names(context: Any) -> list[str]:
    flat = [item for entry in context for item in (entry if isinstance(entry, (list, tuple)) else [entry])]
    return [item for item in flat if isinstance(item, str)]
