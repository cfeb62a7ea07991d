"""What the experiments stand on: data sets are read, networks have the groups they should, training repeats itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from experiments import data, networks, running, training
from torch import nn

import onebasin as ob


def test_idx_files_are_read(digits: Path) -> None:
    images, labels = data.mnist(digits)["train"]
    expected = torch.randint(0, 256, (700, 28, 28), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(images * 255, expected[:, None].float())
    assert labels.tolist() == [number % 10 for number in range(700)]
    with pytest.raises(SystemExit, match=r"absent nor absent\.gz"):
        data.read_idx(digits, "absent")


def test_cifar_is_read_in_order_and_standardised(cifar: Path) -> None:
    splits = data.cifar10(cifar)
    images, labels = splits["train"]
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 256, (50, 3072), generator=generator) for _ in range(2))
    for position, value in ((0, first[0, 1024]), (50, second[0, 1024])):  # the first pixel's green
        assert images[position, 1, 0, 0].item() == pytest.approx((value.item() / 255 - 0.4822) / 0.2435, abs=1e-5)
    assert (len(labels), len(splits["test"][1])) == (250, 50)
    assert torch.equal(data.cifar10(cifar / "cifar-10-batches-py")["train"][0], images)
    (cifar / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(SystemExit, match="lacks data_batch_3"):
        data.cifar10(cifar)


def test_batches_hold_all_examples_or_the_first() -> None:
    split = (torch.arange(7.0), torch.arange(7))
    assert [len(labels) for _, labels in data.batches(split, 3)] == [3, 3, 1]
    assert torch.cat([labels for _, labels in data.batches(split, 3, limit=4)]).tolist() == [0, 1, 2, 3]


NETS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], int]] = [
    ("mlp", lambda: networks.mlp(widths=(11, 7)), (1, 28, 28), 2),
    ("mlp without biases", lambda: networks.mlp(3072, (5,), bias=False), (3, 32, 32), 1),
    ("vgg11", lambda: networks.vgg(11, 1 / 16), (3, 32, 32), 8),
    ("vgg16, layer norm", lambda: networks.vgg(16, 1 / 16, norm="layer"), (3, 32, 32), 13),
    ("vgg11 without norm, small images", lambda: networks.vgg(11, 1 / 16, norm=None, channels=1), (1, 28, 28), 8),
    ("resnet20", lambda: networks.resnet20(1 / 4), (3, 32, 32), 12),
    ("resnet20, layer norm", lambda: networks.resnet20(1 / 4, norm="layer"), (3, 32, 32), 12),
    ("densenet", lambda: networks.densenet(3, 2, channels=1), (1, 28, 28), 9),
    ("mobilenet", lambda: networks.mobilenet_v2(1 / 4, channels=1), (1, 28, 28), 25),
]


@pytest.mark.parametrize(("name", "make", "shape", "groups"), NETS, ids=[name for name, *_ in NETS])
def test_networks_have_the_groups_they_should(
    name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], groups: int
) -> None:
    inputs = torch.randn(2, *shape)
    model = make().eval()
    assert model(inputs).shape == (2, 10)
    assert len(ob.permutation_spec(model, (inputs,)).groups) == groups


def test_a_fraction_of_the_width_is_one_of_every_layer() -> None:
    whole, half = (networks.resnet20(width).state_dict() for width in (1, 0.5))
    assert {key: [size for size in tensor.shape[:1]] for key, tensor in whole.items() if tensor.dim() == 4} == {
        key: [2 * size for size in tensor.shape[:1]] for key, tensor in half.items() if tensor.dim() == 4
    }


SPLIT = (torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10)


def small() -> nn.Module:
    return networks.mlp(widths=(5,))


@pytest.mark.parametrize(
    "recipe",
    [
        training.Recipe(1e-3, epochs=2, batch=20),
        training.Recipe(0.1, epochs=2, batch=20, optimizer="sgd", decay=1e-4, augment=True),
        training.Recipe(1e-3, epochs=2, batch=20, flax=True, share=0.5, bf16=False),
    ],
    ids=["adam", "sgd", "half"],
)
def test_training_repeats_itself_and_depends_on_the_seed(recipe: training.Recipe) -> None:
    first, again, other = (training.train("net", small, SPLIT, recipe, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) and first[name].dtype == torch.float32 for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_training_lowers_the_loss() -> None:
    params = training.train("net", networks.mlp, SPLIT, training.Recipe(1e-3, epochs=8, batch=20), 0)
    measure, model = ob.classification([SPLIT]), networks.mlp()
    loss = ob.evaluate_path(model, ob.params_of(model), params, measure, 2).loss
    assert loss[1] < loss[0] / 2


def test_the_rate_rises_then_falls_to_zero() -> None:
    recipe = training.Recipe(1.0, epochs=5, optimizer="sgd", warmup=1)
    assert [recipe.factor(done) for done in (0.0, 0.5, 1.0, 3.0, 5.0)] == [0, 0.5, 1, 0.5, 0]
    assert training.Recipe(1.0, epochs=5).factor(4.0) == 1


def test_augmentation_shifts_and_mirrors_whole_images() -> None:
    ramp = torch.arange(1.0, 1 + 2 * 8 * 8).view(1, 2, 8, 8)
    seen = training.augmented(ramp.expand(200, -1, -1, -1), torch.Generator().manual_seed(0))
    assert seen.shape == (200, 2, 8, 8)
    mirrored = 0
    for image in seen:
        assert torch.equal(image[0] > 0, image[1] > 0)
        row = image[0].flatten()[image[0].argmax() // 8 * 8 :][:8]
        row = row[row > 0]
        mirrored += bool(row[0] > row[1])
        assert torch.equal(row.diff().abs(), torch.ones(len(row) - 1))
        inside = image[0] > 0
        assert torch.equal(image[1][inside] - image[0][inside], torch.full((int(inside.sum()),), 64.0))
    assert 70 < mirrored < 130


def test_weights_are_kept_and_another_recipe_is_refused(tmp_path: Path) -> None:
    recipe = training.Recipe(1e-3, epochs=1, batch=20)
    first, seconds = training.trained("net", small, SPLIT, recipe, 0, tmp_path)
    again, same = training.trained("net", lambda: pytest.fail("trained again"), SPLIT, recipe, 0, tmp_path)
    assert seconds == same > 0
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(SystemExit, match="remove it first"):
        training.trained("net", small, SPLIT, training.Recipe(1e-2, epochs=1, batch=20), 0, tmp_path)


def test_a_command_leaves_out_defaults_and_folders(tmp_path: Path) -> None:
    parser = running.options("about", data="there")
    parser.add_argument("--some-pairs", type=int, default=3)
    args = parser.parse_args(["--data", str(tmp_path), "--out", "x", "--some-pairs", "4"])
    assert running.command("name", parser, args) == "python experiments/name.py --data DIR --some-pairs 4"
