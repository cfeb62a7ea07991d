"""What lies between networks: the loss along a path, and why."""

from onebasin.analysis.distance import Distance, distance
from onebasin.analysis.evaluation import Evaluation, classification
from onebasin.analysis.path import Curve, evaluate_path
from onebasin.analysis.plane import Plane, evaluate_plane, pairwise_curves
from onebasin.analysis.spectrum import Spectrum, spectrum

__all__ = [
    "Curve",
    "Distance",
    "Evaluation",
    "Plane",
    "Spectrum",
    "classification",
    "distance",
    "evaluate_path",
    "evaluate_plane",
    "pairwise_curves",
    "spectrum",
]
