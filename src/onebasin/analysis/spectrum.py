"""Singular values of the weights of two networks, and how far their singular vectors agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from onebasin.analysis.singular import Singular, decompose
from onebasin.errors import UsageError, listing
from onebasin.params import check_finite, check_shapes
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec


@dataclass(frozen=True)
class LayerSpectrum:
    """One weight matrix W of both models, `W = sum_i s_i u_i v_i^T`, over all singular vectors that carry a value.

    Args:
        values_a: `Float[Tensor, "i"]`, singular values of the reference, falling.
        values_b: `Float[Tensor, "j"]`, those of the other model.
        products: `Float[Tensor, "i j"]`, `(u_i^a . u_j^b) (v_i^a . v_j^b)`.
        residuals: of the decompositions of both, see `Singular`; zero if they are exact.
        complete: whether the singular values of either are all there are.
    """

    values_a: Tensor
    values_b: Tensor
    products: Tensor
    residuals: tuple[float, float] = (0.0, 0.0)
    complete: tuple[bool, bool] = (True, True)

    @property
    def ratio(self) -> float:
        """The factor c for which `c s^a` comes closest to `s^b`; 1 for equal singular values."""
        a, b = self._padded()
        return (a @ b / (a @ a)).item() if a.any() else 0.0

    @property
    def difference(self) -> float:
        """`|s^a - s^b| / |s^a|`: how far the singular values of the two are apart. 0 for equal ones."""
        a, b = self._padded()
        return ((a - b).norm() / a.norm()).item() if a.any() else 0.0

    @property
    def shape_difference(self) -> float:
        """`|s^b - c s^a| / |s^b|` with c the `ratio`: what a constant multiple leaves of the difference."""
        a, b = self._padded()
        return ((b - self.ratio * a).norm() / b.norm()).item() if b.any() else 0.0

    def beyond(self, gamma: float, absolute: bool = False) -> bool:
        """Return whether `gamma` may keep singular vectors that were not computed."""
        kept = self.kept(gamma, absolute)
        pair = (self.values_a, self.values_b)
        return any(count == len(v) and not done for count, v, done in zip(kept, pair, self.complete, strict=True))

    def _padded(self) -> tuple[Tensor, Tensor]:
        """Return both series of singular values in one length; what one lacks is zero to rounding."""
        length = max(len(self.values_a), len(self.values_b))
        a, b = (pad(values, (0, length - len(values))) for values in (self.values_a, self.values_b))
        return a, b

    def kept(self, gamma: float, absolute: bool = False) -> tuple[int, int]:
        """Return how many singular values of each model are at least `gamma` times the largest (or `gamma` itself)."""
        pair = (self.values_a, self.values_b)
        return tuple(  # type: ignore[return-value]  # a pair gives a pair
            int((values >= (gamma if absolute else gamma * values[:1])).sum()) for values in pair
        )

    def overlap(self, gamma: float, absolute: bool = False) -> float:
        """Return the sum of `products` over the vectors kept, the numerator of R.

        It is the inner product of the truncated polar factors `U_a V_a^T` and `U_b V_b^T`; signs of singular vectors,
        and bases of those with equal values, do not matter.
        """
        kept_a, kept_b = self.kept(gamma, absolute)
        return self.products[:kept_a, :kept_b].sum().item()

    def inner_product(self) -> float:
        """Return `sum_ij s_i^a s_j^b (u_i^a . u_j^b) (v_i^a . v_j^b)`, which is the inner product of the weights.

        So weight matching maximises the overlap of singular vectors weighted by their values.

        Source: ito2025, Theorem 4.1.
        """
        return (self.values_a @ self.products @ self.values_b).item()


@dataclass(frozen=True)
class Spectrum:
    """Singular-vector comparison of two sets of params, layer by layer.

    Args:
        layers: name of the weight -> its comparison.
        gamma: which singular vectors count: those with at least `gamma` times the largest value of the same weight.
        absolute: read `gamma` as a singular value instead of a ratio.
    """

    layers: Mapping[str, LayerSpectrum]
    gamma: float
    absolute: bool = False

    def __post_init__(self) -> None:
        _check_gamma(self.gamma, self.absolute)
        short = [name for name, layer in self.layers.items() if layer.beyond(self.gamma, self.absolute)]
        if short:
            raise UsageError(
                f"gamma = {self.gamma:g}, which may keep more singular vectors than were computed of {listing(short)}",
                "a gamma that ends within those that were computed",
                "raise rank, leave it out to compute all, or raise gamma",
            )

    @property
    def alignment(self) -> float:
        """R in [-1, 1]: summed overlap of all layers, divided by the summed number of vectors. 1: the same vectors."""
        count = sum(self.counts.values())
        return sum(layer.overlap(self.gamma, self.absolute) for layer in self.layers.values()) / count if count else 0.0

    @property
    def layer_alignment(self) -> dict[str, float]:
        """R of each layer by itself; 0 where no vector is kept."""
        return {
            name: self.layers[name].overlap(self.gamma, self.absolute) / count if count else 0.0
            for name, count in self.counts.items()
        }

    @property
    def counts(self) -> dict[str, int]:
        """How many singular vectors of each layer count: the smaller of what the two models keep."""
        return {name: min(pair) for name, pair in self.kept.items()}

    @property
    def kept(self) -> dict[str, tuple[int, int]]:
        """How many singular vectors of each layer the reference and the other model keep."""
        return {name: layer.kept(self.gamma, self.absolute) for name, layer in self.layers.items()}

    def at(self, gamma: float, absolute: bool | None = None) -> Spectrum:
        """Return the same comparison with another threshold, read as this one is unless `absolute` says otherwise.

        Nothing is decomposed again.

        Raises:
            UsageError: `gamma` is negative, a ratio above 1, or asks for more vectors than were computed.
        """
        return replace(self, gamma=gamma, absolute=self.absolute if absolute is None else absolute)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: R in total and by layer, vectors kept, singular values."""
        alone = self.layer_alignment
        return {
            "gamma": self.gamma,
            "absolute": self.absolute,
            "alignment": self.alignment,
            "layers": {
                name: {
                    "alignment": alone[name],
                    "kept": list(self.kept[name]),
                    "value_ratio": layer.ratio,
                    "value_difference": layer.difference,
                    "value_shape_difference": layer.shape_difference,
                    "residuals": list(layer.residuals),
                    "values_a": layer.values_a.tolist(),
                    "values_b": layer.values_b.tolist(),
                }
                for name, layer in self.layers.items()
            },
        }

    def __str__(self) -> str:
        rule = f"singular values of at least {self.gamma:g}{'' if self.absolute else ' x the largest'}"
        width = max([3, *map(len, self.layers)])
        rows = [f"{'':<{width}}        R   vectors kept (a, b)   of"]
        for name, layer in self.layers.items():
            kept_a, kept_b = self.kept[name]
            of = max(layer.products.shape)
            rows.append(f"{name:<{width}}  {self.layer_alignment[name]:7.4f}   {kept_a:8} {kept_b:9}   {of:4}")
        total = f"{'all':<{width}}  {self.alignment:7.4f}   {sum(self.counts.values()):8}"
        return "\n".join([f"alignment R of singular vectors, {rule}", *rows, total])


