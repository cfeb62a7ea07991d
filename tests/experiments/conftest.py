"""Tiny data sets in the files of the real ones."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor


def write_idx(path: Path, values: Tensor) -> None:
    header = struct.pack(f">BBBB{values.dim()}i", 0, 0, 8, values.dim(), *values.shape)
    data = header + values.to(torch.uint8).numpy().tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """700 and 31 random images in idx files, one pair of which is compressed."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for split, count, suffix in (("train", 700, ".gz"), ("t10k", 31, "")):
        images = torch.randint(0, 256, (count, 28, 28), generator=generator)
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", torch.arange(count) % 10)
    return folder


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """250 and 50 random images in pickled batches."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        pixels = torch.randint(0, 256, (50, 3072), generator=generator).to(torch.uint8).numpy()
        batch = {b"data": pixels, b"labels": [number % 10 for number in range(50)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder.parent
