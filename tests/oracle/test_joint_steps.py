"""Joint steps on nested groups against brute force over whole families of permutations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from scipy.optimize import quadratic_assignment
from specs import random_params

from onebasin.layout import Axis, Leaf, Product
from onebasin.matching import Objective, WeightMatching
from onebasin.matching import joint as joint_module
from onebasin.matching.assignment import solve
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.matching.faq import faq
from onebasin.matching.gains import Level, rows_of
from onebasin.matching.joint import JointStep
from onebasin.matching.terms import new
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

Axes = dict[str, tuple[str | Axis | None, ...]]


def nested(axes: Axes, sizes: dict[str, int], parents: dict[str, tuple[str, ...]], free: int = 3) -> PermutationSpec:
    """Build a spec; an axis without a group has `free` positions."""
    shapes = {
        name: tuple(sizes[e] if isinstance(e, str) else free if e is None else e.size for e in row)
        for name, row in axes.items()
    }
    return replace(PermutationSpec.from_axes(axes, shapes), parents=parents)


def grid(**sizes: int) -> Product:
    return Product(tuple(Leaf(size, name) for name, size in sizes.items()))


def attention() -> PermutationSpec:
    """Heads with units of query/key and of value/output, each head with orders of its own, beside a stream."""
    qk, vo = grid(head=3, qk=2), grid(head=3, vo=2)
    axes: Axes = {
        "q": (qk, "stream"), "k": (qk, "stream"), "v": (vo, "stream"), "o": ("stream", vo), "vb": (vo,),
        "in": ("stream", None), "scale": ("head",),
    }  # fmt: skip
    return nested(axes, {"head": 3, "stream": 5}, {"qk": ("head",), "vo": ("head",)})


def three_deep() -> PermutationSpec:
    """Groups of heads of units, with tensors on every depth."""
    axes: Axes = {
        "deep": (grid(kv=2, head=2, unit=2), "out"), "temperature": ("kv", "head"), "bias": ("kv",),
        "out": ("out", None), "turned": (None, "unit", "head", "kv"),
    }  # fmt: skip
    return nested(axes, {"kv": 2, "head": 2, "unit": 2, "out": 5}, {"head": ("kv",), "unit": ("kv", "head")})


def two_parents() -> PermutationSpec:
    """Units that have an order of their own for each pair of units of two groups that do not nest."""
    axes: Axes = {
        "w": ("row", "column", "unit", None),
        "r": ("row", None),
        "c": (None, "column"),
        "rc": ("column", "row"),
    }
    return nested(axes, {"row": 3, "column": 2, "unit": 2}, {"unit": ("row", "column")})


def grouped_convolutions() -> PermutationSpec:
    """Two convolutions with the same channel groups in a row: units before and after them stand in one block."""
    axes: Axes = {
        "in": (grid(g=3, u=2), None), "conv": (grid(g=3, w=2), "u", None), "out": (None, grid(g=3, w=2)),
    }  # fmt: skip
    return nested(axes, {"g": 3, "u": 2, "w": 2}, {"u": ("g",), "w": ("g",)})


def recurrent_heads() -> PermutationSpec:
    """Heads that feed back within themselves: the units of a head stand on two axes of one block."""
    axes: Axes = {"in": (grid(h=2, d=3), None), "back": ("h", "d", "d"), "out": (None, grid(h=2, d=3))}
    return nested(axes, {"h": 2, "d": 3}, {"d": ("h",)})


def recurrent() -> PermutationSpec:
    """A plain recurrent weight, on two axes."""
    return nested({"in": ("d", None), "back": ("d", "d"), "out": (None, "d")}, {"d": 5}, {})


EXACT = {"attention": (attention(), "head"), "three deep": (three_deep(), "kv"), "two parents": (two_parents(), "row")}
QUADRATIC = {
    "grouped convolutions": (grouped_convolutions(), "g"),
    "recurrent heads": (recurrent_heads(), "h"),
    "recurrent": (recurrent(), "d"),
}
SEEDS = range(4)


def family(spec: PermutationSpec, group: str) -> list[str]:
    return [group, *(name for name in spec.sizes if group in spec.parents.get(name, ()))]


def orders(shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Yield every index array of this shape."""
    one = list(itertools.permutations(range(shape[-1])))
    for rows in itertools.product(one, repeat=torch.Size(shape[:-1]).numel()):
        yield torch.tensor(rows).reshape(shape)


def variants(p: Permutation, names: Iterable[str]) -> Iterator[Permutation]:
    """Yield every permutation that differs from `p` in `names` at most."""
    names = list(names)
    for choice in itertools.product(*(list(orders(p.spec.index_shape(name))) for name in names)):
        yield Permutation(p.spec, {**p.indices, **dict(zip(names, choice, strict=True))})


