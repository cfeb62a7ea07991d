"""How tensors are laid out for products."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from onebasin.matching.products import _is_matrix


def tensors() -> Iterator[Tensor]:
    """Yield tensors of every order of axes, with gaps, repeated values, and axes of one position."""
    x = torch.arange(5 * 3 * 2 * 4).view(5, 3, 2, 4)
    for axes in itertools.permutations(range(4)):
        yield x.permute(axes)
        yield x[:, :1].permute(axes)
        yield x[..., ::2].permute(axes)
        yield x[:, :, 1:].permute(axes)
        yield x[:1].expand(5, -1, -1, -1).permute(axes)


@pytest.mark.parametrize("rows", range(4))
def test_what_counts_as_a_matrix_is_what_can_be_viewed_as_one_with_rows_in_one_run(rows: int) -> None:
    answers = set()
    for values in tensors():
        shape = values.shape[:rows].numel(), values.shape[rows:].numel()
        try:
            is_one = values.view(shape).stride(1) == 1 or shape[1] == 1
        except RuntimeError:
            is_one = False
        assert _is_matrix(values, rows) == is_one
        answers.add(is_one)
    assert answers == {True, False}
