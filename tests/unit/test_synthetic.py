"""Synthetic inputs: blobs for images, tokens within the vocabulary, anything else as in the examples."""

from __future__ import annotations

import pytest
import torch
from cases import case
from torch import Tensor, nn

from onebasin.errors import UsageError
from onebasin.synthetic import synthetic_batches


class Text(nn.Module):
    """13 tokens, 5 positions, a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions, self.head = nn.Embedding(13, 7), nn.Embedding(5, 7), nn.Linear(7, 2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head((x * mask[..., None]).mean(1))


def text_inputs() -> dict[str, Tensor]:
    return {"tokens": torch.tensor([[1, 4, 2], [3, 3, 0]]), "mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}


def test_images_are_smooth_and_cut_off() -> None:
    batches = synthetic_batches(nn.Identity(), torch.zeros(2, 3, 16, 16), samples=70, batch=32)
    assert [tuple(inputs.shape) for ((inputs,),) in batches] == [(32, 3, 16, 16)] * 3
    images = torch.cat([inputs for ((inputs,),) in batches])
    assert images.abs().max() == 1
    neighbours = torch.corrcoef(torch.stack([images[..., 1:].flatten(), images[..., :-1].flatten()]))[0, 1]
    assert neighbours > 0.7
    assert not torch.equal(images[:32], images[32:64])


def test_vectors_are_standard_normal() -> None:
    (((inputs,),),) = synthetic_batches(nn.Identity(), (torch.zeros(2, 11),), samples=997, batch=997)
    assert abs(inputs.mean()) < 0.05
    assert abs(inputs.std() - 1) < 0.05


def test_tokens_fill_the_vocabulary_and_masks_stay() -> None:
    batches = synthetic_batches(Text(), text_inputs(), samples=61, batch=61)
    assert set(batches[0]["tokens"].unique().tolist()) == set(range(13))
    torch.testing.assert_close(batches[0]["mask"][:4], text_inputs()["mask"].repeat(2, 1))
    assert Text()(**batches[0]).shape == (61, 2)


def test_the_seed_decides() -> None:
    draws = [synthetic_batches(Text(), text_inputs(), samples=5, seed=seed)[0]["tokens"] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_dtype_is_that_of_the_examples() -> None:
    c = case("conv2d")
    (((inputs,),),) = synthetic_batches(c.model(), c.inputs(), samples=3)
    assert inputs.dtype == torch.float64


def test_inputs_without_a_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="first axis"):
        synthetic_batches(nn.Identity(), (torch.zeros(2, 3), torch.zeros(3)))
    with pytest.raises(UsageError, match="0 samples"):
        synthetic_batches(nn.Identity(), torch.zeros(2, 3), samples=0)
