"""Streaming moments of features: `update` with batches, `merge` with another stream, `finalize` into statistics.

Sums of squared deviations are kept about the running mean and joined by the pairwise formula, in float64: nothing is
lost when the mean is large against the deviation, and any split of the data over batches, workers or machines gives the
same result to rounding. Cross products within a batch are computed from centred rows in its own dtype, float32 at
least. Sums stay on the device of the first batch. (chan1983)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.params import compute_dtype

# A deviation below this share of the mean is rounding: the feature is constant, and correlates with nothing.
CONSTANT = 1e-10
# A batch is taken in parts of so many elements: what is made of one stays in the cache of a core until it is used.
PART = 1 << 17
# Rows of a power of two would fall on the same places of the cache: they are so many elements longer.
SPARE = 16
# So many products are added up in the dtype of the batches: each adds a rounding of it.
RECENT = 8


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and variance of each channel.

    Args:
        count: number of samples; positions (rows, columns, time steps) are samples.
        mean: `Float[Tensor, "channels"]`.
        variance: `Float[Tensor, "channels"]`, the mean squared deviation (divided by `count`).
    """

    count: int
    mean: Tensor
    variance: Tensor

    @property
    def unbiased_variance(self) -> Tensor:
        """The squared deviations divided by `count - 1`, as batch norm stores it. NaN for one sample."""
        return self.variance * (self.count / (self.count - 1) if self.count > 1 else float("nan"))


class ChannelMoments:
    """Streaming mean and variance per channel.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def update(self, batch: Tensor) -> None:
        """Add `Float[Tensor, "samples channels *positions"]`, as convolutions and batch norm lay features out.

        Raises:
            UsageError: another number of channels.
        """
        _check_axis(batch, self.mean.numel())
        count = batch.numel() // max(self.mean.numel(), 1)
        if count:
            deviations, mean = _centred(batch)
            self._add(count, mean, deviations.square_().sum(_samples(batch)))

    def merge(self, other: ChannelMoments) -> None:
        """Add everything that `other` has seen.

        Raises:
            UsageError: another number of channels.
        """
        _check_sizes([self.mean.numel()], [other.mean.numel()])
        self._add(other.count, other.mean, other.squares)

    def _add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if not count:
            return
        if not self.count:
            self.count, self.mean, self.squares = count, mean.clone(), squares.clone()
            return
        mean, squares = mean.to(self.mean.device), squares.to(self.mean.device)
        apart, total = mean - self.mean, self.count + count
        self.squares += squares + apart.square() * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    def finalize(self) -> ChannelStatistics:
        """Return the statistics of all samples so far; the stream may go on.

        Raises:
            UsageError: no samples.
        """
        _check_count(self.count)
        return ChannelStatistics(self.count, self.mean.clone(), self.squares / self.count)


@dataclass(frozen=True)
class CrossStatistics:
    """Second moments between two sets of features seen on the same samples.

    Args:
        a: mean and variance of the first set.
        b: mean and variance of the second set.
        covariance: `Float[Tensor, "a b"]`, the mean product of deviations (divided by the count).
    """

    a: ChannelStatistics
    b: ChannelStatistics
    covariance: Tensor

    @property
    def product(self) -> Tensor:
        """The mean product `E[a b^T]`, `Float[Tensor, "a b"]`, neither centred nor scaled."""
        return torch.addr(self.covariance, self.a.mean, self.b.mean)

    @property
    def correlation(self) -> Tensor:
        """Pearson's correlation, `Float[Tensor, "a b"]` in [-1, 1]; 0 for a feature that never changes."""
        scale_a, scale_b = (_inverse_deviation(side) for side in (self.a, self.b))
        return (self.covariance * scale_a[:, None]).mul_(scale_b).clamp_(-1, 1)


