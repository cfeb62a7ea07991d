"""Runs an exported graph as a plain function of params and inputs, in any floating type, reading off any node."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from onebasin.functional import channels_last
from onebasin.symmetry.export import Exported

GraphFunction = Callable[[Mapping[str, Tensor], Iterable[Any]], list[Tensor]]
Take = Callable[[int, Tensor, Tensor], object]
PairFunction = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Sequence[Any], Take], None]
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Operators that may refuse what is laid out otherwise than it was when the model was traced.
FIXED_LAYOUT = {
    torch.ops.aten.view.default,
    torch.ops.aten.view.dtype,
    torch.ops.aten.view_as_complex.default,
    torch.ops.aten.as_strided.default,
}
COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def graph_function(exported: Exported, nodes: Iterable[fx.Node], dtype: torch.dtype | None = None) -> GraphFunction:
    """Return `function(params, flat_inputs) -> values of nodes`, without building a module.

    A value that the graph overwrites later is read as its first reader sees it.

    With `dtype` every floating type named in the graph becomes that one, so that a model which casts to float32 inside
    (as RMSNorm of Hugging Face models does) runs in float64 throughout.
    """
    module, _, writes = _reading(exported, nodes, dtype)
    laid_out = _layout(module)
    slots = [node.name for node in _inputs(module.graph)]

    def function(params: Mapping[str, Tensor], flat_inputs: Iterable[Any]) -> list[Tensor]:
        arguments = _arguments(exported, slots, laid_out(params), flat_inputs, dtype, writes)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or before)
        try:
            with torch.no_grad():
                return list(module(*arguments))
        finally:
            torch.set_default_dtype(before)

    return function


def pair_function(exported: Exported, nodes: Iterable[fx.Node]) -> PairFunction:
    """Return `function(params_a, params_b, flat_inputs, take)`, which runs both networks in step.

    `take(number, value_a, value_b)` is called as soon as both have the value of a node. No value is kept longer than
    the networks themselves need it, so their memory is that of two forward passes.
    """
    module, wanted, writes = _reading(exported, nodes, None)
    laid_out = _layout(module)
    slots = [node.name for node in _inputs(module.graph)]
    both = fx.GraphModule(module, _in_step(module.graph, wanted))

    def function(
        params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], flat_inputs: Sequence[Any], take: Take
    ) -> None:
        pair = (_arguments(exported, slots, laid_out(x), flat_inputs, None, writes) for x in (params_a, params_b))
        with torch.no_grad():
            both(take, *(value for arguments in pair for value in arguments))

    return function


def flat_inputs(exported: Exported) -> list[Any]:
    """Return the example inputs in the order of the graph's placeholders."""
    return _pytree.tree_flatten(exported.inputs)[0]


def random_inputs(exported: Exported, dtype: torch.dtype, generator: torch.Generator) -> list[Any]:
    """Return the example inputs with every floating tensor drawn anew (zeros would hide what a permutation does)."""

    def draw(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator, dtype=dtype)
        return value.cpu() if isinstance(value, Tensor) else value

    return [draw(value) for value in flat_inputs(exported)]


def mutates(node: fx.Node) -> bool:
    """Return whether `node` writes into one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def is_view(node: fx.Node) -> bool:
    """Return whether the value of `node` shares memory with an operand."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(out.alias_info is not None for out in schema.returns)


def driven(exported: Exported) -> dict[str, fx.Node]:
    """Return the nodes that depend on the inputs: others are functions of the weights, and no activations."""
    found: dict[str, fx.Node] = {}
    for node in exported.graph.nodes:
        given = node.op == "placeholder" and node.name not in {*exported.sources, *exported.constants}
        if given or any(operand.name in found for operand in node.all_input_nodes):
            found[node.name] = node
            target = node if mutates(node) else None
            while target is not None and (mutates(target) or is_view(target)):
                target = target.all_input_nodes[0]
                found[target.name] = target
    return found


