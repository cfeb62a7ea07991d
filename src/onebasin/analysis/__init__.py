"""What lies between networks: the loss along a path, and why."""

from onebasin.analysis.evaluation import Evaluation, classification
from onebasin.analysis.path import Curve, evaluate_path

__all__ = ["Curve", "Evaluation", "classification", "evaluate_path"]
