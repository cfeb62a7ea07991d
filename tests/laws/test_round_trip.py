"""A spec and a permutation survive JSON, and then work without the model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import SUPPORTED, Case, case, params, spec_of
from helpers import assert_same

from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

every_case = pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)


@every_case
def test_spec(case: Case) -> None:
    spec = spec_of(case)
    again = PermutationSpec.from_json(spec.to_json())
    assert again == spec
    assert again.taps == spec.taps
    assert str(again) == str(spec)
    assert [again.explain(name) for name in again.tensors] == [spec.explain(name) for name in spec.tensors]


@every_case
def test_permutation_under_a_loaded_spec(case: Case) -> None:
    spec, theta = spec_of(case), params(case)
    drawn = Permutation.random(spec, torch.Generator().manual_seed(0))
    again = Permutation.from_json(drawn.to_json(), PermutationSpec.from_json(spec.to_json()))
    assert again == drawn
    assert_same(again.apply(theta), drawn.apply(theta))


@every_case
def test_a_spec_lists_the_whole_state_dict(case: Case) -> None:
    assert spec_of(case).shapes == {name: tuple(tensor.shape) for name, tensor in params(case).items()}


@every_case
def test_discovery_is_deterministic(case: Case) -> None:
    from onebasin.symmetry.discover import permutation_spec

    if case.deep:
        pytest.skip("exports a whole architecture again")
    again = permutation_spec(case.model(seed=5), case.inputs(seed=5))
    # The rounding that the proof saw depends on how many threads summed; all else is the same text.
    assert replace(again, proof=None).to_json() == replace(spec_of(case), proof=None).to_json()


@every_case
def test_half_precision_and_train_mode_make_no_difference(case: Case) -> None:
    from onebasin.symmetry.discover import permutation_spec

    if case.deep:
        pytest.skip("exports a whole architecture again")
    model = case.model(dtype=torch.bfloat16).train()
    assert permutation_spec(model, case.inputs(dtype=torch.bfloat16)) == spec_of(case)


@every_case
def test_a_permutation_of_another_spec_is_refused(case: Case) -> None:
    """Rows of one unit more belong to no group of this spec."""
    from onebasin.errors import SpecError

    rows = {name: torch.arange(size + 1) for name, size in spec_of(case).sizes.items()}
    with pytest.raises(SpecError, match="instead of"):
        Permutation(spec_of(case), rows)


WITHOUT_MODEL = """
import sys, torch
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec
spec = PermutationSpec.from_json(open(sys.argv[1]).read())
theta = {name: torch.randn(shape) for name, shape in spec.shapes.items()}
p = Permutation.random(spec, torch.Generator().manual_seed(0))
assert all(torch.equal(a, b) for a, b in zip(p.inverse().apply(p.apply(theta)).values(), theta.values(), strict=True))
assert not any(name.startswith(("onebasin.symmetry", "cases", "models")) for name in sys.modules)
"""


def test_another_process_uses_a_spec_without_the_model(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(spec_of(case("unet")).to_json())
    subprocess.run([sys.executable, "-c", WITHOUT_MODEL, str(path)], check=True)
