"""Activation matching against the bare forward passes of both networks that it needs.

Moments are multiplied as torch is told to multiply float32: with its own switch, which holds for a whole process, in
bfloat16 where the hardware can. The library never sets it; a row shows what it gives.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from experiments.networks import mlp, resnet20
from torch import Tensor, nn

import onebasin as ob
from benchmarks.timing import Row, compared, median_seconds

# name -> how to build the network, the shape of a batch, how many batches
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 3x512": (mlp, (500, 1, 28, 28), 20),
    "ResNet20": (resnet20, (250, 3, 32, 32), 1),
}


def run(large: bool = False) -> Iterator[Row]:
    for name, (make, shape, count) in NETWORKS.items():
        yield from rows(name, make, shape, count)


def rows(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], count: int) -> Iterator[Row]:
    """Measure tracing (once per shape of batch), the pass over the batches, and the assignments, apart."""
    torch.manual_seed(0)
    networks = [make().eval() for _ in range(2)]
    batches = [torch.randn(shape) for _ in range(count)]
    a, b = map(ob.params_of, networks)
    spec = ob.permutation_spec(networks[0], (batches[0],))

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                for network in networks:
                    network(batch)

    def traced() -> ob.ActivationMoments:
        moments = ob.ActivationMoments(networks[0], spec, a, b)
        moments.update(torch.randn(1, *shape[1:]))
        return moments

    moments = ob.ActivationMoments(networks[0], spec, a, b)

    def measure() -> None:
        for batch in batches:
            moments.update(batch)

    def faster() -> None:
        with bfloat16_products():
            measure()

    what, passes = f"{name}, {count} x {shape[0]} inputs", "bare forward passes"
    measured = compared(f"{what}: moments of all units", measure, passes, bare)
    yield measured
    yield compared(f"{what}: the same, torch set to bfloat16 products", faster, passes, bare)
    for part, work in {"tracing": traced, "assignments": lambda: solve(spec, a, b, moments)}.items():
        seconds = median_seconds(work)
        yield Row(f"{what}: {part}", seconds, passes, seconds * measured.ratio / measured.amount)


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let torch multiply float32 matrices on the CPU in bfloat16, with float32 sums."""
    switch = torch.backends.mkldnn.matmul
    before, switch.fp32_precision = switch.fp32_precision, "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


def solve(
    spec: ob.PermutationSpec, a: dict[str, Tensor], b: dict[str, Tensor], moments: ob.ActivationMoments
) -> ob.Alignment:
    """Match with moments that are at hand."""
    return ob.align(spec, a, b, ob.ActivationMatching(lambda *_: moments.finalize()))