class CrossMoments:
    """Streaming cross-moments between two sets of features; its memory is one `a x b` matrix, and one in float32.

    Deviations are those from a fixed point, the mean of the first samples, and are brought to the mean at the end: a
    batch then costs its product and a pass over it. What rounding this adds is bounded by how few the first samples are
    among all: the further the mean moves away from them, the larger is the variance, too. A few products are added up
    in the dtype of the batches before they go into the sum in float64, which would take as long as a small product.

    Args:
        features_a: number of features in the first set.
        features_b: number of features in the second set; default: as many.
    """

    def __init__(self, features_a: int, features_b: int | None = None) -> None:
        self.count = 0
        # Of each set: the point, then the sums of deviations from it and of their squares.
        sides = (features_a, features_a if features_b is None else features_b)
        self._points = [torch.zeros(size, dtype=torch.float64) for size in sides]
        self._sums = [torch.zeros(size, dtype=torch.float64) for size in sides]
        self._squares = [torch.zeros(size, dtype=torch.float64) for size in sides]
        self._about_points = torch.zeros(sides, dtype=torch.float64)
        self._recent, self._recent_products = self._about_points, 0

    @property
    def a(self) -> ChannelMoments:
        """The moments of the first set by itself."""
        return self._side(0)

    @property
    def b(self) -> ChannelMoments:
        """The moments of the second set by itself."""
        return self._side(1)

    @property
    def products(self) -> Tensor:
        """The sum of products of deviations from the means, `Float[Tensor, "a b"]`."""
        self._settle()
        return torch.addr(self._about_points, *self._sums, alpha=-1 / max(1, self.count))

    def update(self, batch_a: Tensor, batch_b: Tensor) -> None:
        """Add `Float[Tensor, "samples a *positions"]` and `Float[Tensor, "samples b *positions"]` of the same samples.

        Raises:
            UsageError: another number of features, or batches that differ in samples or positions.
        """
        for batch, sums in zip((batch_a, batch_b), self._sums, strict=True):
            _check_axis(batch, sums.numel())
        if len(batch_a) != len(batch_b) or batch_a.shape[2:] != batch_b.shape[2:]:
            raise UsageError(
                f"batches of shape {tuple(batch_a.shape)} and {tuple(batch_b.shape)}",
                "as many samples, and the same positions, in both",
                "run both networks on the same inputs",
            )
        count = math.prod((len(batch_a), *batch_a.shape[2:]))
        if not count:
            return
        dtype = torch.promote_types(compute_dtype(batch_a), compute_dtype(batch_b))
        pairs = list(zip(*_parts(batch_a, batch_b), strict=True))
        if not self.count:
            self._begin([part.mean((0, 2), dtype=torch.float64).to(dtype) for part in pairs[0]])
        self.count += count
        dtype = torch.promote_types(dtype, self._points[0].dtype)
        for pair in pairs:
            self._add(pair, dtype)

    def _begin(self, points: list[Tensor]) -> None:
        device, self._points = points[0].device, [point.to(points[0].device) for point in points]
        self._sums, self._squares = ([x.to(device) for x in kept] for kept in (self._sums, self._squares))
        self._about_points = self._about_points.to(device)

    def _add(self, pair: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        """Add a part of a batch. Products of deviations lose only their own rounding in the dtype they come in."""
        if self._recent is self._about_points or self._recent.dtype != dtype:
            self._settle()
            self._recent = torch.zeros_like(self._about_points, dtype=dtype)
        a, b = (_deviations(part, point.to(dtype)) for part, point in zip(pair, self._points, strict=True))
        self._recent.addmm_(a, b.T)
        self._recent_products += 1
        for rows, sums, squares in zip((a, b), self._sums, self._squares, strict=True):
            sums += rows.sum(1)
            squares += rows.square_().sum(1)
        if self._recent_products == RECENT:
            self._settle()

    def _settle(self) -> None:
        """Add what is summed in the dtype of the batches to the sum in float64."""
        if self._recent_products:
            self._about_points += self._recent
            self._recent.zero_()
            self._recent_products = 0

    def merge(self, other: CrossMoments) -> None:
        """Add everything that `other` has seen.

        Raises:
            UsageError: other numbers of features.
        """
        _check_sizes(self._about_points.shape, other._about_points.shape)
        if not self.count:
            self._begin(other._points)
        self.count += other.count
        apart: list[Tensor] = []  # how far the means of the other are from the points of this stream
        for which, side in enumerate((other.a, other.b)):
            apart.append(side.mean.to(self._about_points) - self._points[which])
            self._sums[which] += side.count * apart[which]
            self._squares[which] += side.squares.to(self._about_points) + side.count * apart[which].square()
        self._about_points += other.products.to(self._about_points)
        self._about_points.addr_(*apart, alpha=other.count)

    def _side(self, which: int) -> ChannelMoments:
        sums, squares = self._sums[which], self._squares[which]
        found = ChannelMoments(sums.numel())
        if self.count:
            mean = self._points[which] + sums / self.count
            found._add(self.count, mean, (squares - sums.square() / self.count).clamp_(min=0))
        return found

    def finalize(self) -> CrossStatistics:
        """Return the statistics of all samples so far; the stream may go on.

        Raises:
            UsageError: no samples.
        """
        a, b = self.a.finalize(), self.b.finalize()
        return CrossStatistics(a, b, self.products / self.count)


@dataclass(frozen=True)
class SecondStatistics:
    """Mean and covariance of a set of features, or of a stack of sets.

    Args:
        count: number of samples.
        mean: `Float[Tensor, "*stack features"]`.
        covariance: `Float[Tensor, "*stack features features"]`, the mean product of deviations (divided by the count).
    """

    count: int
    mean: Tensor
    covariance: Tensor

    @property
    def product(self) -> Tensor:
        """The mean product `E[x x^T]`, neither centred nor scaled."""
        return self.covariance + self.mean[..., :, None] * self.mean[..., None, :]


class SecondMoments:
    """Streaming mean and covariance of features, or of a stack of sets of features.

    Args:
        sizes: sizes of the stack, if any, then the number of features.
    """

    def __init__(self, *sizes: int) -> None:
        self.count = 0
        self.mean = torch.zeros(sizes, dtype=torch.float64)
        self.products = torch.zeros(*sizes, sizes[-1], dtype=torch.float64)

    def update(self, batch: Tensor) -> None:
        """Add `Float[Tensor, "*stack samples features"]`.

        Raises:
            UsageError: other sizes.
        """
        shape = (*batch.shape[:-2], batch.shape[-1])
        _check_sizes(self.mean.shape, shape)
        if batch.shape[-2]:
            own = batch.detach().to(compute_dtype(batch))
            mean = own.mean(-2, dtype=torch.float64)
            own = own - mean.to(own)[..., None, :]
            self._add(batch.shape[-2], mean, (own.mT @ own).double())

    def merge(self, other: SecondMoments) -> None:
        """Add everything that `other` has seen.

        Raises:
            UsageError: other sizes.
        """
        _check_sizes(self.mean.shape, other.mean.shape)
        self._add(other.count, other.mean, other.products)

    def _add(self, count: int, mean: Tensor, products: Tensor) -> None:
        if not count:
            return
        if not self.count:
            self.count, self.mean, self.products = count, mean.clone(), products.clone()
            return
        apart, total = mean.to(self.mean) - self.mean, self.count + count
        self.products += products.to(self.products)
        self.products += apart[..., :, None] * apart[..., None, :] * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    def finalize(self) -> SecondStatistics:
        """Return the statistics of all samples so far; the stream may go on.

        Raises:
            UsageError: no samples.
        """
        _check_count(self.count)
        return SecondStatistics(self.count, self.mean.clone(), self.products / self.count)


def _centred(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return deviations from the mean, and the mean. Two passes over the data: many times faster than var_mean."""
    own = batch.detach().to(torch.float64, copy=True)
    mean = own.mean(_samples(batch))
    return own.sub_(mean.reshape(-1, *[1] * (batch.dim() - 2))), mean


def _parts(*batches: Tensor) -> list[tuple[Tensor, ...]]:
    """Cut each batch into `Float[Tensor, "samples features positions"]`, all at the same samples."""
    flat = [batch.detach().flatten(2) if batch.dim() > 2 else batch.detach()[..., None] for batch in batches]
    widest = max(batch[0].numel() for batch in flat)
    features = max(batch.shape[1] for batch in flat)
    most = max(PART if batches[0].device.type == "cpu" else 64 * PART, features**2)
    return [batch.split(max(1, most // max(1, widest))) for batch in flat]


def _deviations(part: Tensor, point: Tensor) -> Tensor:
    """Return `Float[Tensor, "features samples*positions"]`: a new tensor, written once, in the dtype of `point`."""
    part = part.to(point.device)
    samples, features, positions = part.shape
    if positions == 1 or part.stride(1) == 1:  # features lie side by side, as with channels last
        rows = point.new_empty(samples, positions, features)
        return torch.sub(part.mT, point, out=rows).flatten(0, 1).T
    rows = point.new_empty(features, samples * positions + SPARE)[:, :-SPARE]
    torch.sub(part, point[:, None], out=rows.unflatten(1, (samples, positions)).transpose(0, 1))
    return rows


def _samples(batch: Tensor) -> list[int]:
    return [axis for axis in range(batch.dim()) if axis != 1]


def _inverse_deviation(side: ChannelStatistics) -> Tensor:
    deviation = side.variance.sqrt()
    return torch.where(deviation > CONSTANT * side.mean.abs(), 1 / deviation, 0.0)


def _check_axis(batch: Tensor, channels: int) -> None:
    if batch.dim() < 2 or batch.shape[1] != channels:
        raise UsageError(
            f"features of shape {tuple(batch.shape)}",
            f"(samples, {channels}) or (samples, {channels}, positions...)",
            "bring the channels to axis 1",
        )


def _check_sizes(own: Iterable[int], other: Iterable[int]) -> None:
    own, other = tuple(own), tuple(other)
    if own != other:
        raise UsageError(f"moments of {other} features", f"moments of {own} features", "merge streams of one layer")


def _check_count(count: int) -> None:
    if not count:
        raise UsageError("moments of no samples", "at least one sample", "call update with batches first")
