"""Decompositions of one weight: exact ones give the weight back, randomised ones their leading part and a residual."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebasin.analysis.singular import decompose, unfolded


def with_values(values: Tensor, out: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, len(values), generator=generator).double())[0] for n in (out, width))
    return u @ torch.diag(values) @ v.T


FALLING = 3.0 * torch.arange(1, 102, dtype=torch.float64) ** -1.0


@pytest.mark.parametrize("shape", [(7, 13), (13, 7), (11, 3, 5, 2), (31, 2, 3)])
def test_an_exact_decomposition_gives_the_weight_back(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found, matrix = decompose(weight), unfolded(weight)
    torch.testing.assert_close(found.u @ torch.diag(found.values) @ found.v.T, matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.values, torch.linalg.svdvals(matrix), rtol=1e-12, atol=0)
    for vectors in (found.u, found.v):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(min(matrix.shape)).double(), rtol=0, atol=1e-12)
    assert (found.residual, found.complete) == (0, True)


@pytest.mark.parametrize(("out", "width"), [(101, 211), (211, 101)])
def test_the_leading_part_of_a_wide_weight(out: int, width: int) -> None:
    weight = with_values(FALLING, out, width)
    found = decompose(weight, rank=13)
    torch.testing.assert_close(found.values, FALLING[:13], rtol=1e-9, atol=0)
    exact = decompose(weight)
    overlap = (found.u.T @ exact.u[:, :13]) * (found.v.T @ exact.v[:, :13])
    torch.testing.assert_close(overlap.diagonal(), torch.ones(13).double(), rtol=0, atol=1e-9)
    assert 0 < found.residual <= 1e-8
    assert not found.complete


def test_the_residual_tells_when_the_vectors_are_poor(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = with_values(1 + 1e-3 * FALLING, 101, 211)  # all values nearly equal: subspaces hardly separate
    monkeypatch.setattr("onebasin.analysis.singular.ROUNDS", 1)
    found = decompose(weight, rank=13)
    assert found.residual > 1e-4
    error = (weight.T @ found.u - found.v * found.values).norm(dim=0).max() / found.values[0]
    assert found.residual == pytest.approx(error.item(), rel=1e-6)


def test_a_weight_of_low_rank_is_complete() -> None:
    found = decompose(with_values(FALLING[:5], 101, 211), rank=13)
    assert len(found.values) == 5
    assert found.complete
    torch.testing.assert_close(found.values, FALLING[:5], rtol=1e-10, atol=0)


def test_a_weight_that_is_not_wide_is_decomposed_exactly_and_cut() -> None:
    weight = with_values(FALLING[:11], 11, 29)
    found = decompose(weight, rank=3)
    torch.testing.assert_close(found.values, FALLING[:3], rtol=1e-12, atol=0)
    assert (found.u.shape, found.v.shape, found.residual, found.complete) == ((11, 3), (29, 3), 0, False)
    assert decompose(weight, rank=11).complete


def test_the_seed_decides_all() -> None:
    weight = with_values(FALLING, 101, 211)
    assert torch.equal(decompose(weight, 13, seed=1).u, decompose(weight, 13, seed=1).u)
    assert not torch.equal(decompose(weight, 13, seed=1).u, decompose(weight, 13, seed=2).u)


def test_a_weight_of_zeros_has_no_vectors() -> None:
    for rank in (None, 3):
        found = decompose(torch.zeros(101, 211), rank)
        assert len(found.values) == 0
        assert found.complete
