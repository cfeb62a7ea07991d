"""What lies between networks: the loss along a path, and why."""

from onebasin.analysis.distance import Distance, distance
from onebasin.analysis.evaluation import Evaluation, classification
from onebasin.analysis.path import Curve, evaluate_path
from onebasin.analysis.spectrum import Spectrum, spectrum

__all__ = ["Curve", "Distance", "Evaluation", "Spectrum", "classification", "distance", "evaluate_path", "spectrum"]
