"""The loss barrier as two networks see it from where they are: a second-order expansion around both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Literal, get_args

import torch
from scipy.stats import ttest_rel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onebasin.analysis.evaluation import Loss, check_trained
from onebasin.errors import UsageError, listing
from onebasin.functional import check_repeatable, eval_mode, labels_of, logits_of, with_params
from onebasin.params import check_shapes, params_of
from onebasin.progress import Progress, silent

Form = Literal["full", "stationary"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Taylor:
    """What a second-order expansion around both ends says of the barrier between them.

    With `mu = b - a` over the trained parameters, g and H the gradient and Hessian of the mean loss, and `lam = 0` at a
    as everywhere in this package (ito2025 has lam = 1 there):

        full:        lam (1 - lam) [(g_a - g_b) . mu + mu . (lam H_a + (1 - lam) H_b) mu / 2]
        stationary:  lam (1 - lam)                     mu . (lam H_a + (1 - lam) H_b) mu / 2

    estimate the loss at `a + lam mu` minus the chord `(1 - lam) L(a) + lam L(b)`. The full form is exact for a
    quadratic loss at any lam, for a cubic one at 1/2, and off by O(|mu|^3) otherwise. The stationary form takes both
    gradients for zero. Where they are not, the two may differ in sign: on a convex quadratic the full form is the true
    dip `-lam (1 - lam) mu . H mu / 2`, and the stationary one the same number above zero.

    Args:
        slopes: `g_a . mu` and `g_b . mu`.
        curvatures: `mu . H_a mu` and `mu . H_b mu`.
        losses: mean loss at the two ends, on the same examples.
        examples: how many there were.
    """

    slopes: tuple[float, float]
    curvatures: tuple[float, float]
    losses: tuple[float, float]
    examples: int

    def barrier(self, form: Form = "full", lam: float = 0.5) -> float:
        """Return the estimate of the barrier at `lam`, to be compared with that of a curve of kind "midpoint" at 1/2.

        Raises:
            UsageError: an unknown form, or a position outside of [0, 1].
        """
        if form not in FORMS or not 0 <= lam <= 1:
            raise UsageError(
                f"the form {form!r} at lam = {lam:g}",
                f"one of {listing(FORMS)}, and lam in [0, 1]",
                "say which form is meant: the two may differ in sign",
            )
        tilt = self.slopes[0] - self.slopes[1] if form == "full" else 0.0
        bend = lam * self.curvatures[0] + (1 - lam) * self.curvatures[1]
        return lam * (1 - lam) * (tilt + bend / 2)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, both forms at the midpoint included."""
        return {
            "slopes": list(self.slopes),
            "curvatures": list(self.curvatures),
            "losses": list(self.losses),
            "examples": self.examples,
            "midpoint": {form: self.barrier(form) for form in FORMS},
        }

    def __str__(self) -> str:
        meanings = {"full": "gradients and curvature at both ends", "stationary": "both gradients taken for zero"}
        forms = [f"  {form:<10}  {self.barrier(form):12.6g}  ({meanings[form]})" for form in FORMS]
        numbers = ", ".join(
            f"{name} {a:.6g} and {b:.6g}" for name, (a, b) in (("slopes", self.slopes), ("curvatures", self.curvatures))
        )
        return "\n".join(
            [f"Taylor estimate of the barrier at the midpoint, {self.examples} examples", *forms, f"  {numbers}"]
        )


