"""What a layer sees: statistics of the inputs and outputs of a weight, and how it lies in its matrix product."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from onebasin.errors import UsageError
from onebasin.moments import SecondStatistics


@dataclass(frozen=True)
class Operand:
    """How a weight is read as a stack of matrices: y[g, o] = sum over i, k of W[g, o, i, k] x[g, i, k].

    Args:
        sizes: of the dimensions (matrices g..., outputs o..., inputs i..., kernel offsets k...) of the weight.
        strides: of these dimensions, in elements of a contiguous weight.
        offset: of the first element.
        counts: how many of the dimensions are matrices, outputs and inputs; the others are kernel offsets.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    counts: tuple[int, int, int]

    def stack(self, weight: Tensor) -> Tensor:
        """Return `Float[Tensor, "matrices out in offsets"]`, the weight as it is multiplied."""
        view = self._view(weight.contiguous())
        matrices, out, inputs = self.counts
        cuts = (0, matrices, matrices + out, matrices + out + inputs, len(self.sizes))
        shape = [view.shape[start:stop].numel() for start, stop in itertools.pairwise(cuts)]
        return view.reshape(shape)

    def put(self, weight: Tensor, stack: Tensor) -> Tensor:
        """Return `weight` with the elements that `stack` has places for replaced by those of `stack`."""
        result = weight.to(stack.dtype, copy=True).contiguous()
        self._view(result).copy_(stack.reshape(self.sizes))
        return result

    def _view(self, weight: Tensor) -> Tensor:
        return weight.as_strided(self.sizes, self.strides, weight.storage_offset() + self.offset)


@dataclass(frozen=True)
class LayerStatistics:
    """Second moments of what a weight is multiplied with, and the deviation of what comes out.

    Args:
        operand: how the weight is read as a matrix.
        inputs: moments of the input channels over samples and positions: `mean` is `"in"`, `covariance` (centred)
            `"in in"`. A weight that is a stack of matrices, as that of a grouped convolution, has one more dimension
            in front: `"matrices in in"`.
        deviation: `Float[Tensor, "out"]` or `"matrices out"`, of every output channel, bias and all places included.
        patches: `Float[Tensor, "in*k in*k"]` or one more dimension, `E[u u^T]` of what the kernel of a convolution
            sees: neither centred nor scaled, laid out as `weight.flatten(1)`. None if it was not asked for.
    """

    operand: Operand
    inputs: SecondStatistics
    deviation: Tensor
    patches: Tensor | None = None

    @property
    def product(self) -> Tensor:
        """`E[u u^T]` of all that one output is computed from: `"in*k in*k"`, neither centred nor scaled.

        Raises:
            UsageError: the weight is a kernel of several offsets, and patches were not measured.
        """
        if self.patches is not None:
            return self.patches
        if len(self.operand.sizes) > sum(self.operand.counts):
            do = "pass patches=True (they are not measured for transposed convolutions)"
            raise UsageError("moments of a convolution's channels only", "moments of its patches", do)
        return self.inputs.product
