"""Features of weight matching, and hybrids: what they are worth, by the definition."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from specs import SPECS, flat_mlp, random_params

from onebasin.errors import UsageError
from onebasin.matching import Hybrid, Objective, WeightMatching, align
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

UNIT = WeightMatching(features="unit")


def draw(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Drawn:
    """Constant gains from a generator, in place of activations."""

    scale: float = 1.0

    def objective(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> Objective:
        generator = torch.Generator().manual_seed(9)
        shapes = {name: spec.index_shape(name) * 2 for name in spec.sizes}
        return Objective(
            spec, gains={n: self.scale * torch.randn(shape, generator=generator) for n, shape in shapes.items()}
        )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_unit_features_are_worth_the_cosine_of_every_matrix(spec: PermutationSpec) -> None:
    a, b, p = random_params(spec, 0), random_params(spec, 1), draw(spec, 2)
    moved, names = p.apply(b), [name for name in spec.matched if a[name].dim() > 1]
    cosines = [torch.cosine_similarity(a[n].flatten(), moved[n].flatten(), dim=0).item() for n in names]
    assert UNIT.objective(spec, a, b).value(p) == pytest.approx(sum(cosines), rel=1e-5)
    itself = UNIT.objective(spec, a, a).value(Permutation.identity(spec))
    assert itself == pytest.approx(len(names))


def test_unit_features_do_not_see_the_scale_of_a_tensor() -> None:
    spec = flat_mlp()
    a, b = random_params(spec, 0), random_params(spec, 1)
    louder = {name: tensor * (1000 if name == "fc2.weight" else 1) for name, tensor in b.items()}
    half = {name: tensor.bfloat16() for name, tensor in louder.items()}
    start = draw(spec, 3)
    value = UNIT.objective(spec, a, b).value(start)
    assert UNIT.objective(spec, a, louder).value(start) == pytest.approx(value, rel=1e-5)
    assert UNIT.objective(spec, half, half).value(Permutation.identity(spec)) == pytest.approx(3, rel=1e-3)
    raw = WeightMatching().objective
    assert raw(spec, a, louder).value(start) != pytest.approx(raw(spec, a, b).value(start), rel=0.1)


def test_tensors_of_zeros_are_left_out() -> None:
    spec = flat_mlp()
    a, b = random_params(spec, 0), random_params(spec, 1)
    dead = {**a, "fc2.weight": torch.zeros(5, 7)}
    assert {f.name for f in UNIT.objective(spec, dead, b).features} == {"fc1.weight", "fc3.weight"}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("solver", ["coordinate-descent", "frank-wolfe"])
def test_unit_features_find_a_planted_permutation(spec: PermutationSpec, solver: str) -> None:
    a, p = random_params(spec, 0), draw(spec, 1)
    runs = [WeightMatching(seed, features="unit", solver=solver) for seed in range(10)]  # type: ignore[arg-type]
    moved = [align(spec, a, p.apply(a), run).permutation.apply(p.apply(a)) for run in runs]
    names = [name for name in spec.matched if a[name].dim() > 1]
    assert any(all(torch.equal(one[name], a[name]) for name in names) for one in moved)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_hybrid_is_worth_its_parts(spec: PermutationSpec) -> None:
    a, b, p = random_params(spec, 0), random_params(spec, 1), draw(spec, 2)
    value = Hybrid(Drawn(), mu=2.5).objective(spec, a, b).value(p)
    gains = Drawn().objective(spec, a, b).gains
    parts = {n: Objective(spec, gains={n: gain}).value(p) for n, gain in gains.items()}
    shares = sum(part / torch.Size(spec.index_shape(name)).numel() for name, part in parts.items())
    assert value == pytest.approx(UNIT.objective(spec, a, b).value(p) + 2.5 * shares, rel=1e-5)


def test_mu_weighs_the_activations() -> None:
    spec = flat_mlp()
    a, b = random_params(spec, 0), random_params(spec, 1)
    constant = Drawn().objective(spec, a, b)
    only = Permutation(spec, {name: torch.tensor(_best(gain)) for name, gain in constant.gains.items()})
    assert align(spec, a, b, Hybrid(Drawn(), mu=1e6)).permutation == only
    assert align(spec, a, b, Hybrid(Drawn(), mu=0)).permutation == align(spec, a, b, UNIT).permutation != only
    raw = Hybrid(Drawn(), WeightMatching(solver="frank-wolfe"), mu=0)
    assert align(spec, a, b, raw).permutation == align(spec, a, b, WeightMatching(solver="frank-wolfe")).permutation
    told = align(spec, a, b, raw).to_json()
    assert (told["matcher"], told["settings"]["weights"]["solver"]) == ("Hybrid", "frank-wolfe")


def _best(gain: torch.Tensor) -> list[int]:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(gain.numpy(), maximize=True)[1].tolist()


def test_unknown_features_are_refused() -> None:
    spec = flat_mlp()
    with pytest.raises(UsageError, match="loud"):
        align(spec, random_params(spec), random_params(spec), WeightMatching(features="loud"))  # type: ignore[arg-type]
