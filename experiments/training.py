"""Training of one network from a seed, by a recipe; finished weights are kept and used again.

Under `bf16` the forward pass runs in bfloat16 autocast, by default on CPUs with matrix units for it (AMX): there an
epoch of the MLP takes 0.3 of the time, one of a narrow ResNet20 half; others would take ten times as long. The same
seed gives other weights then. Weights and optimizer stay in float32, and so does every evaluation.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onebasin as ob
from data import Split

PADDING = 4  # of random crops


def has_matrix_units() -> bool:
    """Return whether the CPU has matrix units for bfloat16."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        rate: learning rate, at its peak.
        epochs: over the training set.
        batch: examples per step.
        optimizer: Adam at a constant rate, or SGD with momentum 0.9, whose rate rises from zero in a straight line
            over `warmup` epochs and falls to zero in a straight line over the rest.
        warmup: epochs, may be a fraction.
        decay: weight decay.
        augment: flip and shift the images at random.
        flax: initialise dense layers as Flax does (Git Re-Basin's networks), not as torch does.
        share: of the training set, drawn anew for each seed.
        bf16: forward pass in bfloat16; the default is what suits the CPU.
    """

    rate: float
    epochs: int
    batch: int = 500
    optimizer: Literal["adam", "sgd"] = "adam"
    warmup: float = 1.0
    decay: float = 0.0
    augment: bool = False
    flax: bool = False
    share: float = 1.0
    bf16: bool = field(default_factory=has_matrix_units)

    def factor(self, done: float) -> float:
        """Return what the rate is multiplied by after `done` epochs."""
        if self.optimizer == "adam":
            return 1.0
        return min(done / self.warmup if self.warmup else 1.0, (self.epochs - done) / (self.epochs - self.warmup))


def trained(
    name: str, make: Callable[[], nn.Module], split: Split, recipe: Recipe, seed: int, folder: Path | None = None
) -> tuple[ob.Params, float]:
    """Return weights and the CPU seconds it took to train them; both from `folder` if it has them, else kept there.

    Args:
        name: of network and data, for file names and progress.
        make: builds the network.
        split: training images and labels.
        recipe: how it is trained.
        seed: of weights, order of examples and augmentation.
        folder: where weights are kept; a file of the same name made by another recipe is refused.
    """
    file = folder / f"{name}_epochs{recipe.epochs}_seed{seed}.safetensors" if folder else None
    if file and file.exists():
        about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        if about["recipe"] != asdict(recipe):
            raise SystemExit(f"{file.name} was trained by {about['recipe']}, not by {asdict(recipe)}; remove it first")
        return ob.load(file), about["seconds"]
    begin = time.process_time()
    params = train(name, make, split, recipe, seed)
    seconds = time.process_time() - begin
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        about = {"recipe": asdict(recipe), "seconds": seconds}
        file.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
        ob.save(file, params)
    return params, seconds


def train(name: str, make: Callable[[], nn.Module], split: Split, recipe: Recipe, seed: int) -> ob.Params:
    """Train one network; the whole set is one tensor in memory."""
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().to(memory_format=torch.channels_last)
    if recipe.flax:
        _as_flax(model, random)
    images, labels = split
    if recipe.share < 1:
        chosen = torch.randperm(len(images), generator=random)[: round(recipe.share * len(images))]
        images, labels = images[chosen], labels[chosen]
    if recipe.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            model.parameters(), lr=recipe.rate, weight_decay=recipe.decay, fused=True
        )
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=recipe.decay, nesterov=True, fused=True
        )
    for epoch in range(recipe.epochs):
        start, total = time.perf_counter(), 0.0
        parts = torch.randperm(len(images), generator=random).split(recipe.batch)
        for number, part in enumerate(parts):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * recipe.factor(epoch + (number + 1) / len(parts))
            x = augmented(images[part], random) if recipe.augment else images[part]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[part])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(part)
        progress = f"{name} seed {seed} epoch {epoch + 1}/{recipe.epochs} loss {total / len(images):.5f}"
        print(f"{progress} ({time.perf_counter() - start:.1f} s)", flush=True)
    return {key: tensor.contiguous() for key, tensor in ob.params_of(model).items()}


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Mirror half of the images, and shift each by up to 4 pixels both ways; what comes in from outside is zero."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=random) < 0.5
    down, right = torch.randint(0, 2 * PADDING + 1, (2, count), generator=random)
    padded = F.pad(torch.where(flip[:, None, None, None], images.flip(-1), images), [PADDING] * 4)
    rows, columns = down[:, None] + torch.arange(height), right[:, None] + torch.arange(width)
    # Advanced indices on both sides of a slice: the channels come last, and are moved back.
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _as_flax(model: nn.Module, random: torch.Generator) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            # A normal distribution of variance 1 / inputs cut at two standard deviations (0.8796 is what the cut leaves
            # of the deviation), biases zero.
            deviation = layer.in_features**-0.5 / 0.8796
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=random)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
