"""torch.nn and Hugging Face architectures on tiny configurations: groups, nesting, coverage as counted by hand; proved.

Half of the transformers run only with --slow; `make zoo` runs all of them, and torchvision and timm.
"""

from __future__ import annotations

import contextlib
from functools import cache

import pytest
import torch
from zoo import tiny_transformers, torch_layers
from zoo.control import corruptions
from zoo.expected import EXPECTED
from zoo.setups import Setup, discover, largest_difference, measure

from onebasin.symmetry.export import export
from onebasin.symmetry.prove import TOLERANCE, Trial

SLOW = frozenset(
    """xlm_roberta deberta_v2 megatron_bert mpnet convbert mobilebert esm fnet codegen mpt mistral gemma2 olmo cohere
    starcoder2 granite nemotron glm persimmon olmoe mixtral_bmm rwkv mt5 mbart pegasus deit siglip_vision hubert t5 bart
    whisper clip segformer""".split()
)
# Slices of a table that these inputs are too short to reach count as groups of their own.
TRANSFORMERS = sorted(EXPECTED.keys() - torch_layers.MODELS.keys() - {"deberta"})


@cache
def setups() -> dict[str, Setup]:
    try:
        return {setup.name: setup for setup in tiny_transformers.setups()}
    except ImportError as error:
        pytest.skip(f"transformers: {error}")


def check(setup: Setup) -> None:
    row, expected = measure(setup), EXPECTED[setup.name]
    assert row.shapes == expected.shapes
    assert row.log10_shared == pytest.approx(expected.log10_shared)
    assert row.log10_nested == pytest.approx(expected.log10_nested)
    assert 100 * row.covered == pytest.approx(expected.covered, abs=0.06)
    assert row.difference < TOLERANCE


@pytest.mark.parametrize("name", torch_layers.MODELS)
def test_layers_of_torch(name: str) -> None:
    check(next(setup for setup in torch_layers.setups() if setup.name == name))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TRANSFORMERS]
)
def test_transformers(name: str) -> None:
    check(setups()[name])


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_a_wrong_spec_of_a_transformer_is_caught(name: str) -> None:
    model, inputs = setups()[name].make()
    exported = export(model.eval(), inputs)
    spec, _ = discover(model, exported)
    wrong = dict(corruptions(spec, 1))
    assert len(wrong) == 3
    for what, corrupted in wrong.items():
        with contextlib.suppress(KeyError):  # under a parent that is not there units cannot even be looked up
            assert largest_difference(Trial(exported, corrupted, 0)) > TOLERANCE, what


def test_the_count_of_symmetries_follows_from_the_shapes() -> None:
    """3 groups of 5 units, one of them under 2 of 7: 5!^2 * 7! * 5!^14."""
    from zoo.expected import Expected

    expected = Expected("7 2x7x5 5^2", 100.0)
    total = torch.lgamma(torch.tensor([8.0, 6.0], dtype=torch.float64)) / torch.log(torch.tensor(10.0))
    assert expected.log10_shared == pytest.approx((total[0] + 3 * total[1]).item())
    assert expected.log10_nested == pytest.approx((total[0] + 16 * total[1]).item())
