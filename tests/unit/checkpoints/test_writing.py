"""What is written reads back the same; nothing is half written, nothing is lost."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor, nn

from onebasin.checkpoints import (
    check_target,
    load,
    load_permutation,
    load_spec,
    provenance,
    read,
    save,
    save_text,
    write_directory,
    write_file,
)
from onebasin.errors import CheckpointError, SpecError
from onebasin.permutation import Permutation
from onebasin.spec import PermutationSpec

TARGETS = ["a.safetensors", "a.pt", "a.pth", "folder"]


def weights() -> dict[str, Tensor]:
    """Tied, a view of another base, transposed, a scalar, an empty one, and several dtypes."""
    generator = torch.Generator().manual_seed(0)
    embedding, base = torch.randn(11, 3, generator=generator), torch.randn(6, 7, generator=generator)
    return {
        "embedding": embedding,
        "part": base[:2],
        "rest": base[2:],
        "transposed": base.T,
        "half": base.bfloat16(),
        "count": torch.tensor(5),
        "mask": torch.ones(13, dtype=torch.bool),
        "empty": torch.zeros(0, 3),
        "head": embedding,
    }


@pytest.mark.parametrize("target", TARGETS)
def test_round_trip_keeps_values_dtypes_and_ties(target: str, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in weights().items()}
    params = weights()
    save(tmp_path / target, params, provenance({"command": "test"}))
    found = read(tmp_path / target)
    assert found.params.keys() == before.keys()
    for name, tensor in before.items():
        assert found.params[name].dtype == tensor.dtype, name
        torch.testing.assert_close(found.params[name], tensor, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(params[name], tensor, rtol=0, atol=0, msg=f"{name} was written to")
    assert found.params["head"].data_ptr() == found.params["embedding"].data_ptr()
    assert found.params["part"].data_ptr() != found.params["embedding"].data_ptr()
    assert json.loads(found.metadata["onebasin"])["command"] == "test"


def test_views_do_not_drag_their_base_along(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", {"part": torch.zeros(1000, 1000)[0]})
    assert (tmp_path / "a.pt").stat().st_size < 20_000


def test_pt_file_is_a_plain_state_dict_for_everyone_else(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    save(tmp_path / "a.pt", model.state_dict(), provenance({}))
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).load_state_dict(state)
    assert set(state) == set(model.state_dict())


def test_safetensors_records_ties_as_huggingface_does(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", weights())
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert "head" not in file.keys()
        assert file.metadata() == {"format": "pt", "head": "embedding"}


def test_ties_written_by_huggingface_come_back(tmp_path: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    shared = torch.randn(7, 3)
    save_torch_state_dict({"b": shared, "a": shared, "c": torch.ones(5)}, tmp_path)
    found = load(tmp_path)
    assert set(found) == {"a", "b", "c"}
    assert found["a"].data_ptr() == found["b"].data_ptr()


def test_large_models_are_sharded_and_read_back(tmp_path: Path) -> None:
    params = {f"layer{number}": torch.full((101,), float(number)) for number in range(7)}
    params["tied"] = params["layer3"]
    save(tmp_path / "model", params, provenance({"command": "test"}), shard_size=1000)
    found = read(tmp_path / "model")
    assert len(found.files) == 5
    assert "onebasin" in found.metadata
    assert found.params["tied"] is found.params["layer3"]
    for name, tensor in params.items():
        torch.testing.assert_close(found.params[name], tensor)


def test_companions_are_copied_and_weights_of_the_source_are_not(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "merges.txt", "pytorch_model.bin", "model.safetensors.index.json", "modeling.py"):
        (source / name).write_text("{}")
    save(tmp_path / "out", {"x": torch.ones(3)}, companions=source)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"config.json", "merges.txt", "model.safetensors"}


@pytest.mark.parametrize("target", TARGETS)
def test_taken_targets_are_refused_without_force(target: str, tmp_path: Path) -> None:
    save(tmp_path / target, {"x": torch.ones(3)})
    with pytest.raises(CheckpointError, match="--force"):
        save(tmp_path / target, {"x": torch.zeros(3)})
    assert load(tmp_path / target)["x"].sum() == 3
    save(tmp_path / target, {"x": torch.zeros(3)}, force=True)
    assert load(tmp_path / target)["x"].sum() == 0


def test_force_replaces_old_weights_and_keeps_everything_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(out, {f"x{number}": torch.ones(101) for number in range(5)}, shard_size=500)
    (out / "notes.txt").write_text("mine")
    save(out, {"x": torch.zeros(3)}, force=True)
    assert sorted(file.name for file in out.iterdir()) == ["model.safetensors", "notes.txt"]
    assert set(load(out)) == {"x"}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_left_when_writing_fails(target: str, tmp_path: Path) -> None:
    sparse = {"fine": torch.ones(3), "odd": torch.ones(3, 3).to_sparse()}
    with pytest.raises(CheckpointError, match="odd"):
        save(tmp_path / target, sparse)
    assert list(tmp_path.iterdir()) == []


def write_half(file: Path) -> None:
    file.write_text("half")
    raise KeyboardInterrupt


def test_an_error_in_the_block_leaves_an_older_directory_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "out", {"x": torch.ones(3)})
    with pytest.raises(KeyboardInterrupt), write_directory(tmp_path / "out", force=True) as folder:
        write_half(folder / "model.safetensors")
    assert load(tmp_path / "out")["x"].sum() == 3
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_an_error_in_the_block_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), write_file(tmp_path / "new" / "a.json") as file:
        write_half(file)
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("writer", [write_file, write_directory])
def test_a_full_disk_is_told_and_leaves_nothing(
    writer: Callable[..., AbstractContextManager[Path]], tmp_path: Path
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match="No space left"), writer(tmp_path / "out"):
        full()
    assert list(tmp_path.iterdir()) == []


def test_an_input_can_be_written_over(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        save(tmp_path / name, {"x": torch.arange(1e5)})
        params = load(tmp_path / name)
        save(tmp_path / name, {"x": params["x"] + 1}, force=True)
        torch.testing.assert_close(load(tmp_path / name)["x"], torch.arange(1e5) + 1)
        torch.testing.assert_close(params["x"], torch.arange(1e5))


def test_an_empty_directory_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with write_directory(check_target(tmp_path / "out")) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("a")
    assert (tmp_path / "out" / "deep" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_written_can_be_read_by_others_as_usual(target: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "plain.txt").touch()
    save(tmp_path / target, {"x": torch.ones(3)})
    for path in [tmp_path / target, *(tmp_path / target).glob("*")]:
        usual = tmp_path / "plain" if path.is_dir() else tmp_path / "plain" / "plain.txt"
        assert path.stat().st_mode == usual.stat().st_mode, path


def test_a_file_is_no_directory_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match="is a file"):
        save(tmp_path / "file", {"x": torch.ones(3)}, force=True)
    with pytest.raises(CheckpointError, match="is a directory"):
        save(tmp_path / "folder.pt", {"x": torch.ones(3)}, force=True)
    with pytest.raises(CheckpointError, match="cannot be written to"):
        check_target(tmp_path / "file" / "below")


def test_specs_and_permutations(tmp_path: Path) -> None:
    shapes = {"fc1.weight": (5, 3), "fc2.weight": (2, 5)}
    spec = PermutationSpec.from_axes({"fc1.weight": ("P0", None), "fc2.weight": (None, "P0")}, shapes)
    permutation = Permutation.random(spec, torch.Generator().manual_seed(1))
    save_text(tmp_path / "spec.json", spec.to_json())
    save_text(tmp_path / "p.json", permutation.to_json())
    assert load_spec(tmp_path / "spec.json") == spec
    assert load_permutation(tmp_path / "p.json", spec) == permutation
    with pytest.raises(CheckpointError, match="exists"):
        save_text(tmp_path / "p.json", "{}")
    with pytest.raises(SpecError):
        load_spec(tmp_path / "p.json")
    with pytest.raises(CheckpointError, match="No such file"):
        load_spec(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not text"):
        load_permutation(tmp_path / "binary.json", spec)
