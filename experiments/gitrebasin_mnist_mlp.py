"""Two MLPs trained on MNIST from different seeds, and the loss on the line between them.

Git Re-Basin's first experiment (ainsworth2023, section 5.1, figure 2): a 784-512-512-512-10 ReLU network, Adam with
rate 1e-3, batches of 500, 100 epochs, pixels divided by 255, no augmentation; the seeds differ in initialisation and in
batch order. Expected: interpolated as they are, the networks meet a barrier; after weight matching the test loss at
the midpoint lies at or below the mean of the two ends.

    python experiments/gitrebasin_mnist_mlp.py --data DIR

DIR holds the four standard idx files, gzipped or not. On a free CPU core a network takes about seven minutes to train,
the four curves together three; `--models DIR` keeps the trained weights there, and starts from them when they exist.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import onebasin as ob

NAME = "gitrebasin_mnist_mlp"
SEEDS = (0, 1)  # lam = 0, the reference, and lam = 1
BATCH, RATE, POINTS = 500, 1e-3, 25


def read_idx(folder: Path, name: str) -> Tensor:
    """Read one idx file of unsigned bytes, gzipped or not."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise SystemExit(f"{folder} holds neither {name} nor {name}.gz; --data names the folder of the MNIST idx files")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    axes = data[3]  # two zero bytes, the type (8: uint8), the number of axes; then one big-endian int32 per axis
    shape = np.frombuffer(data, ">i4", axes, 4).tolist()
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read images as rows of 784 numbers in [0, 1], and labels."""
    images = read_idx(folder, f"{split}-images-idx3-ubyte").flatten(1).float() / 255
    return images, read_idx(folder, f"{split}-labels-idx1-ubyte").long()


def mlp() -> nn.Sequential:
    """Build the network; where it starts from is up to `train`."""
    hidden = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(512, 10))


def train(seed: int, images: Tensor, labels: Tensor, epochs: int) -> ob.Params:
    """Train one network. The whole set is one tensor in memory; the seed is that of weights and batches."""
    random = torch.Generator().manual_seed(seed)
    model = mlp()
    for layer in model:
        if isinstance(layer, nn.Linear):
            # The paper's networks were made with Flax, whose dense layers start from a normal distribution of variance
            # 1 / inputs cut at two standard deviations (0.8796 is what the cut leaves of the deviation), biases zero.
            deviation = layer.in_features**-0.5 / 0.8796
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=random)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(images), generator=random).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        seconds = time.perf_counter() - start
        print(f"seed {seed} epoch {epoch + 1}/{epochs} loss {total / len(images):.5f} ({seconds:.1f} s)", flush=True)
    return ob.params_of(model)


def trained(seed: int, images: Tensor, labels: Tensor, epochs: int, folder: Path | None) -> tuple[ob.Params, float]:
    """Return trained weights and the seconds it took; take both from `folder` if they are there, keep them if not."""
    file = folder / f"{NAME}_seed{seed}_epochs{epochs}.safetensors" if folder else None
    if file and file.exists():
        return ob.load(file), json.loads(file.with_suffix(".json").read_text())["seconds"]
    start = time.perf_counter()
    params = train(seed, images, labels, epochs)
    seconds = time.perf_counter() - start
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".json").write_text(json.dumps({"seconds": seconds}))
        ob.save(file, params)
    return params, seconds


def main(arguments: list[str] | None = None) -> None:
    """Train, match, evaluate both paths on both sets, write record and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the MNIST idx files")
    parser.add_argument("--epochs", type=int, default=100, help="default: 100, as in the paper")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"), help="where record and figure go")
    parser.add_argument("--models", type=Path, help="keep trained weights here, and use those that are there")
    args = parser.parse_args(arguments)

    # Two networks that differ in nothing but their seed.
    data = {"train": read_split(args.data, "train"), "test": read_split(args.data, "t10k")}
    (params_a, seconds_a), (params_b, seconds_b) = (
        trained(seed, *data["train"], args.epochs, args.models) for seed in SEEDS
    )

    # Which units may be permuted, and the order of B's units that fits A's. The record counts its seconds from here;
    # those of training are told apart, since weights may have been trained by an earlier run.
    begin = time.perf_counter()
    model = mlp()
    spec = ob.permutation_spec(model, (data["test"][0][:2],))
    found = ob.align(spec, params_a, params_b, ob.WeightMatching(seed=0))
    print(spec, found, sep="\n")
    ends = {"naive": params_b, "matched": found.permutation.apply(params_b)}

    # Loss and accuracy along both lines, over the whole of both sets.
    curves: dict[str, dict[str, ob.Curve]] = {}
    for split, (images, labels) in data.items():
        evaluate = ob.classification(list(zip(images.split(5000), labels.split(5000), strict=True)))
        curves[split] = {path: ob.evaluate_path(model, params_a, end, evaluate, POINTS) for path, end in ends.items()}
        for path, curve in curves[split].items():
            print(f"\n{split} set, {path}\n{curve}", flush=True)

    # What the paper found, beside what was found here.
    matched, naive = curves["test"]["matched"], curves["test"]["naive"]
    expected = {
        "matched test loss at the midpoint is at or below the mean of the ends": matched.barrier("midpoint") <= 0,
        "naive test loss has a barrier": naive.barrier("chord") > 0.1,
    }
    for statement, holds in expected.items():
        print(f"{'as expected' if holds else 'NOT AS EXPECTED'}: {statement}")

    settings = {"epochs": args.epochs, "seeds": SEEDS, "batch": BATCH, "rate": RATE, "points": POINTS}
    results = {
        "expected": expected,
        "alignment": found.to_json(),
        "curves": {split: {path: curve.to_json() for path, curve in both.items()} for split, both in curves.items()},
        "training_seconds": [seconds_a, seconds_b],
    }
    command = f"python experiments/{NAME}.py --data DIR --epochs {args.epochs}{' --models DIR' if args.models else ''}"
    args.out.mkdir(parents=True, exist_ok=True)
    record = ob.record(command, settings, results, time.perf_counter() - begin)
    (args.out / f"{NAME}.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    ob.barrier_figure(curves).savefig(args.out / f"{NAME}.png", dpi=110)


if __name__ == "__main__":
    main()