def spectrum(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    gamma: float = 0.3,
    *,
    absolute: bool = False,
    rank: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Spectrum:
    """Compare the singular vectors of two networks, layer by layer.

        R(a, b) = sum_l sum_ij (u_li^a . u_lj^b) (v_li^a . v_lj^b) / sum_l n_l

    over every trained weight l with two or more axes, first and last layers included, and over all pairs (i, j) of
    singular vectors that `gamma` keeps; n_l is the smaller of the two numbers kept, so |R| <= 1. Kernels of
    convolutions are unfolded to `out x (in * positions)`; biases and norm parameters are no matrices and left out.
    Singular values that are zero to rounding (dead units) have no vectors of their own and never count.

    Args:
        spec: says which tensors are trained.
        params_a: the reference.
        params_b: the other model: as it is, aligned, or merged. R is about 0 between seeds, and 1 for equal weights.
        gamma: threshold; default 0.3, the one besides 0 that ito2025 reports.
        absolute: read `gamma` as a singular value instead of a ratio to the largest one of the same weight.
        rank: compute this many singular vectors of a weight at most, those of wide ones by a randomised method, whose
            residual is reported; `gamma` must not ask for more. Default: all, exactly.
        seed: of the randomised method.
        progress: called after each weight.

    Raises:
        ParamsError: params that do not fit the spec, or are not finite.
        UsageError: `gamma` is negative, a ratio above 1, or asks for more vectors than `rank` allows.

    Source: ito2025, section 4 (Fig. 2).
    Differs: permuted weights are passed in instead of permuting vectors, and what is computed does not depend on the
    basis that the decomposition picks among equal singular values.
    """
    _check_gamma(gamma, absolute)
    if rank is not None and rank < 1:
        raise UsageError(f"rank={rank}", "at least one singular vector", "leave it out to compute all of them")
    for params, what in ((params_a, "the reference"), (params_b, "the other model")):
        check_shapes(params, spec.shapes, what)
        check_finite({name: params[name] for name in spec.trained}, what)
    names = [name for name in spec.trained if len(spec.tensors[name]) > 1 and params_a[name].is_floating_point()]
    layers = {}
    for number, name in enumerate(names, 1):
        a, b = params_a[name], params_b[name].to(params_a[name].device)
        layers[name] = _compare(decompose(a, rank, seed), decompose(b, rank, seed))
        progress("singular vectors", number, len(names))
    return Spectrum(layers, gamma, absolute)


def _compare(a: Singular, b: Singular) -> LayerSpectrum:
    products = (a.u.T @ b.u).mul_(a.v.T @ b.v)
    values_a, values_b = a.values.cpu(), b.values.cpu()
    return LayerSpectrum(
        values_a, values_b, products.cpu(), (a.residual, b.residual), complete=(a.complete, b.complete)
    )


def _check_gamma(gamma: float, absolute: bool) -> None:
    if gamma < 0 or (gamma > 1 and not absolute):
        raise UsageError(
            f"gamma = {gamma:g}",
            "a ratio to the largest singular value, in [0, 1], or with absolute=True a singular value",
            "use 0 for all singular vectors, 0.3 for the large ones",
        )
