"""torchvision, where it can be had: a wheel built for CUDA does not import beside a CPU build of torch without help."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

import pytest
import torch


@cache
def operators() -> torch.library.Library:
    """Declare the two operators that torchvision's Python part expects its compiled part to have defined."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def torchvision_models() -> ModuleType:
    """Return `torchvision.models`; skip the test where torchvision is missing or broken."""
    for attempt in (lambda: None, operators):
        try:
            attempt()
            import torchvision.models

            return torchvision.models
        except ImportError as error:
            pytest.skip(f"torchvision: {error}")
        except RuntimeError as error:
            reason = str(error)
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
    pytest.skip(f"torchvision: {reason}")