def set_up(spec: PermutationSpec, seed: int) -> tuple[Objective, Permutation]:
    """Return an objective with features and constant gains, and a place to start from."""
    generator = torch.Generator().manual_seed(seed)
    objective = WeightMatching().objective(spec, random_params(spec, seed), random_params(spec, seed + 50))
    shapes = {name: spec.index_shape(name) * 2 for name in spec.sizes}
    gains = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return objective + Objective(spec, gains=gains), Permutation.random(spec, generator)


def step(objective: Objective, p: Permutation, group: str) -> tuple[Permutation, float]:
    """Do one joint step; return what it leads to and what it says that is worth."""
    spec = objective.spec
    worth, rows = JointStep(Level(spec), solve)(list(objective.terms(group)), rows_of(p), group)
    assert set(rows) == set(family(spec, group))
    indices = {n: row.aligned([new(g) for g in (*spec.parents.get(n, ()), n)]) for n, row in rows.items()}
    return Permutation(spec, {**p.indices, **indices}), worth.values.item()


@pytest.mark.parametrize(("spec", "group"), EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_joint_step_is_the_best_of_the_whole_family(spec: PermutationSpec, group: str, seed: int) -> None:
    objective, start = set_up(spec, seed)
    found, worth = step(objective, start, group)
    best = max(objective.value(p, group) for p in variants(start, family(spec, group)))
    assert objective.value(found, group) == pytest.approx(best, rel=1e-5)
    assert worth == pytest.approx(best, rel=1e-5)
    assert objective.value(found) - objective.value(start) == pytest.approx(
        best - objective.value(start, group), rel=1e-5
    )


@pytest.mark.parametrize(("spec", "group"), EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_joint_step_is_never_worse_than_steps_in_sequence(spec: PermutationSpec, group: str, seed: int) -> None:
    objective, start = set_up(spec, seed)
    joint = objective.value(step(objective, start, group)[0], group)
    ends = []
    for order in itertools.permutations(family(spec, group)):
        p = start
        for name in order:
            p = Permutation(spec, {**p.indices, name: solve(objective.gain(p, name)).index})
        ends.append(objective.value(p, group))
    assert joint >= max(ends) - 1e-4
    assert seed != 0 or joint > min(ends) + 1e-3


@pytest.mark.parametrize(("spec", "group"), [EXACT["attention"], EXACT["three deep"], *QUADRATIC.values()])
def test_pairs_taken_in_pieces_give_the_same(
    spec: PermutationSpec, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, start = set_up(spec, 0)
    whole = step(objective, start, group)
    for piece in (1, 50, 100):
        monkeypatch.setattr(joint_module, "PIECE", piece)
        found = step(objective, start, group)
        assert found[0] == whole[0]
        assert found[1] == pytest.approx(whole[1], rel=1e-6)


@pytest.mark.parametrize("name", QUADRATIC)
def test_quadratic_runs_come_close_to_brute_force(name: str) -> None:
    """The share of the way from the mean to the best of all that is reached, over seeds, and how often all of it."""
    spec, shares = QUADRATIC[name][0], []
    for seed in SEEDS:
        objective, start = set_up(spec, seed)
        values = [objective.value(p) for p in variants(start, spec.sizes)]
        mean = sum(values) / len(values)
        found = CoordinateDescent().maximise(objective, start, WeightMatching())
        assert all(before <= after for before, after in itertools.pairwise(found.objective))
        shares.append((found.objective[-1] - mean) / (max(values) - mean))
    assert max(shares) < 1 + 1e-6
    assert sum(shares) / len(shares) > 0.9
    assert sum(share > 1 - 1e-6 for share in shares) >= len(shares) / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_faq_is_scipys_where_scipy_can_do_it(seed: int) -> None:
    spec = PermutationSpec.from_axes({"w": ("d", "d")}, {"w": (23, 23)})
    a, b = (random_params(spec, number)["w"].double() for number in (seed, seed + 50))
    objective = WeightMatching().objective(spec, {"w": a}, {"w": b})
    row = faq(Level(spec), list(objective.terms()), {}, "d", solve, steps=30)
    theirs = quadratic_assignment(a.numpy(), b.numpy(), method="faq", options={"maximize": True, "tol": 1e-9})
    ours = objective.value(Permutation(spec, {"d": row.values}))
    assert ours == pytest.approx(theirs.fun, rel=1e-9)


def test_faq_finds_more_than_linearised_steps_alone() -> None:
    spec, _ = QUADRATIC["recurrent"]
    gained = []
    for seed in range(20):
        objective, start = set_up(spec, seed)
        runs = [CoordinateDescent(faq_steps=steps).maximise(objective, start, WeightMatching()) for steps in (0, 30)]
        gained.append(runs[1].objective[-1] - runs[0].objective[-1])
    assert sum(gained) > 0
    assert sum(gain > 1e-6 for gain in gained) > 2 * sum(gain < -1e-6 for gain in gained)
