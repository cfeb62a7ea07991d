"""Merging: copies in other orders merge back to the one; weights, ways to combine, and provenance are as told."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import assert_same, clone

from onebasin.errors import ParamsError, UsageError
from onebasin.interpolate import mean, slerp
from onebasin.matching import Alignment, StopReason, WeightMatching
from onebasin.merging import merge
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress
from onebasin.spec import PermutationSpec

SHAPES = {"fc1.weight": (11, 23), "fc1.bias": (11,), "fc2.weight": (7, 11), "fc2.bias": (7,), "fc3.weight": (13, 7)}
SPEC = PermutationSpec.from_axes(
    {
        "fc1.weight": ("P0", None), "fc1.bias": ("P0",), "fc2.weight": ("P1", "P0"), "fc2.bias": ("P1",),
        "fc3.weight": (None, "P1"),
    },
    SHAPES,
)  # fmt: skip


def params(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def copies(count: int) -> list[Params]:
    a, generator = params(0), torch.Generator().manual_seed(1)
    return [a, *(Permutation.random(SPEC, generator).apply(a) for _ in range(count - 1))]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_copies_in_other_orders_merge_back_to_the_one(count: int) -> None:
    models = copies(count)
    merged = merge(SPEC, models)
    for name, tensor in models[0].items():
        torch.testing.assert_close(merged.params[name], tensor)
        assert not torch.allclose(mean(models)[name], tensor, rtol=0.1)  # what averaging alone would give
    assert len(merged.alignments) == count - 1


def test_each_model_is_aligned_to_the_first_and_weighted() -> None:
    models = [params(0), params(1), params(2)]
    given = [clone(model) for model in models]
    merged = merge(SPEC, models, WeightMatching(seed=3), weights=[2, 3, 5])
    moved = [found.permutation.apply(model) for found, model in zip(merged.alignments, models[1:], strict=True)]
    assert_same(merged.params, mean([models[0], *moved], [2, 3, 5]))
    assert all(found.permutation != Permutation.identity(SPEC) for found in merged.alignments)
    for model, before in zip(models, given, strict=True):
        assert_same(model, before)


def test_another_way_to_combine() -> None:
    a, b = copies(2)
    scaled = {name: 3 * tensor for name, tensor in b.items()}
    merged = merge(SPEC, [a, scaled], combine=lambda models, weights: slerp(*models, 0.5))
    for name, tensor in a.items():
        torch.testing.assert_close(merged.params[name], 2 * tensor)


def test_provenance_is_plain_and_complete() -> None:
    merged = merge(SPEC, copies(3), WeightMatching(seed=7), weights=[1, 2, 3])
    made = json.loads(json.dumps(merged.provenance, allow_nan=False))
    assert made == merged.provenance
    assert made["models"] == 3
    assert (made["matcher"], made["settings"]["seed"]) == ("WeightMatching", 7)
    assert made["weights"] == [1, 2, 3]
    assert made["combine"] == "mean"
    assert merge(SPEC, copies(2)).provenance["weights"] is None
    assert str(merged).startswith("3 models merged: each model aligned to the first, WeightMatching, mean\nmodel 2: ")


def test_progress_counts_models() -> None:
    seen: list[tuple[str, int, int]] = []
    merge(SPEC, copies(3), progress=lambda *step: seen.append(step))
    assert [step for step in seen if step[0] == "align"] == [("align", 1, 2), ("align", 2, 2)]


def interrupt_at(task: str, done: int) -> Progress:
    """Return a progress callback that is interrupted from the keyboard at some step."""

    def told(now: str, step: int, total: int) -> None:
        if (now, step) == (task, done):
            raise KeyboardInterrupt

    return told


@pytest.mark.parametrize(("task", "aligned"), [("matching", (1,)), ("align", (1,))])
def test_an_interrupt_ends_it_with_what_there_is(task: str, aligned: tuple[int, ...]) -> None:
    """Inside the first matching, and after it: the other models are not begun."""
    models = [params(0), params(1), params(2)]
    found = merge(SPEC, models, progress=interrupt_at(task, 1))
    assert (found.stop, found.aligned) == (StopReason.INTERRUPTED, aligned)
    assert found.permutations[2] == Permutation.identity(SPEC)
    moved = [found.permutations[1].apply(models[1]), models[2]]
    assert_same(found.params, mean([models[0], *moved]))
    assert "model 2: " in str(found)
    assert "model 3: " not in str(found)


def test_an_interrupt_before_anything_is_found_is_raised() -> None:
    class Slow:
        def match(self, *_: object) -> Alignment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(SPEC, copies(3), Slow())


def test_weights_that_do_not_fit_are_told_before_matching() -> None:
    seen: list[str] = []
    with pytest.raises(UsageError, match="3 models and the weights"):
        merge(SPEC, copies(3), weights=[1.0, 2.0], progress=lambda *step: seen.append(step[0]))
    assert seen == []


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_models_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} models to merge"):
        merge(SPEC, copies(2)[:count])


def test_models_and_weights_that_do_not_fit_are_refused() -> None:
    a, b = copies(2)
    with pytest.raises(ParamsError, match="moved model"):
        merge(SPEC, [a, b | {"fc1.bias": b["fc1.bias"] / 0}])
    with pytest.raises(ParamsError, match="extra"):
        merge(SPEC, [a, b | {"extra": a["fc1.bias"]}])
    with pytest.raises(UsageError, match="2 models and the weights"):
        merge(SPEC, [a, b], weights=[1.0])
