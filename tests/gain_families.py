"""Gains as matchers meet them, and as they hardly ever do: what assignments are tested on."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spectral(n: int, generator: torch.Generator, basis: Tensor | None = None) -> Tensor:
    """Return weights with power-law singular values and row norms that differ."""
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for _ in range(2))
    values = torch.arange(1, n + 1) ** -0.5
    return torch.exp(torch.randn(n, 1, generator=generator) / 2) * (
        (left * values) @ (right if basis is None else basis)
    )


def gains_of(family: str, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, n, generator=generator)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator))[0]
    planted = noise @ noise[torch.randperm(n, generator=generator)].T
    counts = torch.arange(1.0, n + 1)
    return {
        "power law": lambda: spectral(n, generator) @ spectral(n, generator).T,
        "shared basis": lambda: spectral(n, generator, basis) @ spectral(n, generator, basis).T,
        "planted": lambda: planted + torch.randn(n, n, generator=generator) * math.sqrt(n),
        "planted, noisy": lambda: planted + torch.randn(n, n, generator=generator) * n / 4,
        "uniform": lambda: torch.rand(n, n, generator=generator),
        "integers": lambda: noise.round(),
        "zero or one": lambda: (noise > 2).float(),
        "equal": lambda: torch.full((n, n), 0.7),
        "equal rows": lambda: noise[:1].expand(n, n).contiguous(),
        "products of counts": lambda: torch.outer(counts, counts),  # the longest paths (Machol and Wien)
        "losses of counts": lambda: -torch.outer(counts, counts),
        "many scales": lambda: noise * 10.0 ** (20 * torch.rand(n, 1, generator=generator) - 10),
        "rows twice": lambda: noise[: (n + 1) // 2].repeat(2, 1)[:n],
        "columns nearly twice": lambda: (
            noise[:, : (n + 1) // 2].repeat(1, 2)[:, :n] + 1e-7 * torch.randn(n, n, generator=generator)
        ),
        "one row in the sky": lambda: torch.cat([noise[:1] * 1e30, noise[1:]]),
        "huge": lambda: noise * 1e35,
        "tiny": lambda: noise * 1e-40,
    }[family]()
