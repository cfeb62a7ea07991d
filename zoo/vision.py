"""torchvision and timm: image, segmentation and video models with random weights, on images as small as they allow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch

from zoo.setups import Made, Setup

SIDE = 64
# Models that need more than 64 pixels, or to be told how many there are.
SIDES = {"inception_v3": 80, "maxvit_t": 224, "vit_h_14": 56}
CLIPS = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}
CLIP = (4, 32)  # frames, side
# Hundreds of millions of weights, several times over in float64: only with --all.
HUGE = frozenset(
    """convnext_large regnet_y_128gf regnet_y_32gf regnet_x_32gf vit_h_14 vit_l_16 vit_l_32 efficientnet_b7
    efficientnet_v2_l wide_resnet101_2 resnext101_32x8d resnext101_64x4d swin_b swin_v2_b swin3d_b vgg13 vgg13_bn vgg19
    vgg19_bn""".split()
)


@cache
def torchvision_operators() -> torch.library.Library | None:
    """Declare the operators that torchvision's compiled part defines, where it does not load.

    A wheel built for CUDA beside a CPU build of torch cannot be imported otherwise, nor can what imports it.
    """
    if torch.cuda.is_available():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def torchvision_setups(everything: bool = False) -> Iterator[Setup]:
    """Yield torchvision's classification, segmentation and video models.

    Args:
        everything: the largest too.

    Raises:
        ImportError: torchvision is not installed.
    """
    torchvision_operators()
    from torchvision import models

    kinds = {_classifier: models, _segmenter: models.segmentation, _video: models.video}
    for make, module in kinds.items():
        for name in models.list_models(module=module):
            if everything or name not in HUGE:
                yield Setup(name, partial(make, name))


def timm_setups() -> Iterator[Setup]:
    """Yield one or more small models of every family in timm. Raises ImportError where timm is not installed."""
    torchvision_operators()
    import timm

    known = set(timm.list_models())
    for name in TIMM.split():
        if name in known:
            yield Setup(f"timm:{name}", partial(_timm, name))


def _classifier(name: str) -> Made:
    from torchvision import models

    side = SIDES.get(name, SIDE)
    settings: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_"):
        settings["image_size"] = side
    return models.get_model(name, weights=None, **settings), (torch.randn(2, 3, side, side),)


def _segmenter(name: str) -> Made:
    from torchvision import models

    return models.get_model(name, weights=None, weights_backbone=None), (torch.randn(2, 3, SIDE, SIDE),)


def _video(name: str) -> Made:
    from torchvision import models

    frames, side = CLIPS.get(name, CLIP)
    return models.get_model(name, weights=None), (torch.randn(2, 3, frames, side, side),)


def _timm(name: str) -> Made:
    import timm

    model = timm.create_model(name, pretrained=False)
    return model, (torch.randn(2, *model.pretrained_cfg["input_size"]),)


TIMM = """
resnet18
"""
