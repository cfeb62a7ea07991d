"""torchvision, where it can be had."""

from __future__ import annotations

from types import ModuleType

import pytest
from zoo.vision import torchvision_operators


def torchvision_models() -> ModuleType:
    """Return `torchvision.models`; skip the test where torchvision is missing or broken."""
    torchvision_operators()
    try:
        import torchvision.models
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision: {error}")
    return torchvision.models
