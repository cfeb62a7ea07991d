"""Two small language models trained on Python's standard library from different seeds, and the loss between them.

A decoder as they are built today (RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings) reads
the sources of the running Python's own standard library byte by byte; the seeds differ in initialisation and in batch
order. What may be permuted: the residual stream, the hidden units of every feed-forward layer, the key/value heads, the
query heads of each key/value head, and the value units of each key/value head (queries and keys are held by the rotary
positions). Expected: the aligned model computes what model B computes, to rounding; weight matching takes about a
quarter off the distance of the models, nearly all of it by the order of the residual stream; and the midpoint stays far
above both ends (1.3 nats per byte), naive (3.2) and matched (2.7 to 3.1, with the order in which groups are visited);
byte frequencies alone cost 3.1. The longer the training, the higher the barrier.

    python experiments/language_model.py

Defaults take about eight minutes per model on a free CPU core, and four for everything else; `--models DIR` keeps the
trained weights there, and starts from them when they exist. Another Python has another text, and so other numbers.
"""

import argparse
import hashlib
import json
import math
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onebasin as ob

NAME = "language_model"
SEEDS = (0, 1)  # lam = 0, the reference, and lam = 1
BYTES, CONTEXT, HEAD = 256, 128, 32  # vocabulary, positions, units of a head
BATCH, RATE, WARMUP, DECAY = 16, 3e-3, 100, 0.1
POINTS, ORDERS = 25, 5  # on each line; orders of visiting the groups
WINDOWS = 512  # of CONTEXT bytes each, on which the loss is measured: 65,536 predictions
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test"}  # not the library, or full of odd bytes


