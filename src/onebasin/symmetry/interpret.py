"""Walks the live part of an exported graph with abstract tensors, and again while reshapes learn of later cuts."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from onebasin.symmetry import rules
from onebasin.symmetry.abstract import Abstract, Blocks, Record
from onebasin.symmetry.axes import Term, freeze, leaf
from onebasin.symmetry.call import Call, Context, Cuts, Value, flat, schema_arguments
from onebasin.symmetry.export import Exported, location
from onebasin.symmetry.graph import is_view, mutates
from onebasin.symmetry.rules import routing

# Two runs were enough for every model seen; each run can only add cuts at new offsets, so this bound is never felt.
MAX_RUNS = 16
# Small constants of the forward pass are computed: a range then acts as a slice, equal elements as a fill.
MAX_CONSTANT = 1 << 20
# Operators that look at sizes and types, not at what a tensor holds.
BOOKKEEPING = ("_assert", "sym_")


@dataclass
class Interpretation:
    """The axes of every live tensor of a model.

    Args:
        tensors: qualified name -> axes, of the parameters and buffers that the outputs depend on.
        taps: node -> axes, where activations of units can be read.
        record: all tensors and operations, for the nested pass.
        unknown: operator without a rule -> the nodes of it, for reports and decomposition.
    """

    tensors: dict[str, tuple[Term, ...]]
    taps: dict[str, tuple[Term, ...]]
    record: Record
    unknown: dict[str, fx.Node]


def interpret(exported: Exported, moving_buffers: frozenset[str]) -> Interpretation:
    """Find the axes of all parameters and buffers. `moving_buffers` may move; all other buffers keep their order."""
    cuts: Cuts = {}
    for _ in range(MAX_RUNS):
        walk = _Walk(exported, moving_buffers, Context(cuts))
        found = walk.run()
        wanted = walk.context.wanted_cuts
        if all(offsets <= cuts.get(view, set()) for view, offsets in wanted.items()):
            break
        for view, offsets in wanted.items():
            cuts.setdefault(view, set()).update(offsets)
    return found


def live_nodes(graph: fx.Graph, held: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes that the held outputs depend on; operations that write into a tensor count as outputs."""
    waiting = [*held, *(node for node in graph.nodes if mutates(node))]
    live: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting += node.all_input_nodes
    return live


class _Walk:
    """One run over the graph."""

    def __init__(self, exported: Exported, moving_buffers: frozenset[str], context: Context) -> None:
        self.exported, self.moving_buffers, self.context = exported, moving_buffers, context
        self.tensors: dict[str, tuple[Term, ...]] = {}

    def run(self) -> Interpretation:
        graph = self.exported.graph
        live = live_nodes(graph, self.exported.held)
        env: dict[fx.Node, Value] = {}
        for node in graph.nodes:
            if node in live and node.op == "placeholder":
                env[node] = self._placeholder(node)
            elif node in live:
                self._step(node, env, self.exported.program.graph_module)
        for node in self.exported.held:
            for value in flat(env[node]):
                self._freeze_output(value)
        return Interpretation(self.tensors, self.context.taps, self.context.record, self.context.unknown)

    def _placeholder(self, node: fx.Node) -> Value:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        shape = tuple(map(int, value.shape))
        name = self.exported.sources.get(node.name)
        if name is None:
            return self._constant(node, shape)
        held = name in self.exported.buffers and name not in self.moving_buffers
        why = "a buffer that is no statistic of a norm" if held else None
        self.tensors[name] = tuple(leaf(size, why) for size in shape)
        self.context.record.tensors.append(self.tensors[name])
        self.context.record.stored.append(self.tensors[name])
        return Abstract(self.tensors[name])

    def _constant(self, node: fx.Node, shape: tuple[int, ...]) -> Abstract:
        constant = self.exported.constants.get(node.name)
        if constant is None:
            return Abstract(tuple(leaf(size, "model input") for size in shape))
        return _known(constant, shape, "a constant of the model", node)

    def _freeze_output(self, value: Value) -> None:
        if isinstance(value, Blocks):
            value = value.collapse()
        if isinstance(value, Abstract):
            for term in (*value.axes, *([value.meaning.axis] if value.meaning else [])):
                freeze(term, "model output", mixed=False)

    def _step(self, node: fx.Node, env: dict[fx.Node, Value], module: torch.nn.Module) -> None:
        if node.op == "get_attr":
            env[node] = self._attribute(node, module)
        elif node.op == "call_function":
            env[node] = self._call(node, env, module)
            for value in flat(env[node]):
                self._register(value)

    def _register(self, value: Value) -> None:
        for part in value.parts if isinstance(value, Blocks) else (value,):
            if isinstance(part, Abstract) and not part.fill:
                self.context.record.tensors.append(part.axes)

    def _attribute(self, node: fx.Node, module: torch.nn.Module) -> Value:
        value = operator.attrgetter(str(node.target))(module)
        return (
            _known(value, tuple(value.shape), "a constant of the model", node) if isinstance(value, Tensor) else value
        )

    def _call(self, node: fx.Node, env: Mapping[fx.Node, Value], module: torch.nn.Module) -> Value:
        target: Any = node.target
        if target is operator.getitem:
            return env[node.args[0]][node.args[1]]  # type: ignore[index]
        arguments = {key: fx.node.map_arg(value, env.__getitem__) for key, value in schema_arguments(node)}
        name, rule = rules.find(target)
        if any(isinstance(value, fx.GraphModule) for value in arguments.values()):
            return self._higher_order(node, list(arguments.values()))
        call = Call(name, node, arguments, self.context)
        if name.startswith(BOOKKEEPING):
            return node.meta.get("val")
        if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            return self._number(call)
        return self._apply(call, rule, arguments)

    def _apply(self, call: Call, rule: rules.Rule | None, arguments: Mapping[str, Value]) -> Value:
        folded = _fold(call.node, arguments)
        if folded is not None:
            return folded
        try:
            result = _with_meaning(call, rule or self._no_rule)
            shapes = [value.shape for value in flat(result) if isinstance(value, (Abstract, Blocks))]
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
            shapes = []  # a use that the rule was not written for
        if shapes != call.shapes:
            return self._no_rule(call)
        if isinstance(result, Abstract) and result.fill and _written_to(call.node):
            return Abstract(result.axes)
        return result

    def _number(self, call: Call) -> Value:
        """Return what is no tensor; nobody follows what becomes of a number that was read out of one."""
        for value in call.operands():
            call.freeze(value.axes, "read out as a Python number")
        return call.node.meta.get("val")

    def _no_rule(self, call: Call) -> Value:
        self.context.unknown.setdefault(f"{call.name} at {location(call.node)}", call.node)
        return call.given_up("an operator without a rule (onebasin.rule registers one)")

    def _higher_order(self, node: fx.Node, values: list[Value]) -> Value:
        """Interpret the sub-graphs of a call: a region under no_grad or autocast, or both branches of a cond."""
        graphs = [value for value in values if isinstance(value, fx.GraphModule)]
        last = max(number for number, value in enumerate(values) if isinstance(value, fx.GraphModule))
        operands = [item for v in values[last + 1 :] for item in (v if isinstance(v, (list, tuple)) else [v])]
        if "wrap_with" not in str(node.target) and str(node.target) != "cond":
            return self._no_rule(Call(str(node.target), node, {"operands": operands}, self.context))
        first, *others = [self._region(graph, operands) for graph in graphs]
        for other in others:
            for one, two in zip(flat(first), flat(other), strict=True):
                self.context.record.join([(value.axes, range(len(value.axes))) for value in (one, two)], ())
        return first

    def _region(self, inner: fx.GraphModule, operands: Iterable[Value]) -> Value:
        env: dict[fx.Node, Value] = {}
        waiting = iter(operands)
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(waiting)
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], env.__getitem__)
            else:
                self._step(node, env, inner)
        raise AssertionError("a graph without an output")


