"""What a layer sees along the singular vectors of its weight: why aligning the large ones keeps the function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onebasin.analysis.singular import decompose
from onebasin.errors import ParamsError, listing
from onebasin.layers import LayerStatistics
from onebasin.progress import Progress, silent


@dataclass(frozen=True)
class LayerInputAlignment:
    """The inputs z of one weight `W = sum_i s_i u_i v_i^T`, along its right singular vectors.

    Args:
        values: `Float[Tensor, "i"]`, singular values s, falling. Of a stack of matrices (a grouped convolution), those
            of all matrices, each with the inputs of its own.
        moments: `Float[Tensor, "i"]`, `E(v_i . z)^2`: neither centred nor scaled.
        total: `E|z|^2`, of which the moments of all directions, also of those that W does not see, are the parts.
        directions: number of all directions: inputs of W, offsets of its kernel included.
    """

    values: Tensor
    moments: Tensor
    total: float
    directions: int

    def kept(self, gamma: float) -> int:
        """Return how many singular values are at least `gamma` times the largest."""
        return int((self.values >= gamma * self.values[:1]).sum())

    def share(self, gamma: float) -> float:
        """Return how much of `E|z|^2` lies along the vectors that `gamma` keeps, in [0, 1].

        Inputs without a preference would have `kept(gamma) / directions` there.
        """
        return self.moments[: self.kept(gamma)].sum().item() / self.total if self.total else 0.0

    def output_share(self, gamma: float) -> float:
        """Return how much of `E|W z|^2 = sum_i s_i^2 E(v_i . z)^2` those vectors contribute, in [0, 1]."""
        parts = self.values.square() * self.moments
        return (parts[: self.kept(gamma)].sum() / parts.sum()).item() if parts.any() else 0.0


@dataclass(frozen=True)
class InputAlignment:
    """Inputs along right singular vectors, layer by layer.

    Args:
        layers: name of the weight -> its inputs.
    """

    layers: Mapping[str, LayerInputAlignment]

    def to_json(self, gammas: tuple[float, ...] = (0.0, 0.3)) -> dict[str, Any]:
        """Return plain values; shares for each of `gammas`."""
        return {
            name: {
                "values": layer.values.tolist(),
                "moments": layer.moments.tolist(),
                "total": layer.total,
                "directions": layer.directions,
                "shares": {
                    f"{gamma:g}": {
                        "kept": layer.kept(gamma),
                        "inputs": layer.share(gamma),
                        "outputs": layer.output_share(gamma),
                    }
                    for gamma in gammas
                },
            }
            for name, layer in self.layers.items()
        }

    def __str__(self) -> str:
        width = max([5, *map(len, self.layers)])
        rows = [f"{'layer':<{width}}  large vectors   of   share of inputs   of outputs"]
        for name, layer in self.layers.items():
            kept, shares = layer.kept(0.3), (layer.share(0.3), layer.output_share(0.3))
            rows.append(f"{name:<{width}}  {kept:13} {layer.directions:4}   {shares[0]:15.1%}   {shares[1]:10.1%}")
        return "\n".join(["inputs along right singular vectors, large: singular value >= 0.3 x the largest", *rows])


def input_alignment(
    params: Mapping[str, Tensor],
    inputs: Mapping[str, LayerStatistics],
    *,
    rank: int | None = None,
    progress: Progress = silent,
) -> InputAlignment:
    """Return the second moment of each layer's inputs along every right singular vector of its weight.

        E(v_i . z)^2 = v_i . E[z z^T] v_i

    Where these are largest for the large singular values, aligning the vectors of those keeps most of what the layer
    computes: `E|W z|^2 = sum_i s_i^2 E(v_i . z)^2`, and for the outputs of two models on the same inputs

        E|W_a z - W_b z|^2 = sum_i (s_i^a)^2 E(v_i^a . z)^2 + sum_j (s_j^b)^2 E(v_j^b . z)^2
                             - 2 sum_ij s_i^a s_j^b (u_i^a . u_j^b) E[(v_i^a . z) (v_j^b . z)]

    Args:
        params: the network.
        inputs: weight name -> what it is multiplied with: `LayerInputs(model, batches, patches=True)(params)`.
        rank: as for `spectrum`: at most so many singular vectors per weight. Default: all.
        progress: called after each weight.

    Raises:
        ParamsError: statistics of weights that `params` do not have.
        UsageError: the statistics of a convolution are those of its channels only (`patches=True` measures the rest).

    Source: ito2025, section 4 (Fig. 4, Theorem 4.2).
    Differs: moments of any contracted weight of any exported model, and the shares.
    """
    unknown = [name for name in inputs if name not in params]
    if unknown:
        raise ParamsError(
            f"inputs of weights that the params do not have: {listing(unknown)}",
            "statistics and params of one architecture",
            "measure them with LayerInputs on the same model",
        )
    layers = {}
    for number, (name, seen) in enumerate(inputs.items(), 1):
        layers[name] = _along(params[name], seen, rank)
        progress("input alignment", number, len(inputs))
    return InputAlignment(layers)


def _along(weight: Tensor, seen: LayerStatistics, rank: int | None) -> LayerInputAlignment:
    matrices = seen.operand.stack(weight.detach()).flatten(2)
    products = seen.product.reshape(len(matrices), *matrices.shape[2:] * 2).to(matrices.device)
    found = [decompose(matrix, rank) for matrix in matrices]
    along = [((product @ one.v) * one.v).sum(0) for one, product in zip(found, products, strict=True)]
    values = torch.cat([one.values for one in found]).cpu()
    order = values.argsort(descending=True, stable=True)
    total = sum(product.trace().item() for product in products)
    return LayerInputAlignment(values[order], torch.cat(along).cpu()[order], total, matrices.shape[2] * len(matrices))
