"""Streaming moments: exact against one look at all samples, however the stream is cut, and with large means."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.moments import ChannelMoments, CrossMoments


def draw(*shape: int, seed: int = 0, mean: float = 0.7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


def channels(samples: Tensor, *sizes: int) -> ChannelMoments:
    moments = ChannelMoments(samples.shape[1])
    for batch in samples.split(sizes or len(samples)):
        moments.update(batch)
    return moments


def cross(a: Tensor, b: Tensor, *sizes: int) -> CrossMoments:
    moments = CrossMoments(a.shape[1], b.shape[1])
    for batch_a, batch_b in zip(a.split(sizes or len(a)), b.split(sizes or len(b)), strict=True):
        moments.update(batch_a, batch_b)
    return moments


def test_channels_match_one_look_at_everything() -> None:
    samples = draw(31, 5, 3, 2)
    found = channels(samples, 2, 11, 1, 17).finalize()
    flat = samples.movedim(1, -1).reshape(-1, 5)
    assert found.count == len(flat) == 186
    torch.testing.assert_close(found.mean, flat.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.variance, flat.var(0, correction=0), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.unbiased_variance, flat.var(0), rtol=1e-13, atol=0)


def test_cross_moments_match_one_look_at_everything() -> None:
    a, b = draw(31, 5, seed=0), draw(31, 7, seed=1) + draw(31, 1, seed=2)
    found = cross(a, b, 2, 11, 1, 17).finalize()
    whole = torch.cat([a, b], 1)
    torch.testing.assert_close(found.covariance, torch.cov(whole.T, correction=0)[:5, 5:], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.product, a.T @ b / 31, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.correlation, torch.corrcoef(whole.T)[:5, 5:], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.b.variance, b.var(0, correction=0), rtol=1e-13, atol=0)


@pytest.mark.parametrize("cut", [0, 1, 13, 30, 31])
def test_two_parts_merged_equal_the_whole(cut: int) -> None:
    a, b = draw(31, 5), draw(31, 7, seed=1)
    whole, first, second = cross(a, b), cross(a[:cut], b[:cut]), cross(a[cut:], b[cut:])
    first.merge(second)
    assert first.a.count == 31
    for found, expected in (
        (first.products, whole.products),
        (first.a.mean, whole.a.mean),
        (first.b.squares, whole.b.squares),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_a_merge_leaves_the_other_stream_alone() -> None:
    one, other = ChannelMoments(5), channels(draw(31, 5))
    one.merge(other)
    one.update(draw(3, 5, seed=1))
    torch.testing.assert_close(other.finalize().mean, draw(31, 5).mean(0))
    assert other.count == 31


@pytest.mark.parametrize("mean", [1e6, -1e9])
def test_a_large_mean_costs_no_more_than_its_own_rounding(mean: float) -> None:
    samples = draw(1009, 3, mean=mean)
    centred = samples - mean  # exact: the samples are multiples of the spacing of doubles near the mean
    found = cross(samples, samples.flip(1), *[127] * 7, 120).finalize()
    expected = torch.cov(centred.T, correction=0)
    spacing = torch.finfo(torch.float64).eps * abs(mean)
    torch.testing.assert_close(found.covariance.flip(1), expected, rtol=0, atol=spacing)
    torch.testing.assert_close(found.a.variance, expected.diag(), rtol=0, atol=spacing)
    # The textbook formula, which this must not be, is far worse.
    naive = samples.square().mean(0) - samples.mean(0).square()
    assert ((naive - expected.diag()).abs() > 1e4 * spacing).any()


def test_features_that_never_change_correlate_with_nothing() -> None:
    a, b = draw(31, 3), draw(31, 3, seed=1)
    a[:, 0], b[:, 2] = 0.0, 0.1
    found = cross(a, b, 13, 18).finalize().correlation
    torch.testing.assert_close(found[0], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(found[:, 2], torch.zeros(3, dtype=torch.float64))
    assert found.isfinite().all()


def test_a_feature_correlates_fully_with_itself_and_its_negative() -> None:
    a = draw(31, 3)
    found = cross(a, -2 * a).finalize().correlation
    torch.testing.assert_close(found.diag(), -torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_accumulated_in_float64(dtype: torch.dtype) -> None:
    samples = draw(1009, 3).to(dtype)
    found = channels(samples, *[1] * 1009).finalize()
    assert found.mean.dtype == found.variance.dtype == torch.float64
    torch.testing.assert_close(found.variance, samples.double().var(0, correction=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("dtype", "mean"), [(torch.float32, 0.0), (torch.float32, 100.0), (torch.bfloat16, 1.0)])
def test_cross_products_of_lower_precision_lose_only_float32_rounding(dtype: torch.dtype, mean: float) -> None:
    a, b = (draw(1009, 3, mean=mean, seed=seed).to(dtype) for seed in (0, 1))
    found, exact = (cross(x, y, *[127] * 7, 120).finalize() for x, y in ((a, b), (a.double(), b.double())))
    assert found.covariance.dtype == torch.float64
    torch.testing.assert_close(found.covariance, exact.covariance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.product, exact.product, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.a.variance, exact.a.variance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("part", [1, 50, 1 << 18])
def test_positions_are_samples_however_a_batch_is_cut(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onebasin.moments.PART", part)
    a, b = draw(31, 5, 3, 2), draw(31, 7, 3, 2, seed=1)
    found = cross(a, b, 2, 11, 1, 17)
    expected = cross(*(x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (a, b)))
    assert found.count == expected.count == 186
    torch.testing.assert_close(found.products, expected.products, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.a.squares, expected.a.squares, rtol=1e-12, atol=0)
    assert not torch.allclose(cross(a, b.flip(2)).products, expected.products, rtol=1e-3)


def test_gradients_are_not_kept() -> None:
    batch = draw(5, 3).requires_grad_()
    moments = CrossMoments(3)
    moments.update(batch, batch)
    assert not moments.products.requires_grad
    assert not moments.a.mean.requires_grad


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "channels": (lambda: channels(draw(5, 3)).update(draw(5, 2)), r"\(5, 2\)"),
    "vector": (lambda: ChannelMoments(3).update(draw(3)), r"\(3,\)"),
    "rows": (lambda: CrossMoments(3, 2).update(draw(5, 3), draw(7, 2)), r"\(7, 2\)"),
    "features": (lambda: CrossMoments(3, 2).update(draw(5, 2), draw(5, 2)), r"\(samples, 3\)"),
    "maps": (lambda: CrossMoments(3).update(draw(5, 3, 2), draw(5, 3, 4)), "same positions"),
    "merge": (lambda: ChannelMoments(3).merge(ChannelMoments(2)), r"\(2,\)"),
    "cross merge": (lambda: CrossMoments(3, 2).merge(CrossMoments(2, 3)), r"\(2, 3\)"),
    "empty": (lambda: CrossMoments(3).finalize(), "no samples"),
    "empty batch": (lambda: channels(draw(0, 3)).finalize(), "no samples"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused(wrong: str) -> None:
    call, says = WRONG[wrong]
    with pytest.raises(UsageError, match=says):
        call()
