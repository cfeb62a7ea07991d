"""Laws of singular-vector alignment: R of ito2025, its closed form, and what must leave it alone."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from onebasin.analysis import Spectrum, spectrum
from onebasin.errors import ParamsError, UsageError
from onebasin.matching import WeightMatching, align
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

SHAPES = {
    "conv.weight": (11, 3, 5, 2), "conv.bias": (11,), "norm.running_var": (11,), "fc1.weight": (13, 11),
    "fc1.bias": (13,), "fc2.weight": (7, 13), "fc2.bias": (7,),
}  # fmt: skip
SPEC = PermutationSpec.from_axes(
    {
        "conv.weight": ("P0", None, None, None), "conv.bias": ("P0",), "norm.running_var": ("P0",),
        "fc1.weight": ("P1", "P0"), "fc1.bias": ("P1",), "fc2.weight": (None, "P1"),
    },
    SHAPES,
)  # fmt: skip
WEIGHTS = ["conv.weight", "fc1.weight", "fc2.weight"]
GAMMAS = pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])


def params(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def permutation(seed: int = 3) -> Permutation:
    return Permutation.random(SPEC, torch.Generator().manual_seed(seed))


def polar(weight: Tensor, gamma: float) -> tuple[Tensor, int]:
    """Return the truncated polar factor and the number of singular vectors in it."""
    u, values, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    keep = values >= gamma * values[0]
    return u[:, keep] @ v[keep], int(keep.sum())


@GAMMAS
def test_r_is_the_inner_product_of_truncated_polar_factors(gamma: float) -> None:
    a, b = params(0), params(1)
    overlap, count = 0.0, 0
    for name in WEIGHTS:
        (polar_a, kept_a), (polar_b, kept_b) = polar(a[name], gamma), polar(b[name], gamma)
        overlap, count = overlap + (polar_a * polar_b).sum().item(), count + min(kept_a, kept_b)
    found = spectrum(SPEC, a, b, gamma)
    assert list(found.layers) == WEIGHTS
    assert sum(found.counts.values()) == count
    assert found.alignment == pytest.approx(overlap / count, rel=1e-10)


@GAMMAS
def test_r_of_a_network_with_itself_is_one_in_every_layer(gamma: float) -> None:
    found = spectrum(SPEC, params(0), params(0), gamma)
    assert found.alignment == pytest.approx(1, rel=1e-12)
    assert found.layer_alignment == pytest.approx(dict.fromkeys(WEIGHTS, 1.0), rel=1e-12)


@GAMMAS
def test_r_of_a_network_with_its_negative_is_minus_one(gamma: float) -> None:
    negative = {name: -tensor for name, tensor in params(0).items()}
    assert spectrum(SPEC, params(0), negative, gamma).alignment == pytest.approx(-1, rel=1e-12)


@GAMMAS
def test_permuting_both_sides_changes_nothing_and_one_side_does(gamma: float) -> None:
    a, b, move = params(0), params(1), permutation().apply
    plain = spectrum(SPEC, a, b, gamma)
    both = spectrum(SPEC, move(a), move(b), gamma)
    assert both.alignment == pytest.approx(plain.alignment, rel=1e-9)
    assert both.layer_alignment == pytest.approx(plain.layer_alignment, rel=1e-9)
    one = spectrum(SPEC, a, move(a), gamma)
    assert one.alignment < 0.9 < spectrum(SPEC, a, a, gamma).alignment


def test_a_permutation_leaves_singular_values_alone() -> None:
    a = params(0)
    found = spectrum(SPEC, a, permutation().apply(a))
    for layer in found.layers.values():
        torch.testing.assert_close(layer.values_a, layer.values_b, rtol=1e-12, atol=0)
        assert (layer.values_a.diff() <= 0).all()
    other = spectrum(SPEC, a, params(1)).layers["fc1.weight"]
    assert (other.values_a - other.values_b).abs().max() > 0.1


@pytest.mark.parametrize("name", WEIGHTS)
def test_theorem_4_1_the_weighted_sum_is_the_inner_product_of_the_weights(name: str) -> None:
    a, b = params(0), params(1)
    for moved in (b, permutation().apply(b)):
        expected = (a[name] * moved[name]).sum().item()
        assert spectrum(SPEC, a, moved).layers[name].inner_product() == pytest.approx(expected, rel=1e-10)


@GAMMAS
@pytest.mark.parametrize("seed", range(5))
def test_r_is_between_minus_one_and_one(gamma: float, seed: int) -> None:
    a, b = params(seed), params(seed + 5)
    b["fc1.weight"] = b["fc1.weight"].round() * 3 - a["fc1.weight"] / 2  # far from a random pair
    found = spectrum(SPEC, a, b, gamma)
    assert max(map(abs, [found.alignment, *found.layer_alignment.values()])) <= 1 + 1e-12


def with_values(values: list[float], seed: int) -> Params:
    """Return params whose fc1 has these singular values, on random singular vectors."""
    result, generator = params(seed), torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, 11, generator=generator, dtype=torch.float64))[0] for n in (13, 11))
    return result | {"fc1.weight": u @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ v.T}


def test_bases_of_equal_singular_values_and_signs_do_not_matter() -> None:
    a, b = with_values([5.0] * 4 + [1.0] * 7, 0), with_values([3.0] * 6 + [2.0] * 5, 1)
    plain = spectrum(SPEC, a, b)
    # The decomposition of a permuted matrix picks other bases within the four and within the seven.
    both = spectrum(SPEC, permutation().apply(a), permutation().apply(b))
    for gamma in (0.0, 0.3):
        found = both.at(gamma).layer_alignment["fc1.weight"]
        assert found == pytest.approx(plain.at(gamma).layer_alignment["fc1.weight"], rel=1e-10)
    assert plain.kept["fc1.weight"] == (4, 11)
    assert plain.counts["fc1.weight"] == 4


def test_counts_follow_the_threshold() -> None:
    a = with_values([10.0, 8, 5, 3, 2.9, 1, 1, 1, 1, 1, 0.5], 0)
    found = spectrum(SPEC, a, a, 0.0)
    counts = {gamma: found.at(gamma).counts["fc1.weight"] for gamma in (0.0, 0.05, 0.1 - 1e-9, 0.2, 0.299, 0.51, 1.0)}
    assert counts == {0.0: 11, 0.05: 11, 0.1 - 1e-9: 10, 0.2: 5, 0.299: 4, 0.51: 2, 1.0: 1}
    assert found.at(2.95, absolute=True).counts["fc1.weight"] == 4
    assert found.at(11, absolute=True).counts["fc1.weight"] == 0


def test_zero_singular_values_have_no_vectors() -> None:
    a = with_values([2.0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], 0)
    found = spectrum(SPEC, a, permutation().inverse().apply(permutation().apply(a)), 0.0)
    assert found.counts["fc1.weight"] == 4
    assert found.alignment == pytest.approx(1, rel=1e-12)
    dead = params(1) | {"fc1.weight": torch.zeros(13, 11, dtype=torch.float64)}
    nothing = spectrum(SPEC, dead, dead, 0.0)
    assert nothing.layer_alignment["fc1.weight"] == 0
    assert nothing.alignment == pytest.approx(1, rel=1e-12)


def test_another_threshold_of_the_same_comparison_is_a_new_comparison() -> None:
    a, b = params(0), params(1)
    found = spectrum(SPEC, a, b, 0.7).at(0.2)
    assert found.alignment == spectrum(SPEC, a, b, 0.2).alignment
    assert found.gamma == 0.2
    # How thresholds are read stays as it is unless that is said.
    value = spectrum(SPEC, a, b, 1.0, absolute=True).at(0.5)
    assert value.kept == spectrum(SPEC, a, b, 0.5, absolute=True).kept != found.at(0.5).kept
    assert value.at(0.5, absolute=False).kept == found.at(0.5).kept


def test_weight_matching_raises_r() -> None:
    a = params(0)
    b = {name: tensor + 0.1 * params(1)[name] for name, tensor in permutation().apply(a).items()}
    moved = align(SPEC, a, b, WeightMatching(seed=0)).permutation.apply(b)
    before, after = (spectrum(SPEC, a, other) for other in (b, moved))
    assert abs(before.alignment) < 0.4
    assert after.alignment > 0.9


def test_r_with_the_merged_network_is_what_the_closed_form_says_and_higher_once_matched() -> None:
    a = params(0)
    b = {name: tensor + 0.1 * params(1)[name] for name, tensor in permutation().apply(a).items()}
    moved = align(SPEC, a, b, WeightMatching(seed=0)).permutation.apply(b)
    for original in (0, 1):
        before, after = (
            spectrum(SPEC, (a, end)[original], {name: (a[name] + end[name]) / 2 for name in a}) for end in (b, moved)
        )
        assert before.alignment < 0.8 < after.alignment


def test_singular_values_of_two_models_are_compared_as_they_are_and_up_to_a_factor() -> None:
    a, b = params(0), {name: 3 * tensor for name, tensor in permutation().apply(params(0)).items()}
    layer = spectrum(SPEC, a, b).layers["fc1.weight"]
    assert layer.ratio == pytest.approx(3, rel=1e-12)
    assert layer.difference == pytest.approx(2, rel=1e-12)
    assert layer.shape_difference == pytest.approx(0, abs=1e-12)
    other = spectrum(SPEC, with_values([2.0, 0] + [0.0] * 9, 0), with_values([3.0, 1] + [0.0] * 9, 1))
    layer = other.layers["fc1.weight"]
    assert (layer.ratio, layer.difference) == pytest.approx((1.5, 2**0.5 / 2))
    assert layer.shape_difference == pytest.approx(1 / 10**0.5)


def test_the_leading_vectors_alone_give_the_same_r_where_gamma_needs_no_more() -> None:
    a, b = with_values([10.0, 8, 5, 2, 1, 1, 1, 1, 1, 1, 0.5], 0), with_values([9.0, 8, 4, 2, 1, 1, 1, 1, 1, 1, 0.5], 1)
    exact, cut = spectrum(SPEC, a, b, 0.75), spectrum(SPEC, a, b, 0.75, rank=6)
    assert cut.layer_alignment["fc1.weight"] == pytest.approx(exact.layer_alignment["fc1.weight"], rel=1e-10)
    assert len(cut.layers["fc1.weight"].values_a) == 6
    with pytest.raises(UsageError, match=r"more singular vectors than were computed of .*fc1\.weight"):
        cut.at(0.0)
    with pytest.raises(UsageError, match="rank=0"):
        spectrum(SPEC, a, b, rank=0)


def test_a_wide_weight_is_compared_by_its_leading_vectors_and_the_residual_is_reported() -> None:
    spec = PermutationSpec.from_axes({"w": ("P0", None), "v": (None, "P0")}, {"w": (101, 151), "v": (3, 101)})
    sides = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        values = torch.arange(1, 102, dtype=torch.float64) ** -1.0
        u, v = (torch.linalg.qr(torch.randn(n, 101, generator=generator).double())[0] for n in (101, 151))
        sides.append({"w": u @ torch.diag(values) @ v.T, "v": torch.randn(3, 101, generator=generator).double()})
    exact, cut = spectrum(spec, *sides, 0.3), spectrum(spec, *sides, 0.3, rank=7)
    assert cut.alignment == pytest.approx(exact.alignment, rel=1e-6)
    assert 0 < max(cut.layers["w"].residuals) < 1e-6
    assert exact.layers["w"].residuals == (0, 0)


def test_half_precision_is_decomposed_in_float64() -> None:
    a, b = ({name: tensor.bfloat16() for name, tensor in params(seed).items()} for seed in (0, 1))
    exact = spectrum(SPEC, *({name: t.double() for name, t in side.items()} for side in (a, b)))
    assert spectrum(SPEC, a, b).alignment == exact.alignment


def test_it_shows_itself() -> None:
    found: Spectrum = spectrum(SPEC, params(0), params(1), 0.3)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["alignment"] == found.alignment
    assert data["layers"]["fc1.weight"]["kept"] == list(found.kept["fc1.weight"])
    assert len(data["layers"]["conv.weight"]["values_a"]) == 11
    lines = str(found).splitlines()
    assert lines[0].endswith("at least 0.3 x the largest")
    assert [line.split()[0] for line in lines[2:]] == [*WEIGHTS, "all"]
    assert f"{found.alignment:.4f}" in lines[-1]


def test_progress_counts_weights() -> None:
    seen: list[tuple[str, int, int]] = []
    spectrum(SPEC, params(0), params(1), progress=lambda *step: seen.append(step))
    assert [step[1:] for step in seen] == [(1, 3), (2, 3), (3, 3)]


def test_what_does_not_fit_is_refused() -> None:
    a, b = params(0), params(1)
    for gamma in (-0.1, 1.1):
        with pytest.raises(UsageError, match="gamma ="):
            spectrum(SPEC, a, b, gamma)
    assert spectrum(SPEC, a, b, 1.1, absolute=True).gamma == 1.1
    with pytest.raises(ParamsError, match=r"the other model hold values.*fc2\.weight"):
        spectrum(SPEC, a, b | {"fc2.weight": b["fc2.weight"] / 0})
    with pytest.raises(ParamsError, match="extra"):
        spectrum(SPEC, a, b | {"extra": b["fc1.bias"]})
