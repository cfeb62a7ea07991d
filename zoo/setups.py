"""A set-up of the zoo, and what discovery finds on it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from onebasin.spec import PermutationSpec
from onebasin.symmetry.build import build_spec, movable_buffers
from onebasin.symmetry.export import ExampleInputs, Exported, Outputs, decompose, export
from onebasin.symmetry.interpret import interpret
from onebasin.symmetry.nesting import nest
from onebasin.symmetry.prove import TOLERANCE, Trial

Made = tuple[nn.Module, ExampleInputs]


@dataclass(frozen=True)
class Setup:
    """A model to put through discovery.

    Args:
        name: what the row is called.
        make: builds the module and its example inputs.
        outputs: which outputs are held fixed; default: all.
    """

    name: str
    make: Callable[[], Made]
    outputs: Outputs = None


@dataclass(frozen=True)
class Row:
    """What was found on one set-up; times in seconds.

    Args:
        name: of the set-up.
        shapes: of all groups: "48^2 32 4x8^3" is two groups of 48, one of 32, three of 8 units under each of 4 parents.
        groups: number of groups.
        nested: number of groups with an own permutation for each unit of another.
        covered: share of trained elements that at least one group moves.
        log10_shared: log10 of the number of symmetries with one permutation per group.
        log10_nested: the same with nesting.
        difference: largest change of an output under random permutations of all groups, relative to the largest output.
        without_rule: operators that froze what they touch.
        export, infer, prove: seconds.
    """

    name: str
    shapes: str
    groups: int
    nested: int
    covered: float
    log10_shared: float
    log10_nested: float
    difference: float
    without_rule: tuple[str, ...]
    export: float
    infer: float
    prove: float

    @property
    def sound(self) -> bool:
        """Whether the outputs stayed the same."""
        return self.difference <= TOLERANCE


def discover(model: nn.Module, exported: Exported, outputs: Outputs = None) -> tuple[PermutationSpec, tuple[str, ...]]:
    """Return the spec as found, nested and not yet proved, and the operators without a rule.

    This is `permutation_spec` without its last step, which would drop a wrong group silently.
    """
    moving = movable_buffers(model, exported)
    found = interpret(exported, moving)
    simpler = decompose(exported, [node.target for node in found.unknown.values()], outputs)
    if simpler is not None:
        found = interpret(simpler, moving)
    return build_spec(model, found, nest(found.record)), tuple(found.unknown)


def measure(setup: Setup, seed: int = 0) -> Row:
    """Build the model of `setup`, discover its groups and try them in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, inputs = setup.make()
    model.eval()
    clock = [time.perf_counter()]
    exported = export(model, inputs, setup.outputs)
    clock.append(time.perf_counter())
    spec, without_rule = discover(model, exported, setup.outputs)
    clock.append(time.perf_counter())
    difference = largest_difference(Trial(exported, spec, seed)) if spec.sizes else 0.0
    clock.append(time.perf_counter())
    return Row(
        setup.name,
        shapes_text(spec),
        len(spec.sizes),
        len(spec.parents),
        spec.covered(),
        log10_shared(spec),
        spec.log10_symmetries(),
        difference,
        without_rule,
        *(later - sooner for sooner, later in pairwise(clock)),
    )


def largest_difference(trial: Trial) -> float:
    """Return the largest relative change of an output when groups are permuted: all, then sets that part every two.

    Two units have one way to move: when all groups move, those of two units all move alike, even if mixed up.
    """
    names = list(trial.spec.sizes)
    bits = range((len(names) - 1).bit_length())
    parted = [[name for number, name in enumerate(names) if number >> bit & 1] for bit in bits]
    return max(trial.difference(chosen) for chosen in [names, *parted])


def shapes_text(spec: PermutationSpec) -> str:
    """Write the shapes of all index arrays, the largest groups first: "48 3x8^2" is 48 units, and twice 8 under 3."""
    shapes = Counter(tuple(reversed(spec.index_shape(name))) for name in spec.sizes)
    texts = [("x".join(map(str, reversed(shape))), count) for shape, count in sorted(shapes.items(), reverse=True)]
    return " ".join(f"{text}^{count}" if count > 1 else text for text, count in texts)


def log10_shared(spec: PermutationSpec) -> float:
    """Return log10 of the number of symmetries with one permutation per group, as if nothing were nested."""
    return sum(math.lgamma(size + 1) for size in spec.sizes.values()) / math.log(10)
