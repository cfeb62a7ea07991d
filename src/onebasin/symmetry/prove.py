"""The numerical proof of a spec: random group elements, random parameters, float64, the exported graph itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from onebasin import layout
from onebasin.errors import ProofError, listing
from onebasin.layout import NOT_UNDERSTOOD, Axis, Leaf
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec
from onebasin.symmetry.export import ExampleInputs, Exported, Outputs, export
from onebasin.symmetry.graph import GraphFunction, graph_function, random_inputs

# float64 rounding through a deep network stays near 1e-13; a wrong permutation changes outputs by about their own size.
TOLERANCE = 1e-10
# Parameters, inputs and permutations are drawn so often: a unit that is off in one draw is on in another.
DRAWS = 2


def prove(
    model: nn.Module, spec: PermutationSpec, example_inputs: ExampleInputs, *, outputs: Outputs = None, seed: int = 0
) -> float:
    """Check `f(P . theta) == f(theta)` for random P and theta, in float64 on the exported graph.

    Use it on a spec written by hand; specs from `permutation_spec` have been through it.

    Returns:
        The largest difference of an output, relative to the largest output.

    Raises:
        ProofError: the function changes (names the groups that change it on their own), or no output has an element
            that could be compared.
        DiscoveryError: the model cannot be traced.
    """
    exported = export(model, example_inputs, outputs)
    worst = _worst(exported, spec, seed)
    if worst > TOLERANCE:
        trial = Trial(exported, spec, seed)
        guilty = [name for name in spec.sizes if trial.difference([name]) > TOLERANCE]
        raise ProofError(
            f"the spec changes the outputs by {worst:.1e} (relative); on their own: {listing(guilty) or 'none'}",
            f"a difference below {TOLERANCE:.0e} in float64",
            "correct the axes of these groups, or let permutation_spec find them",
        )
    return worst


def drop_unsound(exported: Exported, spec: PermutationSpec, seed: int = 0) -> PermutationSpec:
    """Return `spec` if it passes the proof; else without its nesting; else without the groups that fail on their own.

    The result records the largest difference seen. Without weights (meta device) nothing can be proved, and it says so.

    Raises:
        ProofError: what is left fails as well.
    """
    if any(value.is_meta for value in exported.program.state_dict.values()):
        return spec
    flat = replace(spec, parents={})
    for candidate in (spec, flat) if spec.parents else (spec,):
        worst = _worst(exported, candidate, seed)
        if worst <= TOLERANCE:
            return replace(candidate, proof=worst)
    trials = [Trial(exported, flat, seed + draw) for draw in range(DRAWS)]
    guilty = {name for name in flat.sizes if any(trial.difference([name]) > TOLERANCE for trial in trials)}
    rest = frozen(flat, guilty, NOT_UNDERSTOOD + "it failed the numerical proof")
    worst = _worst(exported, rest, seed)
    if worst > TOLERANCE:
        raise ProofError(
            f"the symmetries found change the outputs by {worst:.1e} (relative), though each group alone does not",
            f"a difference below {TOLERANCE:.0e} in float64",
            "report this model to the developers; until then write its spec by hand",
        )
    return replace(rest, proof=worst)


def _worst(exported: Exported, spec: PermutationSpec, seed: int) -> float:
    """Return the largest difference over several trials; the first that fails ends them."""
    worst = 0.0
    for draw in range(DRAWS):
        worst = max(worst, Trial(exported, spec, seed + draw).difference(spec.sizes))
        if worst > TOLERANCE:
            break
    return worst


class Trial:
    """Random parameters and inputs of an exported model in float64, and the outputs they give."""

    def __init__(self, exported: Exported, spec: PermutationSpec, seed: int) -> None:
        self.spec = spec
        self.generator = torch.Generator().manual_seed(seed)
        self.function: GraphFunction = graph_function(exported, exported.held, torch.float64)
        self.inputs = random_inputs(exported, torch.float64, self.generator)
        given = {name: exported.program.state_dict[name].detach() for name in exported.sources.values()}
        for draw in (_drawn, _perturbed):
            self.params = _tied({name: draw(name, value, spec, self.generator) for name, value in given.items()}, spec)
            self.outputs = self.function(self.params, self.inputs)
            if not any(value.numel() for value in self.outputs):
                raise _nothing_to_compare(self.outputs)
            if all(torch.isfinite(value).all() for value in self.outputs):
                return
        raise ProofError(
            "outputs that are not finite, for random parameters and for the model's own",
            "finite outputs, without which nothing can be compared",
            "pass example inputs on which the model works",
        )

    def difference(self, groups: Iterable[str]) -> float:
        """Permute `groups` at random, all others not; return the largest relative difference of an output."""
        chosen = set(groups)
        drawn = Permutation.random(self.spec, self.generator)
        still = Permutation.identity(self.spec)
        source = {name: (drawn if name in chosen else still).indices[name] for name in self.spec.sizes}
        for name in chosen:  # a small group is often drawn as the identity, which proves nothing
            if torch.equal(source[name], still.indices[name]):
                source[name] = source[name].roll(1, -1)
        permutation = Permutation(self.spec, source)
        moved = {name: permutation.move(value, self.spec.tensors[name]) for name, value in self.params.items()}
        return _largest_difference(self.outputs, self.function(_tied(moved, self.spec), self.inputs))


def _nothing_to_compare(outputs: Sequence[Tensor]) -> ProofError:
    shapes = listing(str(tuple(value.shape)) for value in outputs)
    return ProofError(
        f"outputs without a single element: {f'of shape {shapes}' if shapes else 'none are to be preserved'}",
        "at least one element, without which nothing can be compared",
        "pass example inputs for which the model gives something, and name outputs that hold something",
    )


def frozen(spec: PermutationSpec, groups: set[str], why: str) -> PermutationSpec:
    """Return `spec` without `groups`; what was nested under one of them goes too."""
    gone = groups | {name for name, parents in spec.parents.items() if groups & set(parents)}

    def fix(axis: Axis) -> Axis:
        if isinstance(axis, Leaf):
            return Leaf(axis.size, None, why) if axis.group in gone else axis
        return layout.joined(type(axis), [fix(part) for part in axis.parts])

    return replace(
        spec,
        sizes={name: size for name, size in spec.sizes.items() if name not in gone},
        parents={name: parents for name, parents in spec.parents.items() if name not in gone},
        tensors={name: tuple(fix(axis) for axis in row) for name, row in spec.tensors.items()},
        taps={name: tuple(fix(axis) for axis in row) for name, row in spec.taps.items()},
    )


def _tied(params: Mapping[str, Tensor], spec: PermutationSpec) -> Params:
    first = {name: names[0] for names in spec.ties for name in names}
    return {
        name: params[first.get(name, name)] if first.get(name, name) in params else value
        for name, value in params.items()
    }


def _drawn(name: str, value: Tensor, spec: PermutationSpec, generator: torch.Generator) -> Tensor:
    """Draw a trained tensor of the usual scale, or a moving statistic between 1/2 and 3/2; keep anything else."""
    moves = any(leaf.group for axis in spec.tensors[name] for leaf in layout.leaves(axis))
    if not value.is_floating_point() or (name in spec.buffers and not moves):
        return value.double() if value.is_floating_point() else value
    if name in spec.buffers:
        return 0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    if value.dim() < 2:
        return 1 + noise / 2
    return noise / max(value[0].numel(), 1) ** 0.5


def _perturbed(name: str, value: Tensor, spec: PermutationSpec, generator: torch.Generator) -> Tensor:
    """Stay near the given value, for models that random parameters drive out of range."""
    if not value.is_floating_point() or name in spec.buffers:
        return _drawn(name, value, spec, generator)
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return value.double() * (1 + noise / 10) + noise / 100


def _largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if not a.is_floating_point():
            worst = max(worst, float(not torch.equal(a, b)))
        elif a.numel():
            # `max` passes over NaN, which is no small difference.
            change = (a - b).abs().nan_to_num(nan=torch.inf).max()
            worst = max(worst, (change / a.abs().max().clamp_min(1e-30)).item())
    return worst