def _reading(
    exported: Exported, nodes: Iterable[fx.Node], dtype: torch.dtype | None
) -> tuple[fx.GraphModule, list[fx.Node], bool]:
    """Return a copy of the graph that returns the values of nodes; what it returns; whether it writes into values."""
    module = copy.deepcopy(exported.program.graph_module)
    copies = dict(zip(exported.graph.nodes, module.graph.nodes, strict=True))
    wanted = _return_only(module.graph, [copies[node] for node in nodes])
    if dtype is not None:
        for inner in [m for m in module.modules() if isinstance(m, fx.GraphModule)]:
            _retype(inner.graph, dtype)
            inner.recompile()
    writes = any(map(mutates, _all_nodes(module)))
    if not writes:
        module.graph.eliminate_dead_code()
    module.recompile()
    return module, wanted, writes


def _all_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    return (node for m in module.modules() if isinstance(m, fx.GraphModule) for node in m.graph.nodes)


def _layout(module: fx.GraphModule) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
    """Return how weights are laid out: channels last, unless the graph holds an operator that could not go on then."""
    return dict if any(node.target in FIXED_LAYOUT for node in _all_nodes(module)) else channels_last


def _in_step(graph: fx.Graph, wanted: Sequence[fx.Node]) -> fx.Graph:
    """Join two copies of a graph: each is run up to the next wanted value, which goes to the first argument at once."""
    joined = fx.Graph()
    take = joined.placeholder("take")
    copies = [{node: joined.placeholder(f"{node.name}_{side}") for node in _inputs(graph)} for side in range(2)]
    numbers: dict[fx.Node, list[int]] = {}
    for number, node in enumerate(wanted):
        numbers.setdefault(node, []).append(number)
    part: list[fx.Node] = []
    for node in graph.nodes:
        part += [node] if node.op not in ("placeholder", "output") else []
        if node in numbers:
            for side in copies:
                for inner in part:
                    side[inner] = joined.node_copy(inner, side.__getitem__)
            for number in numbers[node]:
                joined.call_function(operator.call, (take, number, *(side[node] for side in copies)))
            part = []
    joined.output(())
    return joined


def _inputs(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _arguments(
    exported: Exported,
    slots: Sequence[str],
    params: Mapping[str, Tensor],
    flat_inputs: Iterable[Any],
    dtype: torch.dtype | None,
    writes: bool,
) -> list[Any]:
    inputs = iter(flat_inputs)
    arguments = [_argument(exported, slot, params, inputs, dtype) for slot in slots]
    if writes:  # perhaps into an input or a constant
        return [value.clone() if isinstance(value, Tensor) else value for value in arguments]
    return arguments


def _argument(
    exported: Exported, slot: str, params: Mapping[str, Tensor], inputs: Any, dtype: torch.dtype | None
) -> Any:
    if slot in exported.sources:
        return params[exported.sources[slot]]
    if slot in exported.constants:
        value = exported.constants[slot].detach()
        if dtype is None or not (value.dtype in FLOATS or value.is_complex()):
            return value
        return value.to(COMPLEX[dtype] if value.is_complex() else dtype)
    return next(inputs)


def _return_only(graph: fx.Graph, wanted: list[fx.Node]) -> list[fx.Node]:
    returned = list(map(_kept, wanted)) if any(map(mutates, graph.nodes)) else wanted
    graph.output_node().args = (tuple(returned),)
    for node in list(graph.nodes):
        if "_assert" in str(node.target):
            graph.erase_node(node)
    return returned


def _kept(node: fx.Node) -> fx.Node:
    """Copy a value where it is read first, so that what is written into its memory afterwards does not change it."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return node
    readers = (user for user in node.users if not mutates(user) and not is_view(user))
    with node.graph.inserting_before(next(readers, node.next)):
        return node.graph.call_function(torch.ops.aten.clone.default, (node,))


def _retype(graph: fx.Graph, dtype: torch.dtype) -> None:
    for node in list(graph.nodes):
        if "_assert" in str(node.target):
            graph.erase_node(node)
            continue
        node.args = tuple(dtype if _has_dtype(value) else value for value in node.args)
        node.kwargs = {key: dtype if _has_dtype(value) else value for key, value in node.kwargs.items()}


def _has_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in FLOATS
