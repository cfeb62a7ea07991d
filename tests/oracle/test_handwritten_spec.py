"""Specs written down by hand, layer by layer, equal the discovered ones."""

from __future__ import annotations

import pytest
from cases import Case, case, params, spec_of
from specs import handwritten

from onebasin.errors import ProofError
from onebasin.layout import Axis, Leaf, Product
from onebasin.spec import PermutationSpec
from onebasin.symmetry.prove import prove

Axes = dict[str, tuple[str | Axis | None, ...]]


def linear(name: str, wide_in: str | Axis | None, wide_out: str | None) -> Axes:
    return {f"{name}.weight": (wide_out, wide_in), f"{name}.bias": (wide_out,)}


def conv(name: str, wide_in: str | None, wide_out: str | None) -> Axes:
    return {f"{name}.weight": (wide_out, wide_in, None, None)}


def norm(name: str, group: str) -> Axes:
    return {f"{name}.{part}": (group,) for part in ("weight", "bias", "running_mean", "running_var")}


def mlp3() -> Axes:
    return linear("0", None, "a") | linear("2", "a", "b") | linear("4", "b", "c") | linear("6", "c", None)


def vgg16_bn() -> Axes:
    axes: Axes = {}
    last: str | None = None
    number = 0
    for stage, repeats in enumerate((2, 2, 3, 3, 3)):
        for repeat in range(repeats):
            group = f"{stage}.{repeat}"
            axes |= conv(f"features.{number}", last, group) | {f"features.{number}.bias": (group,)}
            axes |= norm(f"features.{number + 1}", group)
            last, number = group, number + 3
        number += 1
    assert last is not None
    axes |= linear("classifier.0", Product((Leaf(13, last), Leaf(4))), "fc1")
    return axes | linear("classifier.2", "fc1", "fc2") | linear("classifier.4", "fc2", None)


def resnet20_conv() -> Axes:
    axes = conv("conv", None, "stream0") | norm("bn", "stream0")
    for stage in range(3):
        for block in range(3):
            name, inner, stream = f"stages.{stage}.{block}", f"inner{stage}.{block}", f"stream{stage}"
            before = f"stream{stage - 1}" if stage and not block else stream
            axes |= conv(f"{name}.conv1", before, inner) | norm(f"{name}.bn1", inner)
            axes |= conv(f"{name}.conv2", inner, stream) | norm(f"{name}.bn2", stream)
            if before != stream:
                axes |= conv(f"{name}.shortcut.0", before, stream) | norm(f"{name}.shortcut.1", stream)
    return axes | linear("head", "stream2", None)


def shown(spec: PermutationSpec, name: str) -> str:
    return f"{name}: {', '.join(map(str, spec.tensors[name]))}"


BY_HAND = {"mlp3": mlp3, "vgg16_bn": vgg16_bn, "resnet20_conv": resnet20_conv}
every_case = pytest.mark.parametrize("case", [case(name) for name in BY_HAND], ids=BY_HAND)


@every_case
def test_discovered_equals_handwritten(case: Case) -> None:
    found, written = spec_of(case).canonical(), handwritten(params(case), BY_HAND[case.name]()).canonical()
    assert [shown(found, name) for name in found.tensors] == [shown(written, name) for name in written.tensors]
    assert found == written


@every_case
def test_the_handwritten_spec_is_proved(case: Case) -> None:
    spec = handwritten(params(case), BY_HAND[case.name]())
    assert prove(case.model(), spec, case.inputs()) < 1e-10


@every_case
def test_a_handwritten_mistake_fails_its_proof(case: Case) -> None:
    """Leave the last weight's columns in place."""
    axes = BY_HAND[case.name]()
    last = next(name for name in reversed(axes) if name.endswith("weight"))
    wrong = handwritten(params(case), axes | {last: (None, None)})
    with pytest.raises(ProofError):
        prove(case.model(), wrong, case.inputs())


def test_discovery_finds_what_a_smaller_spec_leaves_out() -> None:
    """A spec that is valid but too small is proved too, and is not equal."""
    mlp = case("mlp3")
    axes = {name: tuple(None if entry == "b" else entry for entry in row) for name, row in mlp3().items()}
    smaller: PermutationSpec = handwritten(params(mlp), axes)
    assert prove(mlp.model(), smaller, mlp.inputs()) < 1e-10
    assert smaller.canonical() != spec_of(mlp).canonical()