def _with_meaning(call: Call, rule: rules.Rule) -> Value:
    """Follow a rule; where integers are positions of an axis, keep track of that for as long as it can be."""
    first, given = next(iter(call.arguments.items()), ("", None))
    if call.name in routing.AWARE and any(isinstance(v, Abstract) and v.meaning for v in flat(call.arguments)):
        found = routing.AWARE[call.name](call)
        if found is not None:
            return found
    elif isinstance(given, Abstract) and given.meaning is not None and call.name in routing.PASSING:
        plain = replace(call, arguments={**call.arguments, first: replace(given, meaning=None)})
        return replace(rule(plain), meaning=given.meaning)
    return rule(call)


def _known(value: Tensor, shape: tuple[int, ...], why: str, node: fx.Node) -> Abstract:
    """Return a constant; equal elements make a fill. A tensor that is written into later is not known."""
    if value.device.type == "meta":
        why += ", of unknown value on the meta device: build the model with weights, or on torch.device('cpu')"
    if value.device.type == "meta" or _written_to(node):
        return Abstract(tuple(leaf(size, why) for size in shape))
    equal = value.numel() > 0 and bool((value == value.flatten()[0]).all())
    if equal:
        return Abstract(tuple(leaf(size) for size in shape), constant=value, fill=True)
    return Abstract(tuple(leaf(size, why) for size in shape), constant=value)


def _fold(node: fx.Node, arguments: Mapping[str, Value]) -> Value | None:
    """Compute an operation on constants alone, so that its value is known to the rules that look at it."""
    out = node.meta.get("val")
    if not isinstance(out, Tensor) or out.numel() > MAX_CONSTANT or mutates(node):
        return None
    values = list(flat(arguments))
    operands = [value for value in values if isinstance(value, (Abstract, Blocks))]
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags or not hasattr(node.target, "_schema"):
        return None
    if any(isinstance(value, Blocks) or value.constant is None for value in operands):
        return None

    def real(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [real(item) for item in value]
        return value.constant if isinstance(value, Abstract) else value

    schema = node.target._schema
    positional = [real(arguments[a.name]) for a in schema.arguments if not a.kwarg_only]
    keywords = {a.name: real(arguments[a.name]) for a in schema.arguments if a.kwarg_only}
    if "device" in keywords:  # a model on the meta device still makes its constants here
        keywords["device"] = torch.device("cpu")
    result = node.target(*positional, **keywords)  # type: ignore[operator]
    return _known(result, tuple(map(int, out.shape)), f"made in the forward pass ({location(node)})", node)


def _written_to(node: fx.Node) -> bool:
    """Return whether an operation writes into this tensor or into a view of it."""
    return any(
        (mutates(user) and user.args[:1] == (node,)) or (_views(user, node) and _written_to(user))
        for user in node.users
    )


def _views(user: fx.Node, node: fx.Node) -> bool:
    return user.args[:1] == (node,) and is_view(user)
