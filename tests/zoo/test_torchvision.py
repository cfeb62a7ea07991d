"""torchvision's own networks, with random weights: the number of groups, and through log10 of the order their sizes."""

from __future__ import annotations

import pytest
import torch
from torchvision_shim import torchvision_models

from onebasin.symmetry.discover import permutation_spec

# name -> number of groups, log10 of the order of the whole group (sum of log10 n!), to one unit.
QUICK = {
    "resnet18": (12, 5934),
    "mobilenet_v2": (25, 21116),
    "squeezenet1_1": (25, 5160),
    "googlenet": (57, 13018),
}
# Slow, or hundreds of megabytes of weights several times over in float64.
BIG = {
    "vgg16_bn": (15, 35168),
    "alexnet": (7, 28326),
    "resnet50": (37, 25638),
    "densenet121": (120, 16536),
}


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in BIG)])
def test_groups(name: str) -> None:
    models = torchvision_models()
    settings = {"init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.get_model(name, weights=None, num_classes=7, **settings).eval()
    spec = permutation_spec(model, (torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),))
    assert (len(spec.sizes), spec.log10_symmetries()) == pytest.approx((QUICK | BIG)[name], abs=0.9)
