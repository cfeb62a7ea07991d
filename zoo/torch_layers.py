"""Layers of torch.nn as small networks: recurrent, attention, normalised, parametrised, a U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from zoo.setups import Made, Setup

Inputs = Callable[[], tuple[Tensor, ...]]


class Sequence(nn.Module):
    """A recurrent layer, of whose states at all times a linear layer makes the output."""

    def __init__(self, kind: str, width: int, **settings: Any) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(5, 16, batch_first=True, **settings)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


class LearntStart(nn.Module):
    """A GRU that begins with a learnt state and gives its last."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.cell, self.head = nn.Parameter(torch.randn(1, 1, 16)), nn.GRU(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x, self.start.expand(-1, x.shape[1], -1).contiguous())[1])


class Steps(nn.Module):
    """An LSTM cell, called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        return self.head(state[0])


class Attention(nn.Module):
    """nn.MultiheadAttention between two linear layers."""

    def __init__(self, need_weights: bool = False, **settings: Any) -> None:
        super().__init__()
        self.enter, self.leave, self.need_weights = nn.Linear(5, 32), nn.Linear(32, 3), need_weights
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(self.attention(x, x, x, need_weights=self.need_weights)[0])


class CrossAttention(nn.Module):
    """nn.MultiheadAttention to keys and values of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, kdim=7, vdim=11, batch_first=True)
        self.enter, self.leave = nn.Linear(5, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.leave(self.attention(self.enter(x), key, value)[0])


def encoder(**settings: Any) -> nn.Module:
    """Two layers of width 32, 4 heads, 48 feed-forward units."""
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, **settings)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Decoder(nn.Module):
    """nn.TransformerDecoder on embedded words."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True)
        self.embed, self.memory, self.head = nn.Embedding(50, 32), nn.Linear(5, 20), nn.Linear(32, 50)
        self.project, self.decoder = nn.Linear(20, 32), nn.TransformerDecoder(layer, 2)

    def forward(self, words: Tensor, seen: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])
        memory = self.project(torch.tanh(self.memory(seen)))
        return self.head(self.decoder(self.embed(words), memory, tgt_mask=mask, tgt_is_causal=True))


class Translator(nn.Module):
    """nn.Transformer between embeddings and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(32, 4, 2, 2, 48, batch_first=True)
        self.source, self.target, self.head = nn.Embedding(50, 32), nn.Embedding(40, 32), nn.Linear(32, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.transformer(self.source(source), self.target(target)))


def double_conv(into: int, out: int, groups: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with group norm."""
    parts = [[nn.Conv2d(n, out, 3, padding=1), nn.GroupNorm(groups, out), nn.ReLU()] for n in (into, out)]
    return nn.Sequential(*parts[0], *parts[1])


class UNet(nn.Module):
    """Two levels down, two up, skips by concatenation, group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = double_conv(3, 16, 2), double_conv(16, 32, 4), double_conv(32, 64, 8)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, stride=2), nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.join2, self.join1, self.head = double_conv(64, 32, 4), double_conv(32, 16, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        deep = self.bottom(F.max_pool2d(two, 2))
        two = self.join2(torch.cat([self.up2(deep), two], 1))
        return self.head(self.join1(torch.cat([self.up1(two), one], 1)))


class SwiGLU(nn.Module):
    """Gate and value from one projection, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 64), nn.Linear(32, 40), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.first(x).chunk(2, -1)
        return self.head(F.glu(self.second(F.silu(gate) * value)))


def normed(wrap: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Two linear layers wrapped in a parametrisation, and a head."""
    return nn.Sequential(wrap(nn.Linear(5, 20)), nn.Tanh(), wrap(nn.Linear(20, 16)), nn.Tanh(), nn.Linear(16, 3))


def autoencoder() -> nn.Module:
    """Strided convolutions and their transposes, with batch norm and PReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.PReLU(8),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.InstanceNorm2d(12, affine=True), nn.PReLU(),
        nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1),
    )  # fmt: skip


def upscaler() -> nn.Module:
    """A convolution whose channels become pixels."""
    return nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(12, 3, 1))


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))


def _real(*shape: int) -> Inputs:
    return lambda: (torch.randn(shape),)


def _words(*lengths: int) -> Inputs:
    return lambda: tuple(torch.randint(0, 40, (2, length)) for length in lengths)


VECTORS, STEPS, IMAGE = _real(4, 5), _real(2, 6, 5), _real(2, 3, 16, 16)
MODELS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "mlp": (mlp, VECTORS),
    "rnn": (partial(Sequence, "RNN", 16, nonlinearity="relu"), STEPS),
    "lstm": (partial(Sequence, "LSTM", 16, num_layers=2), STEPS),
    "lstm_proj": (partial(Sequence, "LSTM", 8, num_layers=2, proj_size=8), STEPS),
    "bigru": (partial(Sequence, "GRU", 32, num_layers=2, bidirectional=True), STEPS),
    "bilstm_proj": (partial(Sequence, "LSTM", 16, num_layers=2, bidirectional=True, proj_size=8), STEPS),
    "gru_learnt_start": (LearntStart, STEPS),
    "lstm_cell": (Steps, STEPS),
    "mha_module": (Attention, STEPS),
    "mha_weights": (partial(Attention, need_weights=True, add_bias_kv=True, add_zero_attn=True), STEPS),
    "mha_cross": (CrossAttention, lambda: (torch.randn(2, 6, 5), torch.randn(2, 4, 7), torch.randn(2, 4, 11))),
    "transformer_encoder": (encoder, _real(2, 6, 32)),
    "transformer_enc_inout": (
        lambda: nn.Sequential(nn.Linear(5, 32), encoder(norm_first=True), nn.Linear(32, 3)), STEPS
    ),
    "transformer_decoder": (Decoder, lambda: (torch.randint(0, 50, (2, 6)), torch.randn(2, 4, 5))),
    "transformer": (Translator, _words(7, 5)),
    "glu_swiglu": (SwiGLU, VECTORS),
    "weight_norm": (partial(normed, parametrizations.weight_norm), VECTORS),
    "spectral_norm": (partial(normed, parametrizations.spectral_norm), VECTORS),
    "orthogonal": (
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(16, 16)), nn.Linear(16, 16), nn.Linear(16, 3)),
        _real(4, 16),
    ),
    "unet": (UNet, IMAGE),
    "autoencoder": (autoencoder, IMAGE),
    "upscaler": (upscaler, IMAGE),
}  # fmt: skip


def setups() -> Iterator[Setup]:
    """Yield every set-up."""
    for name in MODELS:
        yield Setup(name, partial(_make, name))


def _make(name: str) -> Made:
    model, inputs = MODELS[name]
    return model(), inputs()
