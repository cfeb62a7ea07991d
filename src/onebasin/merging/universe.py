"""Several networks in one universe: an order of units that is common to all, found by Frank-Wolfe steps of all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from onebasin.errors import UsageError
from onebasin.matching import Matcher, StopReason
from onebasin.matching.assignment import solve
from onebasin.matching.faq import line_search
from onebasin.matching.mixture import Mixture, Slot, slots
from onebasin.matching.soft import Pairs, nearest
from onebasin.matching.terms import Term, feature_terms
from onebasin.merging.many import MAX_ROUNDS, Rounds
from onebasin.merging.merge import Merge
from onebasin.params import compute_dtype
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec

# How often a step is halved that would lower the relaxed objective, before it is given up.
HALVINGS = 8


def merge_universe(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, Tensor]],
    matcher: Matcher | None = None,
    *,
    weights: Sequence[float] | None = None,
    steps: int = 40,
    tolerance: float = 1e-6,
    seed: int = 0,
    max_rounds: int = MAX_ROUNDS,
    progress: Progress = silent,
) -> Merge:
    """Bring all models into one universe, an order of units that belongs to none of them, and return their mean.

    Maximises the sum over all pairs of `w_i w_j < P_i theta_i, P_j theta_j >`, which is to minimise the distance to the
    mean, as `merge_many` does. Here the orders are soft until the end: every model in turn takes a Frank-Wolfe step,
    towards the best assignments of the gradient at the soft orders of all the others, as far as the objective rises.
    The heaviest model begins in its own order, the others at the mean of all orders. Then each order is rounded to the
    nearest permutation, and the rounds of `merge_many` end it. On independent networks this comes closer than
    `merge_many` alone, at about twice the cost.

    The permutation from one model to another goes through the universe, so around every cycle of models they compose to
    the identity. At the end the universe is turned so that the first model's permutation is the identity.

    Besides the models given it needs the memory of one more, and while one model moves, four matrices n x n per group.

    Args:
        spec: the symmetries of their architecture.
        models: two or more sets of params.
        matcher: how a model is aligned to the mean of the others in the rounds at the end; default `WeightMatching()`.
            The steps before look at weights, whatever the matcher.
        weights: how much each model counts, not negative, at least two of them positive; default: all the same.
        steps: at most so many of each model.
        tolerance: the steps end when those of all models together raise the objective by less than this share of it.
        seed: of the rounds at the end.
        max_rounds: of them; give up after so many.
        progress: called after each step, then as by `merge_many`.

    Returns:
        The mean and how it came about, never further from the models than without permutations (but with a matcher that
        lowers a criterion, see `merge_many`); in `Merge.spread` the steps count as the first round. After an interrupt
        from the keyboard the best so far is returned, and `stop` says so. A network with batch norm needs
        `recompute_batchnorm` before use.

    Raises:
        UsageError: fewer than two models, no steps, no rounds, no matcher, or weights that do not fit.
        ParamsError: params that do not fit the spec, or are not finite.

    Source: crisostomi2024, section 3 (n models).
    Differs: models step in turn, each by a line search of its own, exact where a tensor has no more than two groups;
        starts near the barycentre; weights; ends with the rounds of merge_many; nested groups.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}", "at least one", "use `merge_many` to go without")
    run = Rounds.of(spec, models, matcher, weights, max_rounds)
    run.note_spread()
    stop = _relaxed(run, steps, tolerance, progress) or run.search(seed, progress)
    how = {"steps": steps, "tolerance": tolerance, "seed": seed, "max_rounds": max_rounds}
    return run.merged(stop, "Frank-Wolfe in one universe, then every model aligned to the mean of the others", how)


def _relaxed(run: Rounds, steps: int, tolerance: float, progress: Progress) -> StopReason | None:
    """Bring the models of a run into a universe if they are closer there; return why it ended early, if it did."""
    universe, stop = Universe(run.spec, run.models, run.shares), None
    try:
        universe.relax(steps, tolerance, progress)
    except KeyboardInterrupt:
        stop = StopReason.INTERRUPTED
    before, run.permutations = run.permutations, universe.rounded()
    if run.squared_distance() > run.spread[-1]:
        run.permutations = before
    if stop:
        run.note_spread()
    return stop


