"""From a model to a proved PermutationSpec: export, interpret, nest, build the spec, prove it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from onebasin.spec import PermutationSpec
from onebasin.symmetry.build import build_spec, movable_buffers
from onebasin.symmetry.export import ExampleInputs, Exported, Outputs, decompose, export
from onebasin.symmetry.interpret import interpret
from onebasin.symmetry.nesting import nest
from onebasin.symmetry.prove import drop_unsound


def permutation_spec(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    outputs: Outputs = None,
    buffers: tuple[str, ...] = (),
) -> PermutationSpec:
    """Find the permutation symmetries of any model, and prove them before returning.

    Args:
        model: any module that torch.export can trace; it is left as it was.
        example_inputs: a tuple of inputs, or a dict of keyword inputs; use a batch of 2 or more.
        outputs: which outputs must be preserved, by number or by name; default: all of them.
        buffers: further buffers that may move; statistics of norms do by themselves, all others keep their order.

    Returns:
        A spec for which `f(P . theta) == f(theta)` holds for every permutation P, checked in float64.

    Raises:
        DiscoveryError: the model rejects the inputs or cannot be traced.
    """
    exported = export(model, example_inputs, outputs)
    _, spec = lay_out(model, exported, outputs, buffers)
    return drop_unsound(exported, spec)


def lay_out(
    model: nn.Module, exported: Exported, outputs: Outputs = None, buffers: Iterable[str] = ()
) -> tuple[Exported, PermutationSpec]:
    """Return the spec of a traced model, not proved yet, and the graph that holds its taps.

    It is another graph than the given one where operators without a rule of their own were decomposed.
    """
    moving = movable_buffers(model, exported) | frozenset(buffers)
    found = interpret(exported, moving)
    simpler = decompose(exported, [node.target for node in found.unknown.values()], outputs)
    if simpler is not None:
        exported, found = simpler, interpret(simpler, moving)
    return exported, build_spec(model, found, nest(found.record))
