"""Attention, gated feed-forward layers and recurrence."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.toys import HandRMSNorm


class MultiheadAttention(nn.Module):
    """nn.MultiheadAttention between two projections: 3 heads of 5."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(2, 15), nn.Linear(15, 2)
        self.attention = nn.MultiheadAttention(15, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.leave(y)


class Encoder(nn.Module):
    """nn.TransformerEncoder of one layer (3 heads of 5, 7 hidden units) between two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(2, 15), nn.Linear(15, 2)
        layer = nn.TransformerEncoderLayer(15, 3, 7, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.encoder(self.enter(x)))


class FusedQKV(nn.Module):
    """One projection for queries, keys and values, viewed as (3, heads, units) and taken apart."""

    HEADS, UNITS = 3, 5

    def __init__(self) -> None:
        super().__init__()
        inner = self.HEADS * self.UNITS
        self.embed, self.head = nn.Embedding(13, 7), nn.Linear(7, 13)
        self.qkv, self.out = nn.Linear(7, 3 * inner), nn.Linear(inner, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.HEADS, self.UNITS).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-2, -1) / self.UNITS**0.5, dim=-1)
        return self.head(x + self.out((scores @ v).transpose(1, 2).reshape(batch, length, -1)))


class GroupedQuery(nn.Module):
    """A decoder block: 2 key/value heads of 5 units, 3 query heads each, causal, SwiGLU, no RoPE."""

    KV, PER, UNITS = 2, 3, 5

    def __init__(self) -> None:
        super().__init__()
        heads = self.KV * self.PER
        self.embed, self.norm1, self.norm2 = nn.Embedding(13, 7), HandRMSNorm(7), HandRMSNorm(7)
        self.q = nn.Linear(7, heads * self.UNITS, bias=False)
        self.k, self.v = nn.Linear(7, self.KV * self.UNITS, bias=False), nn.Linear(7, self.KV * self.UNITS, bias=False)
        self.out = nn.Linear(heads * self.UNITS, 7, bias=False)
        self.gate, self.up, self.down = nn.Linear(7, 11), nn.Linear(7, 11), nn.Linear(11, 7)
        self.head = nn.Linear(7, 13)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norm1(x)
        q, k, v = (self._heads(project(y)) for project in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(self.PER, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], -1, self.UNITS).transpose(1, 2)


class Recurrent(nn.Module):
    """A recurrent layer of 7 units and a linear one on the mean of its states."""

    def __init__(self, kind: str, **settings: object) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(3, 7, batch_first=True, **settings)
        width = 7 if "proj_size" not in settings else cast(int, settings["proj_size"])
        self.head = nn.Linear(width * (2 if settings.get("bidirectional") else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x)
        return self.head(states.mean(1))
