"""Streaming moments of features: `update` with batches, `merge` with another stream, `finalize` into statistics.

Sums of squared deviations are kept about the running mean and joined by the pairwise formula, in float64: nothing is
lost when the mean is large against the deviation, and any split of the data over batches, workers or machines gives the
same result to rounding. Cross products within a batch are computed from centred rows in its own dtype, float32 at
least. Sums stay on the device of the first batch. (chan1983)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.params import compute_dtype

# A deviation below this share of the mean is rounding: the feature is constant, and correlates with nothing.
CONSTANT = 1e-10


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
    """Streaming cross-moments between two sets of features; its memory is one `a x b` matrix.

    Args:
        features_a: number of features in the first set.
        features_b: number of features in the second set; default: as many.
    """

    def __init__(self, features_a: int, features_b: int | None = None) -> None:
        self.a = ChannelMoments(features_a)
        self.b = ChannelMoments(features_a if features_b is None else features_b)
        self.products = torch.zeros(self.a.mean.numel(), self.b.mean.numel(), dtype=torch.float64)

    def update(self, batch_a: Tensor, batch_b: Tensor) -> None:
        """Add `Float[Tensor, "samples a"]` and `Float[Tensor, "samples b"]`, row by row from the same sample.

        Raises:
            UsageError: another number of features, or batches that are not two matrices with the same number of rows.
        """
        if batch_a.dim() != 2 or batch_b.dim() != 2 or len(batch_a) != len(batch_b):
            raise UsageError(
                f"batches of shape {tuple(batch_a.shape)} and {tuple(batch_b.shape)}",
                "two matrices (samples, features) with one row per sample in both",
                "run both networks on the same inputs, and flatten positions into samples",
            )
        _check_axis(batch_a, self.a.mean.numel())
        _check_axis(batch_b, self.b.mean.numel())
        if not len(batch_a):
            return
        if not self.a.count:
            self.products = self.products.to(batch_a.device)
        # Products of centred rows lose only their own rounding in the dtype they come in, and cost far less.
        dtype = torch.promote_types(compute_dtype(batch_a), compute_dtype(batch_b))
        rows_a, mean_a = _centred_rows(batch_a.to(self.products.device), dtype)
        rows_b, mean_b = _centred_rows(batch_b.to(self.products.device), dtype)
        self._shift(len(batch_a), mean_a, mean_b)
        self.products += rows_a.T @ rows_b
        self.a._add(len(batch_a), mean_a, rows_a.square_().sum(0, dtype=torch.float64))
        self.b._add(len(batch_b), mean_b, rows_b.square_().sum(0, dtype=torch.float64))

    def merge(self, other: CrossMoments) -> None:
        """Add everything that `other` has seen.

        Raises:
            UsageError: other numbers of features.
        """
        _check_sizes(self.products.shape, other.products.shape)
        if not self.a.count:
            self.products = self.products.to(other.products.device)
        self._shift(other.a.count, other.a.mean, other.b.mean)
        self.products += other.products.to(self.products)
        self.a.merge(other.a)
        self.b.merge(other.b)

    def _shift(self, count: int, mean_a: Tensor, mean_b: Tensor) -> None:
        """Add what the distance between the two means contributes; comes before the means are joined."""
        if self.a.count and count:
            apart_a, apart_b = mean_a.to(self.products) - self.a.mean, mean_b.to(self.products) - self.b.mean
            self.products.addr_(apart_a, apart_b, alpha=self.a.count * count / (self.a.count + count))

    def finalize(self) -> CrossStatistics:
        """Return the statistics of all samples so far; the stream may go on.

        Raises:
            UsageError: no samples.
        """
        a, b = self.a.finalize(), self.b.finalize()
        return CrossStatistics(a, b, self.products / a.count)


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


def _centred_rows(batch: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return deviations from the mean in `dtype`, and the mean in float64."""
    own = batch.detach().to(dtype)
    mean = own.mean(0, dtype=torch.float64)
    return own - mean.to(dtype), mean


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
