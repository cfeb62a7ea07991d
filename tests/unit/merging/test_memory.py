"""Memory: merging n models needs, besides them, that of one more; measured in bytes that are alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onebasin.interpolate import mean
from onebasin.matching import Alignment, Certificate, StopReason
from onebasin.merging import Merge, merge, merge_many, merge_universe
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

LAYERS, WIDTH = 24, 64
SPEC = PermutationSpec.from_axes(
    {f"{n}.weight": (f"P{n + 1}" if n + 1 < LAYERS else None, f"P{n}" if n else None) for n in range(LAYERS)},
    {f"{n}.weight": (WIDTH, WIDTH) for n in range(LAYERS)},
)
ONE = 4 * LAYERS * WIDTH * WIDTH  # bytes of a model
LAYER = ONE // LAYERS


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are alive, and the most there were at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in own | self.known:
                self.note(tensor.untyped_storage())
        return result

    def note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.freed, key, size)

    def freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class Known:
    """A matcher that needs no memory: it knows the order that brings a model back to the first."""

    orders: Mapping[int, Permutation]

    def match(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, start: Permutation, progress: Progress = silent
    ) -> Alignment:
        order = self.orders[params_b["0.weight"].data_ptr()]
        return Alignment(order, (0.0, 1.0), StopReason.CONVERGED, Certificate(), self, 0.0)


def models_and_matcher(count: int) -> tuple[list[Params], Known]:
    generator = torch.Generator().manual_seed(0)
    first = {name: torch.randn(shape, generator=generator) for name, shape in SPEC.shapes.items()}
    drawn = [Permutation.identity(SPEC), *(Permutation.random(SPEC, generator) for _ in range(count - 1))]
    models = [permutation.apply(first) for permutation in drawn]
    return models, Known({m["0.weight"].data_ptr(): p.inverse() for m, p in zip(models, drawn, strict=True)})


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("run", [merge, merge_many, merge_universe])
def test_merging_needs_the_memory_of_one_more_model(run: Callable[..., Merge], count: int) -> None:
    models, matcher = models_and_matcher(count)
    steps = {"steps": 1} if run is merge_universe else {}
    with Alive() as alive:
        found = run(SPEC, models, matcher, **steps)
    assert not torch.equal(found.params["1.weight"], mean(models)["1.weight"])
    torch.testing.assert_close(found.params["1.weight"], models[0]["1.weight"])
    own = 4 * LAYER * 24 if run is merge_universe else 0
    assert ONE <= alive.peak <= ONE + 8 * LAYER + own


def test_copies_of_all_models_would_be_seen() -> None:
    """The negative twin: the same mean, from permuted copies."""
    models, matcher = models_and_matcher(5)
    with Alive() as alive:
        moved = [
            matcher.match(SPEC, models[0], one, Permutation.identity(SPEC)).permutation.apply(one) for one in models
        ]
        mean(moved)
    assert alive.peak > 5 * ONE
    with Alive() as freed:
        for _ in range(5):
            mean(models)
    assert ONE <= freed.peak < 1.5 * ONE
