"""ONE table of models for tests of every level, with the group sizes counted by hand, and one of unsupported models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import torch
from helpers import Inputs, randomise
from models import plain, residual, sequence, toys, unsupported, wiring
from torch import Tensor, nn

from onebasin.errors import DiscoveryError
from onebasin.params import Params, params_of
from onebasin.spec import PermutationSpec

# What discovery can do. A case whose `needs` is not here waits.
LANDED: frozenset[str] = frozenset({"", "attention", "recurrent", "nested", "stepped"})


@dataclass(frozen=True)
class Case:
    """A model and what is known of its symmetries.

    Args:
        name: as pytest shows it.
        make: builds the module.
        draw: draws the inputs (batch >= 2) with the generator it is given.
        sizes: sizes of all groups, counted by hand.
        nested: shapes of the index arrays (parents' sizes, then own) of those that are nested, once nesting exists.
        needs: what finding the groups takes beyond flat groups: "attention", "recurrent".
        deep: a whole architecture, not a toy.
    """

    name: str
    make: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], Inputs]
    sizes: tuple[int, ...]
    nested: tuple[tuple[int, ...], ...] = ()
    needs: str = ""
    deep: bool = False

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Build the model in eval mode, every parameter random; the same seed gives the same bits."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.make().eval()
        randomise(model, seed)
        return model.to(dtype)

    def inputs(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
        """Draw example inputs; integer inputs keep their dtype."""
        drawn = self.draw(torch.Generator().manual_seed(seed))
        if isinstance(drawn, dict):
            return {key: _cast(value, dtype) for key, value in drawn.items()}
        return tuple(_cast(value, dtype) for value in drawn)


@dataclass(frozen=True)
class Unsupported:
    """A model that is refused with `error`, whose text contains every part of `says`."""

    name: str
    make: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], Inputs]
    error: type[Exception]
    says: tuple[str, ...] = ()


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def real(*shape: int) -> Callable[[torch.Generator], Inputs]:
    """One input of normal numbers."""
    return lambda generator: (torch.randn(shape, generator=generator),)


def tokens(*shape: int) -> Callable[[torch.Generator], Inputs]:
    """One input of token numbers below 13."""
    return lambda generator: (torch.randint(0, 13, shape, generator=generator),)


def image_and_tokens(generator: torch.Generator) -> Inputs:
    """Keyword inputs of `wiring.TwoInputs`."""
    return {
        "image": torch.randn(3, 3, generator=generator),
        "tokens": torch.randint(0, 13, (3, 5), generator=generator),
    }


FIRES = ((3, 5, 7), (2, 7, 5), (3, 7, 11), (5, 11, 7), (3, 5, 11), (5, 13, 7), (7, 11, 5), (5, 7, 13))
INCEPTIONS = (
    (3, 2, 5, 3, 2, 2), (5, 3, 7, 2, 3, 3), (7, 2, 5, 3, 2, 3), (5, 3, 11, 2, 3, 2), (3, 5, 7, 3, 5, 3),
    (7, 3, 5, 2, 7, 5), (11, 2, 7, 5, 3, 2), (5, 7, 3, 2, 5, 3), (3, 5, 11, 3, 7, 2),
)  # fmt: skip
# Widths of MobileNetV2's seven stages; inside a block they are expanded three times.
MOBILE = (5, 7, 11, 13, 17, 19, 23)
MOBILE_HIDDEN = tuple(3 * w for w, repeats in zip(MOBILE, (1, 2, 3, 4, 3, 3, 0), strict=True) for _ in range(repeats))


def flat(rows: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """Join rows of sizes."""
    return tuple(size for row in rows for size in row)


ARCHITECTURES = [
    Case("mlp1", partial(plain.mlp, (3, 7, 2)), real(5, 3), (7,)),
    Case("mlp3", partial(plain.mlp, (3, 7, 11, 5, 2)), real(5, 3), (7, 11, 5)),
    Case(
        "vgg16", partial(plain.VGG16, (3, 5, 7, 11, 13), (17, 19)), real(2, 3, 32, 32),
        (3, 3, 5, 5, 7, 7, 7, 11, 11, 11, 13, 13, 13, 17, 19), deep=True,
    ),
    Case(
        "vgg16_bn", partial(plain.VGG16, (3, 5, 7, 11, 13), (17, 19), batch_norm=True), real(2, 3, 32, 32),
        (3, 3, 5, 5, 7, 7, 7, 11, 11, 11, 13, 13, 13, 17, 19), deep=True,
    ),
    Case(
        "alexnet", partial(plain.AlexNet, (5, 7, 11, 13, 3), (17, 19)), real(2, 3, 37, 53),
        (5, 7, 11, 13, 3, 17, 19), deep=True,
    ),
    Case(
        "resnet20_conv", partial(residual.ResNet, residual.Block, (3, 3, 3), (5, 7, 11), (2, 3, 13)),
        real(2, 3, 16, 16), flat([(5, 7, 11), 3 * (2,), 3 * (3,), 3 * (13,)]), deep=True,
    ),
    Case(
        "resnet20_pad",
        partial(residual.ResNet, residual.Block, (3, 3, 3), (5, 11, 23), (2, 7, 13), pads=((2, 4), (5, 7))),
        real(2, 3, 16, 16), flat([(5, 2, 4, 5, 7), 3 * (2,), 3 * (7,), 3 * (13,)]), deep=True,
    ),
    Case(
        "resnet18", partial(residual.ResNet, residual.Block, (2, 2, 2, 2), (5, 7, 11, 13), (3, 2, 17, 19)),
        real(2, 3, 32, 32), (5, 7, 11, 13, 3, 3, 2, 2, 17, 17, 19, 19), deep=True,
    ),
    Case(
        "resnet50",
        partial(residual.ResNet, residual.Bottleneck, (3, 4, 6, 3), (13, 17, 19, 23), (3, 5, 7, 11), stem=2),
        real(2, 3, 24, 24), flat([(2, 13, 17, 19, 23), 6 * (3,), 8 * (5,), 12 * (7,), 6 * (11,)]), deep=True,
    ),
    Case(
        "densenet121", partial(residual.DenseNet, (6, 12, 24, 16), 7, 5, 3, (11, 13, 17)), real(2, 3, 16, 16),
        flat([(7, 11, 13, 17), 58 * (5,), 58 * (3,)]), deep=True,
    ),
    Case(
        "mobilenet_v2", partial(residual.MobileNetV2, 3, MOBILE, 29, 3), real(2, 3, 32, 32),
        flat([(3, 29), MOBILE, MOBILE_HIDDEN]), deep=True,
    ),
    Case(
        "squeezenet", partial(plain.SqueezeNet, 7, FIRES), real(2, 3, 40, 40), flat([(7,), *FIRES]), deep=True,
    ),
    Case(
        "googlenet", partial(plain.GoogLeNet, (5, 7, 11), INCEPTIONS), real(2, 3, 32, 32),
        flat([(5, 7, 11), *INCEPTIONS]), deep=True,
    ),
]  # fmt: skip

TOYS = [
    Case("conv1d", partial(toys.conv_chain, 1), real(3, 2, 11), (7, 5)),
    Case("conv2d", partial(toys.conv_chain, 2), real(3, 2, 5, 7), (7, 5)),
    Case("conv3d", partial(toys.conv_chain, 3), real(3, 2, 5, 7, 3), (7, 5)),
    Case("transposed_conv", toys.transposed_conv, real(2, 2, 7, 5), (7, 5, 11)),
    Case("depthwise", partial(toys.depthwise, 1), real(2, 2, 5, 7), (7, 5)),
    Case("depthwise_multiplier", partial(toys.depthwise, 2), real(2, 2, 5, 7), (7, 2, 5), ((7, 2),)),
    Case("grouped_conv", toys.grouped_conv, real(2, 2, 7, 5), (3, 5, 7), ((3, 5), (3, 7))),
    Case("grouped_transposed_conv", toys.grouped_transposed_conv, real(2, 2, 7), (3, 5, 7), ((3, 5), (3, 7))),
    Case("pool_flatten", toys.pool_flatten, real(2, 2, 6, 8), (7, 11)),
    Case("pixel_shuffle", toys.pixel_shuffle, real(2, 2, 7, 8), (5, 7)),
    Case("unet", toys.UNet, real(2, 2, 8, 12), (2, 3, 2, 5, 2, 7, 11, 13, 5, 3), ((2, 3), (2, 5), (2, 7))),
    Case("group_norm", toys.group_norm, real(2, 2, 5, 7), (3, 5), ((3, 5),)),
    Case("instance_norm", toys.instance_norm, real(2, 2, 7, 9), (7, 5)),
    Case("layer_norm", toys.layer_norm, real(5, 3), (7, 5)),
    Case("channel_layer_norm", toys.ChannelLayerNorm, real(2, 2, 5, 7), (7,)),
    Case("rms_norm", toys.rms_norm, real(5, 3), (7,)),
    Case("weight_norm", partial(toys.weight_norm, False), real(5, 3), (7, 5)),
    Case("weight_norm_hook", partial(toys.weight_norm, True), real(5, 3), (7, 5)),
    Case("spectral_norm", toys.spectral_norm, real(5, 3), (7, 5)),
    Case("squeeze_excite", toys.SqueezeExcite, real(2, 2, 5, 7), (7, 11, 3)),
    Case("shuffle_units", toys.ShuffleUnits, real(2, 2, 5, 7), (3, 3, 6, 3, 3, 6)),
    Case("dead_parameters", wiring.DeadParameters, real(5, 3), (7,)),
    Case("glu", wiring.GLU, real(5, 3), (7, 11)),
    Case("cut_and_join", wiring.CutAndJoin, real(5, 3), (5, 2, 4, 5, 2, 2)),
    Case("in_place", wiring.InPlace, real(5, 3), (3, 6, 2)),
    Case("stack_and_select", wiring.StackAndSelect, real(4, 3), (7, 5)),
    Case("tied_transform", wiring.TiedTransform, real(5, 3), (7,)),
    Case("tied_embedding", wiring.TiedEmbedding, tokens(2, 5), (7, 11)),
    Case("token_mlp", wiring.TokenMLP, tokens(3, 5), (7, 5)),
    Case("hidden_softmax", wiring.HiddenSoftmax, real(5, 3), (7, 5)),
    Case("einsum", wiring.Einsum, real(4, 3), (5, 7, 11), ((5, 7),)),
    Case("matmul_chain", wiring.MatmulChain, real(2, 3), (7, 5, 11, 13)),
    Case("token_mixer", wiring.TokenMixer, real(2, 2, 4, 6), (7, 5, 11)),
    Case("two_inputs", wiring.TwoInputs, image_and_tokens, (7,)),
    Case("fixed_by_constant", wiring.FixedByConstant, real(5, 3), (11,)),
    Case("repeated_units", wiring.RepeatedUnits, real(4, 3), (5, 3, 7, 2), ((5, 3), (7, 2))),
    Case("reshaped_units", wiring.ReshapedUnits, real(4, 3), (3, 5, 7)),
]  # fmt: skip

SEQUENCES = [
    Case(
        "multihead_attention",
        sequence.MultiheadAttention,
        real(2, 4, 2),
        (15, 3, 5, 5, 15),
        ((3, 5), (3, 5)),
        "attention",
    ),
    Case("encoder", sequence.Encoder, real(2, 4, 2), (15, 7, 3, 5, 5), ((3, 5), (3, 5)), "attention"),
    Case("fused_qkv", sequence.FusedQKV, tokens(2, 4), (7, 3, 5, 5), ((3, 5), (3, 5)), "attention"),
    Case(
        "grouped_query", sequence.GroupedQuery, tokens(2, 4), (7, 11, 2, 3, 5, 5), ((2, 3), (2, 5), (2, 5)), "attention"
    ),
    Case("rnn", partial(sequence.Recurrent, "RNN"), real(2, 4, 3), (7,), needs="recurrent"),
    Case("lstm", partial(sequence.Recurrent, "LSTM", num_layers=2), real(2, 4, 3), (7, 7), needs="recurrent"),
    Case("lstm_projected", partial(sequence.Recurrent, "LSTM", proj_size=5), real(2, 4, 3), (7, 5), needs="recurrent"),
    Case("bigru", partial(sequence.Recurrent, "GRU", bidirectional=True), real(2, 4, 3), (7, 7), needs="recurrent"),
]

CASES: list[Case] = [*ARCHITECTURES, *TOYS, *SEQUENCES]
# Those whose groups can be found today: what most tests walk through.
SUPPORTED = [case for case in CASES if case.needs in LANDED]

UNSUPPORTED = [
    Unsupported(
        "branch_on_data",
        unsupported.DataDependentBranch,
        real(4, 3),
        DiscoveryError,
        ("control flow", "unsupported.py:"),
    ),
    Unsupported("python_number", unsupported.PythonNumber, real(4, 3), DiscoveryError, ("unsupported.py:",)),
    Unsupported("wrong_layers", unsupported.Wrong, real(4, 3), DiscoveryError, ("shape",)),
    Unsupported("wrong_inputs", partial(plain.mlp, (3, 7, 2)), real(4, 5), DiscoveryError, ("shape",)),
    Unsupported("missing_input", wiring.TwoInputs, real(4, 3), DiscoveryError, ("tokens",)),
]


def case(name: str) -> Case:
    """Return the case called `name`."""
    return next(case for case in CASES if case.name == name)


@cache
def spec_of(case: Case) -> PermutationSpec:
    """Discover the groups of `case` once per session; pure data, shared by all tests."""
    from onebasin.symmetry.discover import permutation_spec

    return permutation_spec(case.model(), case.inputs())


def params(case: Case, seed: int = 0) -> Params:
    """Return random params of `case` in float64."""
    return params_of(case.model(seed))
