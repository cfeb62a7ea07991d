"""`align(a, P a)` undoes a random P of nested groups exactly, and matching brings strangers closer, on eight networks.

No model here has exact ties: every parameter is drawn at random (`randomise`), so no two units of a group hold equal
weights, and indices are compared, not only the weights they lead to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import Inputs, randomise
from models.sequence import Recurrent
from models.toys import UNet
from torch import Tensor, nn
from torchvision_shim import torchvision_models

from onebasin.matching import Alignment, WeightMatching, align
from onebasin.params import Params, params_of
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

Made = tuple[nn.Module, Inputs]
TOKENS = torch.arange(14).reshape(2, 7)


class ViT(nn.Module):
    """A vision transformer of torch.nn alone: 12 patches and a class token, two layers with 5 heads of 7 units."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 35, 4, stride=4), nn.Parameter(torch.zeros(1, 1, 35))
        self.positions, self.head = nn.Parameter(torch.zeros(1, 13, 35)), nn.Linear(35, 11)
        layer = nn.TransformerEncoderLayer(35, 5, 43, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(35), enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), dim=1) + self.positions
        return self.head(self.encoder(x)[:, 0])


def vit() -> Made:
    return ViT(), (torch.randn(2, 3, 12, 16),)


def grouped_conv() -> Made:
    """5 groups of 7 channels in, 11 out; both stand in one kernel."""
    grouped = nn.Sequential(nn.Conv2d(2, 35, 3), nn.ReLU(), nn.Conv2d(35, 55, 3, groups=5), nn.ReLU())
    head = nn.Sequential(nn.Conv2d(55, 13, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(13, 3))
    return nn.Sequential(grouped, head), (torch.randn(2, 2, 11, 13),)


def unet() -> Made:
    """Channels under the groups of every group norm; skips by concatenation."""
    return UNet(), (torch.randn(2, 2, 8, 12),)


def lstm() -> Made:
    """Each layer's hidden units stand on both axes of its recurrent weight: no nesting, but a quadratic step."""
    return Recurrent("LSTM", num_layers=2), (torch.randn(2, 4, 3),)


def transformers() -> ModuleType:
    """Return transformers, which imports torchvision where it finds it; skip the test where there is none."""
    try:
        torchvision_models()
    except pytest.skip.Exception:
        pass
    return pytest.importorskip("transformers")


def tiny(family: str, task: str, **settings: Any) -> Made:
    """Build a language model of 61 tokens from its configuration, with random weights."""
    library = transformers()
    config = getattr(library, f"{family}Config")(vocab_size=61, bos_token_id=1, eos_token_id=2, **settings)
    return getattr(library, family + task)(config), {"input_ids": TOKENS}


def bert() -> Made:
    """3 heads of 11 units; tied embeddings."""
    heads = {"hidden_size": 33, "num_attention_heads": 3, "num_hidden_layers": 2}
    return tiny("Bert", "ForMaskedLM", **heads, intermediate_size=47, max_position_embeddings=17)


def gpt2() -> Made:
    """3 heads of 11 units, queries, keys and values in one matrix; tied embeddings."""
    return tiny("GPT2", "LMHeadModel", n_embd=33, n_head=3, n_layer=2, n_inner=47, n_positions=17, use_cache=False)


# 2 key/value heads of 10 units (rotary positions need an even number), each for 3 query heads.
GROUPED = {"hidden_size": 42, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}


def llama() -> Made:
    return tiny("Llama", "ForCausalLM", **GROUPED, num_hidden_layers=2, intermediate_size=47, use_cache=False)


def mixtral() -> Made:
    """As llama, with 5 experts of 23 hidden units each, two of which see a token."""
    experts = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 23}
    return tiny("Mixtral", "ForCausalLM", **GROUPED, num_hidden_layers=2, use_cache=False, **experts)


# Each model, and how many of its groups are nested under another.
MODELS: dict[str, tuple[Callable[[], Made], int]] = {
    "vit": (vit, 4),
    "bert": (bert, 4),
    "gpt2": (gpt2, 4),
    "llama": (llama, 4),
    "mixtral": (mixtral, 6),
    "grouped_conv": (grouped_conv, 2),
    "unet": (unet, 3),
    "lstm": (lstm, 0),
}
NESTED = [name for name, (_, nested) in MODELS.items() if nested]


@cache
def drawn_twice(name: str) -> tuple[PermutationSpec, Params, Params]:
    """Return the spec and two sets of random params in float64."""
    from onebasin.symmetry.discover import permutation_spec

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = MODELS[name][0]()
    spec = permutation_spec(model.eval(), inputs)
    both = []
    for seed in range(2):
        randomise(model, seed)
        both.append({key: value.double() for key, value in params_of(model).items()})
    return spec, both[0], both[1]


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def match(spec: PermutationSpec, reference: Params, moved: Params) -> Alignment:
    return align(spec, reference, moved, WeightMatching(seed=0))


@pytest.mark.parametrize("name", MODELS)
def test_a_random_permutation_is_undone(name: str) -> None:
    spec, theta, _ = drawn_twice(name)
    assert len(spec.parents) == MODELS[name][1]
    for seed in range(3):
        drawn = draw(spec, seed)
        found = match(spec, theta, drawn.apply(theta)).permutation
        expected = drawn.inverse()
        wrong = [group for group, index in found.indices.items() if not torch.equal(index, expected.indices[group])]
        assert wrong == [], f"draw {seed}"


@pytest.mark.parametrize("name", NESTED)
def test_without_nesting_it_is_not_undone(name: str) -> None:
    """The negative twin: one permutation shared by all heads (groups, experts) cannot undo one for each of them."""
    spec, theta, _ = drawn_twice(name)
    flat = PermutationSpec(spec.sizes, spec.tensors, {}, spec.buffers, spec.ties)
    moved = draw(spec, 0).apply(theta)
    shared, nested = match(flat, theta, moved), match(spec, theta, moved)
    again = shared.permutation.apply(moved)
    assert not all(torch.equal(again[key], theta[key]) for key in spec.matched)
    assert shared.objective[-1] < nested.objective[-1]


@pytest.mark.parametrize("name", MODELS)
def test_strangers_come_closer_than_in_the_order_they_have(name: str) -> None:
    spec, theta, other = drawn_twice(name)
    found = match(spec, theta, other)
    assert list(found.objective) == sorted(found.objective)
    assert found.objective[-1] > found.objective[0]
    moved = found.permutation.apply(other)
    before, after = (
        sum((theta[key] - params[key]).square().sum() for key in spec.matched) for params in (other, moved)
    )
    assert after < before


@pytest.mark.parametrize("name", MODELS)
def test_a_stranger_is_not_mistaken_for_the_same(name: str) -> None:
    """The negative twin: a permutation of another network comes back in an order of its own."""
    spec, theta, other = drawn_twice(name)
    drawn = draw(spec, 0)
    assert match(spec, theta, drawn.apply(other)).permutation != drawn.inverse()
