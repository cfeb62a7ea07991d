"""Matching: (spec, reference, moved) -> Alignment. Objectives say what to match, solvers how."""

from onebasin.matching.activation import ActivationMatching
from onebasin.matching.align import align
from onebasin.matching.alignment import Alignment, Certificate, Matcher, StopReason
from onebasin.matching.best_of import BestOf
from onebasin.matching.coordinate_descent import CoordinateDescent
from onebasin.matching.criterion import Criterion
from onebasin.matching.descent import Descent
from onebasin.matching.features import Covariance, Features
from onebasin.matching.frank_wolfe import FrankWolfe
from onebasin.matching.hybrid import Hybrid
from onebasin.matching.objective import Feature, Objective
from onebasin.matching.polish import Polish
from onebasin.matching.sinkhorn import Sinkhorn
from onebasin.matching.sinkhorn_rebasin import SinkhornRebasin
from onebasin.matching.solvers import Solver
from onebasin.matching.straight_through import StraightThrough
from onebasin.matching.weight import WeightMatching

__all__ = [
    "ActivationMatching",
    "Alignment",
    "BestOf",
    "Certificate",
    "CoordinateDescent",
    "Covariance",
    "Criterion",
    "Descent",
    "Feature",
    "Features",
    "FrankWolfe",
    "Hybrid",
    "Matcher",
    "Objective",
    "Polish",
    "Sinkhorn",
    "SinkhornRebasin",
    "Solver",
    "StopReason",
    "StraightThrough",
    "WeightMatching",
    "align",
]
