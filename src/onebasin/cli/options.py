"""Options that several verbs share, as dataclasses: the fields are the flags, the docstrings their help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from torch import nn
from torch.utils._pytree import tree_map_only

from onebasin.checkpoints import Checkpoint, load_spec, read
from onebasin.cli.resolve import load_inputs, load_model
from onebasin.cli.terminal import note
from onebasin.cli.writing import check_targets
from onebasin.errors import UsageError
from onebasin.matching import WeightMatching
from onebasin.matching.align import check_numbers
from onebasin.matching.features import FeatureName
from onebasin.matching.solvers import SolverName
from onebasin.params import Params, check_real, check_shapes, map_tensors, params_of, widened_to
from onebasin.spec import PermutationSpec
from onebasin.symmetry.discover import permutation_spec
from onebasin.symmetry.export import ExampleInputs
from onebasin.symmetry.prove import prove


@dataclass(frozen=True)
class Architecture:
    """Which architecture: a model with example inputs, or the spec of one.

    Args:
        model: Factory of the model, `package.module:name` or `path/to/file.py:name`, called without arguments.
        inputs: Shape of an input, as `2x3x32x32` or `2x16:int64` or `name=2x16:int64`, once per input; or a callable
            that returns the inputs, named like the model. Use a batch of 2 or more.
        outputs: Names or numbers of the outputs that must be preserved; default: all of them.
        spec: Spec written by `onebasin inspect --out`, or by hand; with a model and inputs it is proved first.
    """

    model: str | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    spec: Path | None = None

    def build(self) -> nn.Module:
        """Return the model. Raises `UsageError` without one."""
        if self.model is None:
            raise UsageError("no model", "--model package.module:factory", "name the factory that builds the model")
        return load_model(self.model)

    def permutation_spec(self, model: nn.Module | None = None) -> PermutationSpec:
        """Return the proved spec: discovered, or the one that was given (proved if there is a model with inputs).

        Args:
            model: the model, if it was built already.
        """
        if self.spec is not None:
            spec = load_spec(self.spec)
            return self._proved(spec, model or self.build()) if self.model is not None and self.inputs else spec
        if self.model is None:
            do = "name a model with its inputs, or write a spec once with `onebasin inspect --out spec.json`"
            raise UsageError("neither a model nor a spec", "--model with --inputs, or --spec", do)
        load_inputs(self.inputs)  # before the model: a misspelt shape is told at once
        model = model or self.build()
        return permutation_spec(model, self.example_inputs(model), outputs=self.held())

    def _proved(self, spec: PermutationSpec, model: nn.Module) -> PermutationSpec:
        check_shapes(params_of(model), spec.shapes, f"--model {self.model}")
        return replace(spec, proof=prove(model, spec, self.example_inputs(model), outputs=self.held()))

    def example_inputs(self, model: nn.Module) -> ExampleInputs:
        """Return example inputs where `model` computes. Raises `UsageError` without any."""
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(_device(model)), load_inputs(self.inputs))

    def held(self) -> tuple[int | str, ...] | None:
        """Return the outputs that must be preserved; None: all."""
        return tuple(int(name) if name.isdecimal() else name for name in self.outputs) or None


# `-o` is what people try.
OUT_FLAG = Parameter(alias="-o")
OutPath = Annotated[Path | None, OUT_FLAG]


@dataclass(frozen=True)
class Output:
    """Where the result goes.

    Args:
        dry_run: Check everything and say what would be done, but do nothing.
        out: Where to write.
        force: Write over what is there.
        json: Print one JSON document on stdout instead of tables.
    """

    dry_run: bool = False
    out: OutPath = None
    force: bool = False
    json: bool = False

    def target(self) -> Path:
        """Return where to write. Raises `UsageError` if that is missing."""
        if self.out is None:
            raise UsageError("no place to write to", "--out PATH", "name a new file or folder, or try --dry-run first")
        return self.out

    def check(self, documents: Iterable[str] = ()) -> None:
        """Raise, before any work is done, if the weights or the `documents` beside them must not be written."""
        if self.out is not None or not self.dry_run:
            check_targets(self.target(), documents, force=self.force)


@dataclass(frozen=True)
class Matching:
    """How weights are matched.

    Args:
        seed: Seed of whatever is random: the order in which groups of units are visited, starts, batches,
            synthetic inputs.
        max_sweeps: Stop after so many rounds through all groups; 100 as published.
        faq_steps: How long to look for a better order of a group that stands on two axes of one tensor, as in recurrent
            layers; 0: not at all.
        solver: "coordinate-descent": group by group, as published; "frank-wolfe": all groups at once, which brings
            weights closer at some four times the cost; "sinkhorn": by soft orders.
        features: What is compared: "raw": the weights themselves, as published; "unit": weights scaled so that every
            tensor counts alike.
    """

    seed: int = WeightMatching.seed
    max_sweeps: int = WeightMatching.max_sweeps
    faq_steps: int = WeightMatching.faq_steps
    solver: SolverName = "coordinate-descent"
    features: FeatureName = "raw"

    def matcher(self) -> WeightMatching:
        """Return the matcher. Raises `UsageError` if a number is out of range."""
        for name in ("seed", "max_sweeps", "faq_steps"):
            value = getattr(self, name)
            if not 0 <= value < 1 << 63:
                got, do = f"--{name.replace('_', '-')} {value}", "choose one of these, or leave it out"
                raise UsageError(got, "none or more, below 2^63", do)
        return WeightMatching(self.seed, self.max_sweeps, self.faq_steps, self.solver, self.features)


# As parameters of a verb: every field is a flag of its own.
ArchitectureFlags = Annotated[Architecture, Parameter(name="*")]
OutputFlags = Annotated[Output, Parameter(name="*")]
MatchingFlags = Annotated[Matching, Parameter(name="*", group="Weight matching")]
ARCHITECTURE, OUTPUT, MATCHING = Architecture(), Output(), Matching()


def read_for(spec: PermutationSpec, path: Path) -> Checkpoint:
    """Read the weights at `path` and check that they fit `spec` and are finite; tell what was unwrapped.

    Raises:
        CheckpointError: they cannot be read.
        ParamsError: they do not fit `spec`, are integers, or are not finite.
    """
    found = read(path, like=spec.tensors)
    for text in found.notes:
        note(f"{path}: {text}")
    params = _with_ties(found.params, spec)
    check_shapes(params, spec.shapes, str(path))
    check_real(params, spec.matched, str(path))
    check_numbers(spec, params, str(path))
    return Checkpoint(path, params, found.metadata, found.notes, found.files)


def has_batchnorm(spec: PermutationSpec) -> bool:
    """Return whether the network has running statistics, which no average of two networks gets right."""
    return any(name.rpartition(".")[2] == "running_var" for name in spec.tensors)


def ready_for(model: nn.Module, params: Params) -> Params:
    """Return `params` where `model` computes, in the types in which it does: checkpoints may be in half precision.

    A model without weights (meta device) computes wherever they are.
    """
    device, params = _device(model), widened_to(params_of(model), params)
    return params if device.type == "meta" else map_tensors(params, lambda _, tensor: tensor.to(device))


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in params_of(model).values()), torch.device("cpu"))


def _with_ties(params: Params, spec: PermutationSpec) -> Params:
    """Add tied names that a file left out because the model ties them itself."""
    left_out = {
        name: next(kept for kept in names if kept in params)
        for names in spec.ties
        if any(name in params for name in names)
        for name in names
        if name not in params
    }
    return params | {name: params[kept] for name, kept in left_out.items()}
