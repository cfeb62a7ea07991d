"""Image data sets, read from the files in which they are published: MNIST, Fashion-MNIST, CIFAR-10.

A split is `(images, labels)`: `Float[Tensor, "count channels height width"]` and class indices.
"""

import gzip
import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Split = tuple[Tensor, Tensor]
# Mean and deviation of each channel over CIFAR-10's training images, scaled to [0, 1].
CIFAR10_MEAN, CIFAR10_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def read_idx(folder: Path, name: str) -> Tensor:
    """Read one idx file of unsigned bytes, gzipped or not."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise SystemExit(f"{folder} holds neither {name} nor {name}.gz; --data names the folder of the MNIST idx files")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    axes = data[3]  # two zero bytes, the type (8: uint8), the number of axes; then one big-endian int32 per axis
    shape = np.frombuffer(data, ">i4", axes, 4).tolist()
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def mnist(folder: Path) -> dict[str, Split]:
    """Read "train" and "test" of MNIST, or of Fashion-MNIST, which comes in the same files; pixels in [0, 1]."""
    return {split: _idx_split(folder, name) for split, name in (("train", "train"), ("test", "t10k"))}


def _idx_split(folder: Path, name: str) -> Split:
    images = read_idx(folder, f"{name}-images-idx3-ubyte").float() / 255
    return images[:, None], read_idx(folder, f"{name}-labels-idx1-ubyte").long()


def cifar10(folder: Path) -> dict[str, Split]:
    """Read "train" and "test" of CIFAR-10 from the pickled batches of its Python version, channels standardised."""
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder
    files = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    missing = [name for names in files.values() for name in names if not (folder / name).exists()]
    if missing:
        raise SystemExit(f"{folder} lacks {', '.join(missing)}; --data names the folder that holds cifar-10-batches-py")
    return {split: _pickled_split([folder / name for name in names]) for split, names in files.items()}


def _pickled_split(paths: list[Path]) -> Split:
    parts = [pickle.loads(path.read_bytes(), encoding="bytes") for path in paths]
    pixels = torch.from_numpy(np.concatenate([part[b"data"] for part in parts])).view(-1, 3, 32, 32).float() / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_DEVIATION))
    return pixels.sub_(mean).div_(deviation), torch.tensor([label for part in parts for label in part[b"labels"]])


def batches(split: Split, size: int = 1000, limit: int | None = None) -> list[Split]:
    """Cut a split, or its first `limit` examples, into batches."""
    images, labels = (tensor[:limit] for tensor in split)
    return list(zip(images.split(size), labels.split(size), strict=True))
