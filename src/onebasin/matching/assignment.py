"""Exact linear assignment, each with a proof that it is optimal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onebasin.errors import ParamsError, UsageError
from onebasin.matching.core import LARGE_BLOCK, shortfalls, solve_by_cores, to_host
from onebasin.matching.sinkhorn_prices import scratch

# Elements that are treated together: small problems share a pass, and the pass stays within the cache.
BATCH = 1 << 18
# What is read in place.
PLAIN = (torch.float32, torch.float64)
# Problems of no more units are carried to the CPU as they are, where numba does not serve; of larger ones, a core is.
WHOLE = 256
# Problems of no more units are solved by one compiled call: those that it saves take longer than they do.
SMALL = 64
# Prices to start from are cut off at so many times the largest gain that is seen in so many rows.
REACH, SAMPLE = 64, 16
# Gaps and potentials below this share of the largest gains are the rounding of float64.
SETTLED = 1e-15
# Path lengths are sums of differences of gains, at most n.
LARGEST, TINY = torch.finfo(torch.float64).max / 4, torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class Assignment:
    """The best assignments of a batch of gain matrices.

    Args:
        index: `Int[Tensor, "*batch n"]` on the CPU: row i is given column `index[i]`.
        value: `Float64[Tensor, "*batch"]`: sum over i of `gains[i, index[i]]`.
        gap: `Float64[Tensor, "*batch"]`: no other assignment is better by more than this, as a share of the sum over
            rows of the largest absolute gain. Zero, or rounding, proves that `index` is optimal.
        duals: `Float64[Tensor, "*batch n"]` on the CPU: prices of the columns that prove it. Every row has the column
            of the largest `gains[i, k] - duals[k]`, up to the gap.
    """

    index: Tensor
    value: Tensor
    gap: Tensor
    duals: Tensor


def solve(gains: Tensor, warm: Assignment | None = None) -> Assignment:
    """Maximise `sum over i of gains[i, index[i]]` over all permutations `index`, exactly.

    The duality gap of every assignment is computed independently of the solver: potentials are found by shortest paths
    in the residual graph, and any potentials, converged or not, bound the optimum from above.

    Args:
        gains: `Float[Tensor, "*batch n n"]`, any floating dtype and device; read in place in float32 and float64.
        warm: what was found for similar gains of the same shape; it changes the time, and which of several equal
            optima is found.

    Raises:
        UsageError: the last two dimensions are not square, or `warm` is of another shape.
        ParamsError: a gain is NaN or infinite, or so large that sums of them are.

    Source: jonker1987 (shortest augmenting paths); crouse2016 (those of scipy, without `[fast]`).
    """
    _check_shapes(gains, warm)
    if gains.numel() == 0:
        zero = torch.zeros(gains.shape[:-2], dtype=torch.float64)
        rows = torch.zeros(gains.shape[:-1], dtype=torch.float64)
        return Assignment(rows.long(), zero, zero, rows)
    read = gains.detach()
    read = read if read.dtype in PLAIN else read.to(torch.promote_types(read.dtype, torch.float32))
    return _by_paths(read, warm) if read.device.type == "cpu" and has_numba() else _in_torch(read, warm)


def upper_bound(gains: Tensor, duals: Tensor) -> Tensor:
    """Return what no assignment is worth more than, whatever the prices: `Float64[Tensor, "*batch"]`.

    That is the sum over rows of the largest `gains[i, k] - duals[k]`, and the sum of the prices.
    """
    duals = duals.to(gains.device)
    return (gains - duals[..., None, :]).amax(-1).sum(-1) + duals.sum(-1)


class Start(NamedTuple):
    """Assignments of a stack of matrices, and prices, to start from."""

    columns: Tensor
    prices: Tensor


class Found(NamedTuple):
    """Assignments of a stack of matrices, prices that prove them, and the absolute duality gaps."""

    columns: Tensor
    prices: Tensor
    short: Tensor


def _in_torch(gains: Tensor, warm: Assignment | None) -> Assignment:
    """Solve all problems, a few at a time."""
    stack = gains.flatten(0, -3) if gains.dim() > 2 else gains[None]
    size = _size(stack)
    _check_gains(gains, size.tolist())
    start = None if warm is None else _bounded(stack, _checked_start(warm))
    index, prices, short = _in_pieces(stack, start)
    value = to_host(stack.gather(-1, index[..., None].to(stack.device))[..., 0].double().sum(-1))
    gap, rows, batch = short / size.clamp_min(TINY), gains.shape[:-1], gains.shape[:-2]
    return Assignment(index.reshape(rows), value.reshape(batch), gap.reshape(batch), prices.reshape(rows))


def _in_pieces(stack: Tensor, start: Start | None) -> Found:
    many = max(1, (BATCH if stack.device.type == "cpu" else LARGE_BLOCK) // stack.shape[-1] ** 2)
    parts = zip(*(part.split(many) for part in (stack, *(start or ()))), strict=True)
    found = [_solve_stack(piece, Start(*part) if part else None) for piece, *part in parts]
    return Found(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _solve_stack(stack: Tensor, start: Start | None) -> Found:
    """Solve a stack of problems; those whose start is still optimal keep it."""
    if stack.shape[-1] > WHOLE:
        return _by_cores(stack, start)
    if start is None:
        return _by_scipy(stack)
    short = _shortfall(stack, *start)
    rounding = SETTLED * _size(stack) if short.any() else short
    rest = (short > rounding).nonzero()[:, 0]
    if len(rest) == len(stack):
        return _by_scipy(stack)
    found = Found(*start, short)
    if len(rest):
        again = _by_scipy(stack[rest])
        found = Found(*(old.index_copy(0, rest, new) for old, new in zip(found, again, strict=True)))
    return found


def _bounded(stack: Tensor, start: Start) -> Start:
    """Cut prices off where gains would be lost in their rounding, and with them the proof that an assignment is best.

    Any prices will do to start from. They are held against the largest gain in a few rows and among the assigned ones.
    """
    taken = stack.gather(-1, start.columns[..., None].to(stack.device))[..., 0].abs().amax(-1)
    most = REACH * to_host(taken).double()[:, None]
    if (start.prices.abs() <= most).all():
        return start
    some = stack[:, :: max(1, stack.shape[-1] // SAMPLE)].abs().flatten(1).amax(-1)
    most = torch.maximum(most, REACH * to_host(some).double()[:, None])
    return start._replace(prices=(start.prices - start.prices.amin(-1, keepdim=True)).minimum(most))


@cache
def has_numba() -> bool:
    """Return whether the extra `[fast]` is there, and fits the numpy that is."""
    try:
        import onebasin.matching.compiled  # noqa: F401
    except ImportError:
        return False
    return True


def _by_paths(gains: Tensor, warm: Assignment | None) -> Assignment:
    """Do what `_in_torch` does by compiled shortest augmenting paths, from prices that leave few rows without a column.

    At some hundred units, the calls of torch that it would take are as dear as the paths.
    """
    from onebasin.matching import compiled, compiled_small

    rows, batch, n = gains.shape[:-1], gains.shape[:-2], gains.shape[-1]
    stack = gains.contiguous().numpy().reshape(-1, n, n)
    if warm is not None:
        index, prices = (x.numpy().reshape(-1, n).copy() for x in (warm.index, warm.duals))
        _check_start(compiled.is_start(index, prices))
        compiled.bound(stack, prices, index, REACH, SAMPLE)
    else:
        index, prices = np.empty(stack.shape[:2], np.int64), np.zeros(stack.shape[:2])
        index.fill(-1)
    if n <= SMALL:
        size, gap, value = compiled_small.solve_stack(stack, index, prices, LARGEST / n)
    else:
        size, gap, value = compiled.solve_stack(stack, index, prices, LARGEST / n, warm is not None)
    _check_gains(gains, size.tolist())
    found = index.reshape(rows), value.reshape(batch), gap.reshape(batch), prices.reshape(rows)
    return Assignment(*map(torch.from_numpy, found))


def _by_cores(stack: Tensor, start: Start | None) -> Found:
    """Solve a stack by sparse cores; by scipy in whole what is not solved so."""
    found = []
    for matrix, one in zip(stack, solve_by_cores(stack, start), strict=True):
        if one is None:
            found.append(_by_scipy(matrix[None]))
        else:
            found.append(Found(one.columns[None], one.prices[None], torch.tensor([one.short], dtype=torch.float64)))
    return Found(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _by_scipy(stack: Tensor) -> Found:
    """Solve by scipy, for which matrices go to the host as they are; find prices afterwards."""
    doubles = to_host(stack).double()
    columns = [linear_sum_assignment(matrix, maximize=True)[1] for matrix in doubles.numpy()]
    index = torch.from_numpy(np.stack(columns).astype(np.int64))
    prices = _prices(doubles, index)
    return Found(index, prices, _shortfall(doubles, index, prices))


def _shortfall(stack: Tensor, index: Tensor, prices: Tensor) -> Tensor:
    """Return by how much rows fall short of the best they could have at these prices, summed: the duality gap.

    By weak duality no assignment is better than `index` by more, whatever the prices are and wherever they come from.
    """
    return to_host(shortfalls(stack, prices.to(stack.device), index.to(stack.device)).sum(-1))


def _size(stack: Tensor) -> Tensor:
    """Return the sum over rows of the largest absolute gain: what gaps are a share of."""
    return to_host(torch.maximum(stack.amax(-1), -stack.amin(-1)).double().sum(-1))


def _prices(gains: Tensor, index: Tensor) -> Tensor:
    """Return prices that prove the assignments `index` of a stack of matrices in float64, if they are optimal.

    With columns renumbered so that row i has column i, `loss[i, j]` is what row i loses when it takes column j. The
    assignment is optimal if and only if there are potentials with v[j] <= v[i] + loss[i, j]: shortest path lengths.
    """
    taken = gains.gather(-1, index[:, None, :].expand_as(gains))
    loss = torch.sub(taken.diagonal(dim1=-2, dim2=-1)[..., None].clone(), taken, out=taken)
    largest = torch.maximum(gains.amax(-1), -gains.amin(-1))
    potential = _potentials(loss, SETTLED * largest.amax(-1, keepdim=True))
    return torch.zeros_like(potential).scatter(-1, index, -potential)


def _potentials(loss: Tensor, settled: Tensor) -> Tensor:
    """Relax v[j] = min(v[j], v[i] + loss[i, j]) until nothing moves by more than `settled` (Bellman-Ford), from v = 0.

    Only rows whose potential fell in the last round are relaxed again. Without an optimal assignment there is a cycle
    that lowers the potentials for ever, hence the cap: a shortest path has fewer than n steps.
    """
    potential, n = torch.zeros(loss.shape[:-1], dtype=loss.dtype), loss.shape[-1]
    rows = torch.arange(n)
    for _ in range(n):
        part = loss if len(rows) == n else loss[:, rows]
        lengths = torch.add(part, potential[:, rows, None], out=scratch(part.shape, part.dtype, part.device))
        reached = torch.minimum(potential, lengths.amin(-2))
        fell = reached < potential - settled
        potential, rows = reached, fell.any(0).nonzero()[:, 0]
        if len(rows) == 0:
            break
    return potential


def _checked_start(warm: Assignment) -> Start:
    n = warm.index.shape[-1]
    start = Start(warm.index.reshape(-1, n), warm.duals.reshape(-1, n))
    _check_start(_is_order(start.columns) and bool(torch.isfinite(start.prices).all()))
    return start


def _is_order(index: Tensor) -> bool:
    return torch.equal(index.sort(-1).values, torch.arange(index.shape[-1]).expand_as(index))


def _check_shapes(gains: Tensor, warm: Assignment | None) -> None:
    if gains.dim() < 2 or gains.shape[-1] != gains.shape[-2]:
        raise UsageError(
            f"gains of shape {tuple(gains.shape)}",
            "square matrices: every unit of the one model is given one unit of the other",
            "pass gains of shape (..., n, n)",
        )
    if warm is not None and warm.index.shape != gains.shape[:-1]:
        raise UsageError(
            f"gains of shape {tuple(gains.shape)} and a start of shape {tuple(warm.index.shape)}",
            "the assignment of gains of the same shape to start from",
            "pass what `solve` returned for such gains, or no start",
        )


def _check_start(is_one: bool) -> None:
    if not is_one:
        raise UsageError(
            "a start that gives a column to two rows, or has prices that are not finite",
            "an assignment, and finite prices",
            "pass what `solve` returned, or no start",
        )


def _check_gains(gains: Tensor, sizes: list[float]) -> None:
    """Refuse gains that are not finite, or too large; of a matrix with one, the size is not finite, or as large."""
    if all(size <= LARGEST / gains.shape[-1] for size in sizes):
        return
    if not torch.isfinite(gains).all():
        raise ParamsError(
            f"gains with {int((~torch.isfinite(gains)).sum())} values that are not finite",
            "finite gains",
            "check the weights for values so large that their products overflow, and scale them down",
        )
    raise ParamsError(
        f"gains as large as {gains.abs().amax().item():.3g}",
        "gains whose sums and differences are finite in float64",
        "scale them down",
    )