def read_text() -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read the standard library's sources, every tenth file (in random order) for validation; say what was read."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if not SKIPPED & set(path.relative_to(root).parts))
    if len(files) < 100:
        raise SystemExit(f"{len(files)} sources of the standard library, which this Python may keep in an archive")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    rows = {"train": [n for n in order if n % 10], "validation": [n for n in order if n % 10 == 0]}
    texts = {split: b"\n".join(files[number].read_bytes() for number in chosen) for split, chosen in rows.items()}
    about: dict[str, object] = {"files": {split: len(chosen) for split, chosen in rows.items()}}
    about["bytes"] = {split: len(text) for split, text in texts.items()}
    about["sha256"] = {split: hashlib.sha256(text).hexdigest() for split, text in texts.items()}
    return {split: torch.frombuffer(bytearray(text), dtype=torch.uint8) for split, text in texts.items()}, about


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Cut out the CONTEXT bytes from each start on, and those that come one later."""
    rows = text[starts[:, None] + torch.arange(CONTEXT + 1)].long()
    return rows[:, :-1], rows[:, 1:]


class Attention(nn.Module):
    """Causal attention in which two query heads share a key/value head, positions by rotation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = nn.Linear(width, width // 2, bias=False), nn.Linear(width, width // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the heads read from the positions up to their own."""
        q, k, v = (project(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for project in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(2, dim=1) for part in (rotate(k), v))  # (batch, heads, positions, HEAD)
        mixed = F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


def rotate(x: Tensor) -> Tensor:
    """Turn unit i and unit i + HEAD / 2 of a head by an angle that grows with the position."""
    rates = 10_000 ** (-torch.arange(HEAD // 2, dtype=x.dtype) / (HEAD // 2))
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * rates
    first, second = x.chunk(2, dim=-1)
    turned = first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()
    return torch.cat(turned, dim=-1)


class FeedForward(nn.Module):
    """SwiGLU with three hidden units per unit of the residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the hidden units write."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.attention_norm = Attention(width), nn.RMSNorm(width)
        self.feed_forward, self.feed_forward_norm = FeedForward(width), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what both write to the residual stream."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """Bytes in, logits of the next byte out; one matrix embeds and reads out."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(BYTES, width), nn.RMSNorm(width), nn.Linear(width, BYTES, False)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (batch, BYTES, positions): the classes second, as cross-entropy wants them."""
        return self.head(self.norm(self.blocks(self.embed(tokens)))).transpose(1, 2)


def train(seed: int, model: Decoder, text: Tensor, steps: int) -> ob.Params:
    """Train with AdamW; the seed is that of weights and batches."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:  # what writes into the residual stream starts smaller, the more layers write (GPT-2)
            writes = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * len(model.blocks) if writes else 1), generator=random)
    weights = [{"params": [w for w in model.parameters() if w.dim() == 2], "weight_decay": DECAY}]
    scales = [{"params": [w for w in model.parameters() if w.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(weights + scales, lr=RATE, betas=(0.9, 0.95), fused=True)
    # Up in a straight line, down along half a cosine to a tenth.
    up, down = lambda t: (t + 1) / WARMUP, lambda t: 0.55 + 0.45 * math.cos(math.pi * t / steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(up(t), down(t)))
    begin, total, shown = time.perf_counter(), 0.0, max(1, steps // 20)
    for step in range(1, steps + 1):
        inputs, labels = windows(text, torch.randint(len(text) - CONTEXT, (BATCH,), generator=random))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % shown == 0:
            seconds = time.perf_counter() - begin
            print(f"seed {seed} step {step}/{steps} loss {total / shown:.4f} ({seconds:.0f} s)", flush=True)
            total = 0.0
    return ob.params_of(model)


def trained(seed: int, text: Tensor, args: argparse.Namespace) -> tuple[ob.Params, float]:
    """Return trained weights and the seconds it took; take both from `--models` if they are there, else keep them."""
    settings = {"width": args.width, "layers": args.layers, "steps": args.steps}
    name = "_".join([NAME, f"seed{seed}", *(f"{key}{value}" for key, value in settings.items())])
    file = args.models / f"{name}.safetensors" if args.models else None
    if file and file.exists():
        return ob.load(file), json.loads(file.with_suffix(".json").read_text())["seconds"]
    begin = time.perf_counter()
    params = train(seed, Decoder(args.width, args.layers), text, args.steps)
    seconds = time.perf_counter() - begin
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".json").write_text(json.dumps({"seconds": seconds}))
        ob.save(file, params)
    return params, seconds


def main(arguments: list[str] | None = None) -> None:
    """Train, check the aligned model, measure both lines, write record and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of training; default: 1500")
    parser.add_argument("--width", type=int, default=128, help="of the residual stream, a multiple of 64; default: 128")
    parser.add_argument("--layers", type=int, default=4, help="default: 4")
    parser.add_argument("--points", type=int, default=POINTS, help="on each line; default: 25")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"), help="where record and figure go")
    parser.add_argument("--models", type=Path, help="keep trained weights here, and use those that are there")
    args = parser.parse_args(arguments)

    # Two models that differ in nothing but their seed.
    text, about = read_text()
    print(about)
    (params_a, seconds_a), (params_b, seconds_b) = (trained(seed, text["train"], args) for seed in SEEDS)

    # Which units may be permuted, and the order of B's units that fits A's. The record counts its seconds from here;
    # those of training are told apart, since weights may have been trained by an earlier run.
    begin = time.perf_counter()
    model = Decoder(args.width, args.layers)
    starts = torch.linspace(0, len(text["validation"]) - CONTEXT - 1, WINDOWS).long()
    inputs, labels = windows(text["validation"], starts)
    spec = ob.permutation_spec(model, (inputs[:2],))
    found = ob.align(spec, params_a, params_b, ob.WeightMatching(seed=0))
    moved = found.permutation.apply(params_b)
    closer = ob.distance(spec, params_a, params_b, moved)
    print(spec, found, closer, sep="\n")

    # The core law, on the trained model: B with its units in another order computes what B computes.
    exact = Decoder(args.width, args.layers).double().requires_grad_(False)
    exact.load_state_dict(params_b)
    own = exact(inputs[:8])
    exact.load_state_dict(moved)
    again = exact(inputs[:8])
    difference = ((again - own).abs().max() / own.abs().max()).item()
    print(f"\nlogits of the aligned model and of B differ by {difference:.1e} of the largest, in float64")

    # Loss and accuracy along both lines. For scale: what guessing by the frequency of bytes alone costs.
    evaluate = ob.classification(list(zip(inputs.split(32), labels.split(32), strict=True)))
    ends = {"naive": params_b, "matched": moved}
    curves = {path: ob.evaluate_path(model, params_a, end, evaluate, args.points) for path, end in ends.items()}
    counts = torch.bincount(text["train"].long(), minlength=BYTES).double() + 1
    unigram = -(counts / counts.sum()).log()[labels].mean().item()
    for path, curve in curves.items():
        print(f"\nvalidation text, {path}\n{curve}")
    print(f"\nbyte frequencies alone: {unigram:.4f} nats; all bytes alike: {math.log(BYTES):.4f}")

    # Matching ends in one of many local optima, and the order in which groups are visited decides in which.
    orders: list[dict[str, float]] = []
    for seed in range(ORDERS):
        other = ob.align(spec, params_a, params_b, ob.WeightMatching(seed=seed))
        middle = ob.evaluate_path(model, params_a, other.permutation.apply(params_b), evaluate, points=3).loss[1]
        orders.append({"seed": seed, "objective": other.objective[-1], "midpoint_loss": middle})
        print(f"visiting order {seed}: objective {other.objective[-1]:.2f}, midpoint loss {middle:.4f}")

    matched, naive = curves["matched"], curves["naive"]
    expected = {
        "logits of the aligned model are B's to 1e-9": difference <= 1e-9,
        "matching raises the objective and shortens the distance": closer.after < closer.before,
        "naive midpoint is far above the ends": naive.barrier("midpoint") > 0.5,
        "matched midpoint is far above the ends too": matched.barrier("midpoint") > 0.5,
    }
    for statement, holds in expected.items():
        print(f"{'as expected' if holds else 'NOT AS EXPECTED'}: {statement}")

    sizes = {"steps": args.steps, "width": args.width, "layers": args.layers}
    settings = {**sizes, "head": HEAD, "context": CONTEXT, "batch": BATCH, "rate": RATE, "decay": DECAY}
    results = {
        "expected": expected,
        "text": about,
        "groups": {name: list(spec.index_shape(name)) for name in spec.sizes},
        "log10_symmetries": spec.log10_symmetries(),
        "logits_relative_difference": difference,
        "alignment": found.to_json(),
        "distance": closer.to_json(),
        "curves": {"validation": {path: curve.to_json() for path, curve in curves.items()}},
        "visiting_orders": orders,
        "unigram_loss": unigram,
        "training_seconds": [seconds_a, seconds_b],
    }
    flags = [*(f"--{key} {value}" for key, value in sizes.items()), *(["--models DIR"] if args.models else [])]
    command = " ".join([f"python experiments/{NAME}.py", *flags])
    made = ob.record(command, {**settings, "seeds": SEEDS, "points": args.points}, results, time.perf_counter() - begin)
    args.out.mkdir(parents=True, exist_ok=True)
    default = all(parser.get_default(key) == value for key, value in sizes.items())
    name = "_".join([NAME, *([] if default else [f"{key}{value}" for key, value in sizes.items()])])
    (args.out / f"{name}.json").write_text(json.dumps(made, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    ob.barrier_figure({"validation": curves}).savefig(args.out / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