@dataclass
class Universe:
    """The soft orders of all models, and the sum of all models in them.

    Args:
        spec: what may be permuted.
        models: the models as given.
        shares: how much each counts.
        soft: their soft orders.
        values: the relaxed objective, sum over pairs of w_i w_j < P_i theta_i, P_j theta_j >, at first and after every
            step of a model.
    """

    spec: PermutationSpec
    models: Sequence[Mapping[str, Tensor]]
    shares: Sequence[float]
    soft: list[Mixture] = field(init=False)
    values: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._identity, numbers = Permutation.identity(self.spec), range(len(self.models))
        self._heaviest = max(numbers, key=lambda number: self.shares[number])
        self.soft = [Mixture(self.spec, (self._identity if number == self._heaviest else None,)) for number in numbers]
        self._sum = {name: self._zeros(name) for name in self.spec.matched}
        values = []
        for number in numbers:
            values.append(self.shares[number] * self._value(number, self.soft[number]))
            self._put(number)
        self.values = [math.fsum(values)]

    def _zeros(self, name: str) -> Tensor:
        dtype = reduce(torch.promote_types, (compute_dtype(model[name]) for model in self.models))
        return torch.zeros_like(self.models[0][name], dtype=dtype)

    def relax(self, steps: int, tolerance: float, progress: Progress) -> None:
        """Let every model step in turn, the one that began in its own order last."""
        order = sorted(range(len(self.models)), key=lambda number: number == self._heaviest)
        for step in range(steps):
            before = self.values[-1]
            for done, number in enumerate(order, 1):
                self.step(number)
                progress("relaxing", step * len(order) + done, steps * len(order))
            if self.values[-1] - before <= tolerance * abs(self.values[-1]):
                break

    def step(self, number: int) -> None:
        """Move one model towards the best assignments of its gradient, as far as that raises the objective."""
        own = self.soft[number]
        gradient, value = self._taken_out(number)
        towards = nearest(gradient, self._identity, solve)
        there = Mixture(self.spec, (towards,))
        slope = math.fsum(there.worth(pairs) - own.worth(pairs) for pairs in gradient.values())
        ahead = self._value(number, there)
        length = line_search(torch.tensor(slope), torch.tensor(ahead - value - slope)).item()
        for _ in range(HALVINGS):
            moved = own.towards(towards, length)
            reached = self._value(number, moved)
            if reached >= value:
                break
            length /= 2
        else:
            moved, reached = own, value
        self.soft[number] = moved
        self._put(number)
        self.values.append(self.values[-1] + self.shares[number] * (reached - value))

    def rounded(self) -> list[Permutation]:
        """Return the nearest permutation of every model."""
        return [mixture.rounded(self._identity, solve) for mixture in self.soft]

    def _taken_out(self, number: int) -> tuple[dict[str, Pairs], float]:
        """Take a model out of the sum; return what each of its pairs of positions is worth, and its soft order."""
        gradient: dict[str, Pairs] = {}
        values, own = [], self.soft[number]
        for term in self._terms(number):
            places = slots(self.spec, term.b)
            mixed = own.mixed(term.b, places)
            term.a.values.sub_(mixed.aligned(term.a.dims), alpha=self.shares[number])
            values.append(Term(term.a, mixed).total())
            for slot in places:
                others = own.mixed(term.b, [other for other in places if other is not slot])
                pairs = gradient.setdefault(slot[0].group, {})
                for dims, gain in _gains(Term(term.a, others), slot).items():
                    pairs[dims] = pairs[dims] + gain if dims in pairs else gain
        return gradient, math.fsum(values)

    def _value(self, number: int, mixture: Mixture) -> float:
        """Return what a soft order of a model is worth that has been taken out of the sum."""
        terms = self._terms(number)
        return math.fsum(Term(term.a, mixture.mixed(term.b, slots(self.spec, term.b))).total() for term in terms)

    def _put(self, number: int) -> None:
        """Add a model in its soft order to the sum."""
        for term in self._terms(number):
            mixed = self.soft[number].mixed(term.b, slots(self.spec, term.b))
            term.a.values.add_(mixed.aligned(term.a.dims), alpha=self.shares[number])

    def _terms(self, number: int) -> Iterator[Term]:
        """Yield the products of the sum, as a view that can be written to, and a model, tensor by tensor."""
        for name in self.spec.matched:
            for term in feature_terms(self._sum[name], self.models[number][name], self.spec.tensors[name]):
                yield term.widened()


def _gains(term: Term, slot: Slot) -> Pairs:
    """Return what the pairs of a slot are worth, all other dimensions of whose tensor have been moved."""
    free = term.freed(slot[0].group, slot[0].place)
    olds = sorted(dim for dim in free.b.dims if not dim.new)
    dims = (*(dim._replace(new=True) for dim in olds), *olds)
    return {dims: free.contract(dims)}
