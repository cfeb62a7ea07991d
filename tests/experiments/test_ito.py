"""The scripts on Ito et al. run from idx files to records and figures; their interventions do what they say."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import ito
import ito_interventions
import ito_trends
import onebasin as ob
from networks import mlp

# Script -> further arguments, and what is added to the names of its figures.
SCRIPTS: dict[str, tuple[list[str], list[str]]] = {
    "ito_table1": ([], []),
    "ito_fig1_fig2_r": ([], ["", "_spectra", "_layers"]),
    "ito_fig4_inputs": ([], [""]),
    "ito_table2_ste": (["--ste-epochs", "1"], []),
    "ito_table3_three_models": (["--ste-epochs", "1"], [""]),
    "ito_table4_activation": ([], []),
    "ito_trends": (["--widths", "5", "7"], [""]),
    "ito_interventions": ([], [""]),
}


@pytest.fixture
def data(digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of data sets; networks are so small that everything takes seconds."""
    folder = digits.parent / "data"
    folder.mkdir()
    digits.rename(folder / "mnist")
    tiny = replace(ito.NETS["ito_mnist_mlp"], make=partial(mlp, widths=(13, 11, 7)), seeds=3)
    monkeypatch.setitem(ito.NETS, "ito_mnist_mlp", tiny)
    monkeypatch.setattr(ito_trends, "WIDTH", 7)
    return folder


def lab_in(data: Path) -> ito.Lab:
    return ito.lab_of(argparse.Namespace(net="ito_mnist_mlp", data=data, models=None, seeds=3, epochs=1, images=None))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_leaves_record_and_figures(name: str, data: Path, tmp_path: Path) -> None:
    more, figures = SCRIPTS[name]
    out = tmp_path / "out"
    importlib.import_module(name).main(["--data", str(data), "--epochs", "1", "--out", str(out), *more])
    text = (out / f"{name}_mnist_mlp.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["results"]["expected"]
    assert record["settings"]["epochs"] == 1
    assert str(tmp_path) not in text
    for suffix in figures:
        assert (out / f"{name}_mnist_mlp{suffix}.png").stat().st_size > 10_000


def test_a_reweighted_network_moves_as_the_network_does(data: Path) -> None:
    lab = lab_in(data)
    params = lab.params[0]
    permutation = ob.Permutation.random(lab.spec, torch.Generator().manual_seed(0))
    for how in ((0.5, 0.0), (1.0, 0.3), (0.0, 0.5), (1.0, 0.0, 0.3)):
        one = ito_interventions.Parts(permutation.apply(params)).reweighted(*how)
        other = permutation.apply(ito_interventions.Parts(params).reweighted(*how))
        for name in params:
            torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)
    same = ito_interventions.Parts(params).reweighted(1.0)
    polar = ito_interventions.Parts(params).reweighted(0.0)
    torch.testing.assert_close(same["3.weight"], params["3.weight"])
    torch.testing.assert_close(polar["3.weight"] @ polar["3.weight"].T, torch.eye(11), atol=1e-5, rtol=0)
    low, high = (ito_interventions.Parts(params).reweighted(1.0, *how) for how in ((0.0, 0.3), (0.3,)))
    torch.testing.assert_close(low["1.weight"] + high["1.weight"], params["1.weight"])


def test_overlap_is_the_alignment_of_the_spectrum(data: Path) -> None:
    lab = lab_in(data)
    a, b = (ito_interventions.Parts(params) for params in lab.params[:2])
    permutation = ob.align(lab.spec, a.params, b.params).permutation
    for gamma in (0.0, 0.3, 0.7):
        expected = ob.spectrum(lab.spec, a.params, permutation.apply(b.params), gamma).alignment
        assert ito_interventions.overlap(a, b, permutation, gamma) == pytest.approx(expected, abs=1e-6)


def test_swaps_end_at_one_distance_and_in_the_order_they_promise() -> None:
    models = [mlp(19, (48, 40, 32)) for _ in range(2)]
    for seed, model in enumerate(models):
        random = torch.Generator().manual_seed(seed)
        for tensor in model.parameters():
            # Weights with spectra that fall, as trained ones have.
            tensor.data = torch.randn(tensor.shape, generator=random)
            tensor.data[:3] *= 4
    spec = ob.permutation_spec(models[0], (torch.rand(2, 19),))
    lab = ito.Lab(models[0], spec, [ob.params_of(model) for model in models], {}, None)
    a, b = (ito_interventions.Parts(params) for params in lab.params)
    found = ito_interventions.by_swaps(lab, a, b)
    moved = {name: permutation.apply(b.params) for name, permutation in found.items()}
    reductions = [ob.distance(lab.spec, a.params, b.params, one).reduction for one in moved.values()]
    assert max(reductions) - min(reductions) < 0.5
    top = ob.WeightMatching().objective(lab.spec, a.reweighted(1.0, 0.3), b.reweighted(1.0, 0.3))
    kept, _, broken = (top.value(permutation) for permutation in found.values())
    assert kept > broken


def test_the_cost_of_a_swap_is_what_the_objective_loses(data: Path) -> None:
    lab = lab_in(data)
    a, b = lab.params[:2]
    objective, start = ob.WeightMatching().objective(lab.spec, a, b), ob.Permutation.identity(lab.spec)
    name = next(iter(lab.spec.sizes))
    one, other = torch.tensor([2]), torch.tensor([5])
    lost = objective.value(start) - objective.value(ito_interventions.exchange(start, name, one, other))
    cost = ito_interventions.cost(objective.gain(start, name), start.indices[name], one, other)
    assert cost.item() == pytest.approx(lost, rel=1e-4)


def test_tuples_go_round_the_seeds() -> None:
    lab = ito.Lab(None, None, ["a", "b", "c"], {}, None)  # type: ignore[arg-type]  # nothing but the seeds is looked at
    assert list(lab.tuples(2)) == [["a", "b"], ["b", "c"], ["c", "a"]]
    assert list(replace(lab, params=["a", "b"]).tuples(2)) == [["a", "b"]]  # type: ignore[arg-type]
