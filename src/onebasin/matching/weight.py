"""Weight matching: the permutation that brings the weights of two models closest together."""

from __future__ import annotations

from dataclasses import dataclass

from onebasin.matching.alignment import Alignment, Matcher
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.matching.features import FeatureName, Features, features_of
from onebasin.matching.objective import Objective
from onebasin.matching.solvers import Solver, SolverName, solver_of
from onebasin.params import Params
from onebasin.permutation import Permutation
from onebasin.progress import Progress, silent
from onebasin.spec import PermutationSpec


@dataclass(frozen=True)
class WeightMatching:
    """Minimise the distance of the weights, | A - pi(B) |^2, which is to maximise sum over tensors of < A, pi(B) >.

    Every trained tensor that a group moves counts with weight 1: kernels, biases, norm scales. Running statistics move
    with their units but are not matched, tied tensors count once. Half precision is accumulated in float32.

    Args:
        seed: seed of the order in which groups are visited.
        max_sweeps: default from ainsworth2023's code.
        faq_steps: for groups that stand on two axes of one tensor (recurrent layers); see `CoordinateDescent`.
        solver: "coordinate-descent" (the paper's); "frank-wolfe", which reaches more at some four times the cost; or
            "sinkhorn", gradient ascent on soft orders. In Python also a solver with settings of its own, as
            `FrankWolfe(steps=100)`, which then count alone.
        features: "raw" (the paper's): the weights themselves; "unit": every tensor counts alike, whatever its norm; in
            Python also `Covariance(...)`, which weighs them by what they see of data.

    Source: ainsworth2023, section 3.2 and Alg. 1.
    Differs: see `CoordinateDescent`.
    """

    seed: int = 0
    max_sweeps: int = 100
    faq_steps: int = 30
    solver: SolverName | Solver = "coordinate-descent"
    features: FeatureName | Features = "raw"

    def __post_init__(self) -> None:
        self._solver()  # which checks the settings

    def objective(
        self, spec: PermutationSpec, params_a: Params, params_b: Params, progress: Progress = silent
    ) -> Objective:
        """Return the objective, with the weights as features."""
        return Objective(spec, features_of(self.features, spec, params_a, params_b, progress))

    def solve(self, objective: Objective, start: Permutation, matcher: Matcher, progress: Progress) -> Alignment:
        """Maximise any objective with the solver chosen here; `matcher` is noted in the result."""
        return self._solver().maximise(objective, start, matcher, progress)

    def _solver(self) -> Solver:
        return solver_of(self.solver, CoordinateDescent(self.seed, self.max_sweeps, self.faq_steps))

    def match(
        self,
        spec: PermutationSpec,
        params_a: Params,
        params_b: Params,
        start: Permutation,
        progress: Progress = silent,
    ) -> Alignment:
        """Maximise the objective from `start` on."""
        return self.solve(self.objective(spec, params_a, params_b, progress), start, self, progress)
