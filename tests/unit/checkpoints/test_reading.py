"""Every kind of weight file users have reads to the same params; everything else is refused with a way out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from onebasin.checkpoints import load, read
from onebasin.errors import CheckpointError


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "fc1.weight": torch.randn(5, 3, generator=generator),
        "fc1.bias": torch.randn(5, generator=generator).bfloat16(),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights().items()}


WRAPPED = {
    "bare": (weights(), None),
    "state_dict": ({"state_dict": weights(), "epoch": 3}, "'state_dict'"),
    "beside a tensor": ({"model": weights(), "best_accuracy": torch.tensor(0.9)}, "'model'"),
    "beside an optimizer": (
        {"net": weights(), "optimizer": {"m": torch.ones(2), "state": {0: torch.ones(2)}}},
        "'net'",
    ),
    "twice": ({"checkpoint": {"model_state_dict": weights()}}, "'checkpoint.model_state_dict'"),
    "unusual key": ({"student": weights()}, "'student'"),
    "data parallel": (prefixed("module."), "'module.' stripped"),
    "compiled data parallel": ({"model": prefixed("module._orig_mod.")}, "'_orig_mod.' stripped"),
    "lightning": ({"state_dict": prefixed("model."), "pytorch-lightning_version": "2.0"}, "'model.' stripped"),
    "average": ({"n_averaged": torch.tensor(9), **prefixed("module.")}, "n_averaged"),
    "model and ema": ({"ema": {"x": torch.zeros(2)}, "model": weights()}, "not used: ema"),
    "not a tensor inside": ({**weights(), "version": 2}, "not tensors: version"),
}


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_are_unwrapped_and_what_was_done_is_told(case: str, zipped: bool, tmp_path: Path) -> None:
    data, note = WRAPPED[case]
    torch.save(data, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "a.pt")
    assert_same(found.params, weights())
    assert note is None or note in "\n".join(found.notes)


def test_key_chooses_among_several_state_dicts(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.zeros(2)}, "ema": {"shadow": weights()}}, tmp_path / "a.pt")
    assert_same(load(tmp_path / "a.pt", key="ema.shadow"), weights())
    with pytest.raises(CheckpointError, match=r"at model, ema.shadow, none at 'teacher'"):
        load(tmp_path / "a.pt", key="teacher")


def test_equally_likely_state_dicts_are_not_guessed_at(tmp_path: Path) -> None:
    torch.save({"student": weights(), "teacher": weights()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"student, teacher(.|\n)*key='student'"):
        load(tmp_path / "a.pt")


def test_a_prefix_the_model_has_itself_stays(tmp_path: Path) -> None:
    torch.save(prefixed("module."), tmp_path / "a.pt")
    assert_same(load(tmp_path / "a.pt", like=prefixed("module.")), prefixed("module."))


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    mixed = {**prefixed("module."), "head.weight": torch.ones(2, 5)}
    torch.save(mixed, tmp_path / "a.pt")
    assert_same(load(tmp_path / "a.pt"), mixed)


def test_safetensors_file_and_its_metadata(tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / "a.safetensors", {"made": "by hand"})
    found = read(tmp_path / "a.safetensors")
    assert_same(found.params, weights())
    assert found.metadata == {"made": "by hand"}


def shards(folder: Path, suffix: str = "safetensors") -> Path:
    names = {"fc1.weight": f"a-1.{suffix}", "fc1.bias": f"a-2.{suffix}", "bn.num_batches_tracked": f"a-2.{suffix}"}
    for file in set(names.values()):
        part = {name: tensor for name, tensor in weights().items() if names[name] == file}
        save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
        save(part, folder / file)
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 77, "tied": "fc1.bias"}, "weight_map": names}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("by_index", [True, False])
def test_sharded_directory(suffix: str, by_index: bool, tmp_path: Path) -> None:
    index = shards(tmp_path, suffix)
    found = read(index if by_index else tmp_path)
    assert found.params["tied"] is found.params["fc1.bias"]
    assert_same({name: tensor for name, tensor in found.params.items() if name != "tied"}, weights())
    assert len(found.files) == 3


def test_missing_shards_and_tensors_are_all_named(tmp_path: Path) -> None:
    shards(tmp_path)
    safetensors.torch.save_file({"other": torch.ones(2)}, tmp_path / "a-2.safetensors")
    with pytest.raises(CheckpointError, match=r"2 tensors named in .* missing: fc1.bias, bn.num_batches_tracked"):
        load(tmp_path)
    (tmp_path / "a-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 shards named in .* missing: a-1.safetensors"):
        load(tmp_path)


def test_directory_with_one_weight_file_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save(weights(), tmp_path / "epoch3.pth")
    assert_same(load(tmp_path), weights())
    torch.save(weights(), tmp_path / "epoch4.pth")
    with pytest.raises(CheckpointError, match=r"2 weight files and no index: epoch3.pth, epoch4.pth"):
        load(tmp_path)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    for word in (str(path), "expected:", "do this:", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_module_is_refused_with_the_way_out(zipped: bool, tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 5), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "a.pt", "torch.nn.modules.linear.Linear", "model.state_dict()")


def test_unknown_objects_are_named_and_can_be_allowed(tmp_path: Path) -> None:
    torch.save({"model": weights(), "args": argparse.Namespace(lr=1)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "argparse.Namespace", "safe_globals([argparse.Namespace])")
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert_same(load(tmp_path / "a.pt"), weights())


@pytest.mark.parametrize("left", [0, 5, 20, 200, -1])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_files_are_refused(suffix: str, left: int, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    if suffix == "pt":
        torch.save(weights(), whole)
    else:
        safetensors.torch.save_file(weights(), whole)
    cut.write_bytes(whole.read_bytes()[:left])
    refused(cut, "is damaged", "download it again")


@pytest.mark.parametrize("left", [3000, 4099, 5000, 8000, 12000, 15000, 20000])
def test_files_of_some_kilobytes_that_are_cut_anywhere_are_refused(left: int, tmp_path: Path) -> None:
    torch.save({f"layer{number}.weight": torch.ones(16, 16) for number in range(16)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    assert len(content) > 20000
    (tmp_path / "cut.pt").write_bytes(content[:left])
    refused(tmp_path / "cut.pt", "is damaged", "download it again")


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04\x95 no pickle", b"PK\x03\x04 no zip", b"\x80\x02]q\x00."])
def test_files_of_another_kind_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    refused(tmp_path / "a.pt")


def test_lists_and_empty_dicts_are_refused(tmp_path: Path) -> None:
    for data in ([torch.ones(2)], {}, {"epoch": 3}):
        torch.save(data, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", "no tensors by name")


def test_paths_that_do_not_exist_or_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path / "nothing.pt", "does not exist")
    refused(tmp_path, "no weights, but: config.json")


def test_damaged_index(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"weight_map": [1]}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        refused(tmp_path / "model.safetensors.index.json", "no index of shards")


def test_a_file_that_must_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights(), tmp_path / "a.pt")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(tmp_path / "a.pt", "Permission denied")
