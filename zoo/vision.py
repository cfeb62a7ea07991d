"""torchvision and timm."""

from __future__ import annotations

from functools import cache

import torch


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
