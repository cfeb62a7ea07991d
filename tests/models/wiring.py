"""Small networks, one feature each: gates, cuts and joins, ties, contractions, reshapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DeadParameters(nn.Module):
    """A layer that no output depends on, and one whose result is cut away: neither is a symmetry."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 7), nn.Linear(7, 2)
        self.unused, self.thrown_away = nn.Linear(3, 5), nn.Linear(7, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(x))
        torch.relu(self.thrown_away(x)).view(-1, 11, 1).sum()
        return self.fc2(x)


class GLU(nn.Module):
    """Gated units: one projection cut in two by F.glu, one by chunk (SwiGLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(3, 14), nn.Linear(7, 22), nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.fc1(x), dim=-1)
        gate, value = self.fc2(x).chunk(2, dim=-1)
        return self.fc3(F.silu(gate) * value)


class CutAndJoin(nn.Module):
    """split, slice, cat, pad and narrow over a hidden axis of 5 + 2 + 4 units; the padding has an offset of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(3, 11), nn.Linear(7, 5), nn.Linear(13, 2)
        self.offset = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x))
        first, second, third = torch.split(x, (5, 2, 4), dim=1)
        y = self.fc2(torch.cat([second, x[:, :5] * first], dim=1))
        joined = torch.cat([y, F.pad(third, (2, 2)) + self.offset, third], dim=-1)
        return self.fc3(torch.relu(joined).narrow(1, 0, 13))


class InPlace(nn.Module):
    """Writes into parts of a hidden layer: 3 units are doubled, 2 shifted through a view, all squared in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 11), nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x))
        x[:, :3] *= 2
        x.t()[9:].add_(1)
        return self.fc2(x.pow_(2))


class StackAndSelect(nn.Module):
    """Two projections stacked, reduced over the stack, one of them selected again."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.other = nn.Linear(3, 7), nn.Linear(3, 7), nn.Linear(3, 5)
        self.join, self.fc = nn.Linear(5, 7, bias=False), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.left(x), self.right(x), self.join(torch.relu(self.other(x)))], dim=1)
        return self.fc(both.amax(dim=1) + both[:, 0] * both.unbind(1)[2])


class TiedTransform(nn.Module):
    """One square weight used twice: its two axes are one group."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.leave = nn.Linear(3, 7), nn.Linear(7, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(torch.tanh(self.again(torch.tanh(self.again(x)))))


class TiedEmbedding(nn.Module):
    """Token embedding that is also the output projection, a residual MLP between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(13, 7), nn.Linear(7, 13, bias=False)
        self.norm, self.grow, self.shrink = nn.LayerNorm(7), nn.Linear(7, 11), nn.Linear(11, 7)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.shrink(F.gelu(self.grow(self.norm(x)))))


class TokenMLP(nn.Module):
    """Embedding, mean over the tokens, MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(13, 7), nn.Linear(7, 5), nn.Linear(5, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.embed(tokens).mean(dim=1))))


class HiddenSoftmax(nn.Module):
    """Softmax and log-softmax over hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(3, 7), nn.Linear(7, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.log_softmax(self.fc2(torch.softmax(self.fc1(x), dim=-1)), dim=1))


class Einsum(nn.Module):
    """Contractions by einsum: a rank-3 weight, and a bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Parameter(torch.empty(3, 5, 7))
        self.mix = nn.Parameter(torch.empty(11, 5, 7))
        self.core = nn.Parameter(torch.empty(11, 11, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bi,ijk->bjk", x, self.lift).relu()
        x = torch.einsum("bjk,njk->bn", x, self.mix).tanh()
        return torch.einsum("bn,nmo,bm->bo", x, self.core, x)


class MatmulChain(nn.Module):
    """mm, addmm, matmul, bmm, mv and transposes by hand."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"a": (3, 7), "b": (5, 7), "bias": (5,), "c": (4, 5, 11), "d": (13, 11), "e": (13,)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.bias, torch.mm(x, self.a).relu(), self.b.t()).relu()
        x = torch.bmm(x.expand(4, *x.shape), self.c).relu()
        return torch.matmul(x @ self.d.transpose(0, 1), self.e)


class TokenMixer(nn.Module):
    """MLP-Mixer: one MLP over tokens, one over channels, on one residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(2, 7, 2, stride=2), nn.Linear(7, 3)
        self.norm1, self.norm2 = nn.LayerNorm(7), nn.LayerNorm(7)
        self.tokens = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6))
        self.channels = nn.Sequential(nn.Linear(7, 11), nn.GELU(), nn.Linear(11, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class TwoInputs(nn.Module):
    """Keyword inputs, two outputs in a dict; the second output is a hidden layer, which is thereby fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3, 7), nn.Embedding(13, 7)
        self.fc1, self.fc2 = nn.Linear(7, 5), nn.Linear(5, 2)

    def forward(self, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.image(image) + self.text(tokens).sum(1))
        hidden = torch.relu(self.fc1(x))
        return {"hidden": hidden, "logits": self.fc2(hidden)}


class FixedByConstant(nn.Module):
    """A constant that differs from unit to unit, and an order that matters (cumsum), fix what they touch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = nn.Linear(3, 7), nn.Linear(7, 5), nn.Linear(5, 11), nn.Linear(11, 2)
        self.register_buffer("scale", torch.arange(1.0, 8.0))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(x) * self.scale)
        x = self.fc2(x).cumsum(-1)
        return self.fc4(torch.relu(self.fc3(x)))


class RepeatedUnits(nn.Module):
    """repeat, repeat_interleave and tile: copies of units move with them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(3, 5), nn.Linear(15, 7), nn.Linear(14, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(x)).repeat(1, 3)
        return self.fc3(torch.relu(self.fc2(x)).repeat_interleave(2, dim=1))


class ReshapedUnits(nn.Module):
    """15 hidden units seen as 3 x 5, contracted with a weight on either factor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.inner, self.outer = nn.Linear(3, 15), nn.Linear(5, 7), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x)).view(x.shape[0], 3, 5)
        x = torch.relu(self.inner(x))
        return self.outer(x.permute(0, 2, 1)).amax(1)
