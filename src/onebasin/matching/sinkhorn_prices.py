"""Prices of columns that are nearly right, from passes over the whole matrix: on any device, nothing sequential."""

from __future__ import annotations

import math
from collections.abc import Sequence
from threading import local

import torch
from torch import Tensor

# Temperatures as shares of the mean gap between the best and the second best column, and iterations at each. Later
# stages leave fewer rows to be searched for than the first (three to ten times), and cost as much as it does.
STAGES = (1.0, 0.3, 0.1)
ITERATIONS = 4
SAMPLE = 64  # rows that the gap is measured on
# exp(-60) is nothing beside 1, yet far from the subnormal numbers that make products up to ten times slower.
LOWEST = -60.0
# On a CPU, rows are taken so many elements at a time: they stay in the cache from one operation to the next.
BLOCK = 1 << 17
# Memory of no more elements is kept for the next call: to get new pages takes twenty times as long as to write to them.
KEPT = 1 << 18


class _Kept(local):
    """Memory of one thread."""

    def __init__(self) -> None:
        self.of: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def scratch(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory for what ends before anyone asks for more of the same dtype."""
    elements = math.prod(shape)
    if device.type != "cpu" or elements > KEPT:  # the memory of other devices is kept by torch
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    if dtype not in _kept.of:
        with torch.inference_mode(False):
            _kept.of[dtype] = torch.empty(KEPT, dtype=dtype, device=device)
    return _kept.of[dtype][:elements].view(tuple(shape))


def sinkhorn_prices(stack: Tensor, start: Tensor | None = None) -> Tensor:
    """Return prices at which nearly every row can have the column it prefers, for a stack of gain matrices.

    With K = exp((gains - prices - row maximum) / T), alternate a = 1 / (K b) and b = 1 / (K^T a) (Sinkhorn scaling, the
    dual of the assignment with entropy weighted by T); prices fall by T log b. Then T is lowered, and so on. Any prices
    are valid: better ones only leave less to do. They are rounded to the dtype of the gains, so that with float32 gains
    every margin is exact in float64.

    Args:
        stack: `Float[Tensor, "batch n n"]` in float32 or float64.
        start: prices that were right for similar gains; the first temperature, the highest, is then left out.

    Returns:
        `Float64[Tensor, "batch n"]` on the device of the gains.

    Source: cuturi2013, Alg. 1 (the scaling); annealed.
    """
    batch, n = stack.shape[:2]
    if n < 2:
        return stack.new_zeros((batch, n), dtype=torch.float64)
    rows = torch.linspace(0, n - 1, min(n, SAMPLE), device=stack.device).long()
    sample = stack[:, rows].double()
    best = sample.topk(2, -1).values
    size = sample.abs().amax((-2, -1), keepdim=True)
    least = torch.finfo(torch.float32).eps * size + torch.finfo(torch.float32).tiny
    gap = torch.maximum((best[..., :1] - best[..., 1:]).mean((-2, -1), keepdim=True), least).to(stack.dtype)
    prices = stack.new_zeros((batch, 1, n)) if start is None else start[:, None].to(stack)
    kernel = scratch(stack.shape, torch.float32, stack.device)
    for share in STAGES if start is None else STAGES[1:]:
        prices = _stage(stack, prices, share * gap, kernel)
    if not prices.isfinite().all():
        prices = torch.where(prices.isfinite(), prices, stack.amax(-2, keepdim=True))
    return prices[:, 0].double()


def _stage(stack: Tensor, prices: Tensor, temperature: Tensor, kernel: Tensor) -> Tensor:
    """Return better prices, by scaling at one temperature; `kernel` is written to."""
    height = max(1, BLOCK // (len(stack) * stack.shape[-1])) if stack.device.type == "cpu" else stack.shape[-1]
    for part, out in zip(stack.split(height, -2), kernel.split(height, -2), strict=True):
        torch.sub(part, prices, out=out)  # in place: memory that is new costs more than what is done with it
        out -= out.amax(-1, keepdim=True)
        out.div_(temperature).clamp_(min=LOWEST).exp_()
    scale = kernel.new_ones((len(stack), stack.shape[-1], 1))
    for _ in range(ITERATIONS):
        columns = kernel.new_zeros((len(stack), 1, stack.shape[-1]))
        for part in kernel.split(height, -2):
            columns += (part @ scale).reciprocal_().mT @ part
        scale = columns.reciprocal_().mT
    return prices - temperature * scale.mT.log().to(stack.dtype)