def taylor_barrier(
    model: nn.Module,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: Loss = cross_entropy,
    *,
    progress: Progress = silent,
) -> Taylor:
    """Expand the loss around both ends of the line from `params_a` to `params_b`, and estimate the barrier from that.

    `g . mu` and `mu . H mu` are the first and second derivative of `t -> L(params + t mu)` at t = 0, by backpropagation
    through the gradient (the Hessian-vector product contracted with mu). No Hessian is formed: per batch and end it
    takes a few times what a training step does, in time and memory.

    The network is in eval mode. Buffers are those of the end at hand and held fixed: with batch norm this expands the
    loss of the two networks as stored, while on a line with recomputed statistics another function is measured.
    Where the line crosses the kink of a ReLU, the slope of the loss jumps, and no derivative at the ends sees it.
    Derivatives are in the dtype of the params, sums over batches in float64; give float32 or wider.

    Args:
        model: the architecture. Its weights, buffers and modes are left alone.
        params_a: the reference, `lam = 0`.
        params_b: the moved model, `lam = 1`.
        batches: `(inputs, labels)` or dicts with the key `"labels"`.
        loss: `(logits, labels) -> mean loss over the batch`, as for `classification`; twice differentiable.
        progress: called after each batch.

    Raises:
        ParamsError: params that do not fit `model`, or are not finite.
        UsageError: no examples, or derivatives that are not finite.

    Source: ito2025, section 3 (Theorem 3.1, Table 1); the forms are derived here, the paper's wording was not at hand.
    Differs: lam counts from the reference.
    """
    check_repeatable(batches)
    ends = (params_a, params_b)
    shapes = {name: tuple(value.shape) for name, value in params_of(model).items()}
    for params, what in zip(ends, ("params of the reference", "params of the moved model"), strict=True):
        check_shapes(params, shapes, what, "the model")
        check_trained(model, params, what)
    names = [name for name, _ in model.named_parameters()]
    mu = {name: (params_b[name].to(params_a[name]) - params_a[name]).detach() for name in names}
    sums, count, total = torch.zeros(2, 3, dtype=torch.float64), 0, length_hint(batches)
    with eval_mode(model), torch.enable_grad():
        for done, batch in enumerate(batches, 1):
            size = labels_of(batch).numel()
            found = [_derivatives(model, params, mu, batch, loss) for params in ends]
            sums, count = sums + torch.tensor(found, dtype=torch.float64) * size, count + size
            progress("Taylor estimate", done, total)
    if not count or not torch.isfinite(sums).all():
        got = "derivatives that are not finite" if count else "no examples to differentiate on"
        raise UsageError(
            got, "at least one batch, and a loss that can be differentiated twice", "check the data and the loss"
        )
    (loss_a, slope_a, bend_a), (loss_b, slope_b, bend_b) = (sums / count).tolist()
    return Taylor((slope_a, slope_b), (bend_a, bend_b), (loss_a, loss_b), count)


def _derivatives(
    model: nn.Module, params: Mapping[str, Tensor], mu: Mapping[str, Tensor], batch: Any, loss: Loss
) -> tuple[float, float, float]:
    """Return the mean loss over one batch and its first two derivatives along `mu`."""
    first = next(iter(mu.values()))
    step = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)
    moved = {name: value.detach() + step * mu[name] if name in mu else value for name, value in params.items()}
    logits = logits_of(with_params(model, moved), batch)
    value = loss(logits, labels_of(batch).to(logits.device))
    if not value.requires_grad or value.dim():
        raise UsageError(
            f"a loss of shape {tuple(value.shape)} that {'can' if value.requires_grad else 'cannot'} be differentiated",
            "one number per batch, with the graph that leads back to the weights",
            "return the mean over the batch, and compute it without no_grad, item or argmax",
        )
    (slope,) = torch.autograd.grad(value, step, create_graph=True)
    # A loss that is linear along the line has no graph left to differentiate.
    bend = torch.autograd.grad(slope, step, materialize_grads=True)[0] if slope.requires_grad else torch.zeros(())
    return value.item(), slope.item(), bend.item()


@dataclass(frozen=True)
class PairedTest:
    """A paired t-test of estimates against truths, over trials.

    Args:
        difference: mean of estimate minus truth.
        statistic: Student's t; NaN if all differences are equal.
        p: two-sided probability of differences at least as far from zero, if estimates were right on average.
        trials: how many pairs there were.
    """

    difference: float
    statistic: float
    p: float
    trials: int


def paired_t_test(estimates: Sequence[float], truths: Sequence[float]) -> PairedTest:
    """Test whether estimates of the barrier differ from the true ones by more than chance over trials.

    Args:
        estimates: one per trial, as `Taylor.barrier()`.
        truths: the barrier measured in the same trial, as `Curve.barrier("midpoint")`.

    Raises:
        UsageError: fewer than two trials, or not one truth per estimate.

    Source: ito2025, Table 1.
    """
    if len(estimates) != len(truths) or len(truths) < 2:
        raise UsageError(
            f"{len(estimates)} estimates and {len(truths)} truths",
            "one of each per trial, and two trials or more",
            "repeat with other seeds",
        )
    apart = [estimate - truth for estimate, truth in zip(estimates, truths, strict=True)]
    found = ttest_rel(estimates, truths)
    return PairedTest(sum(apart) / len(apart), float(found.statistic), float(found.pvalue), len(apart))
