"""Networks that cannot be exported, and ones whose symmetry cannot be seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class DataDependentBranch(nn.Module):
    """Takes one of two ways according to its data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x) if x.sum() > 0 else self.fc2(-x)


class PythonNumber(nn.Module):
    """Leaves the graph through `.item()`, and loops as often as the number says."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(x))
        for _ in range(int(x.sum().item()) % 3):
            x = x * 2
        return self.fc2(x)


class Wrong(nn.Module):
    """Fails for every input: the layers do not fit together."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 7), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


@torch.library.custom_op("onebasin_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An operator that nobody has a rule for."""
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("onebasin_tests::ramp", mutates_args=())
def ramp(x: Tensor) -> Tensor:
    """An operator that treats every unit differently, whatever a rule may claim."""
    return x * torch.arange(x.shape[-1], dtype=x.dtype)


@ramp.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class CustomOp(nn.Module):
    """7 hidden units pass through an operator without a rule, 5 others do not."""

    def __init__(self, operator: Callable[[Tensor], Tensor] = twice) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(3, 7), nn.Linear(7, 5), nn.Linear(5, 2)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        x = self.operator(self.fc1(x))
        return self.fc3(torch.relu(self.fc2(x)))
