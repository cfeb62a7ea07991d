"""What lies between networks: the loss along a path, and why."""

from onebasin.analysis.calibration import Calibration, calibration
from onebasin.analysis.distance import Distance, distance
from onebasin.analysis.evaluation import Evaluation, classification
from onebasin.analysis.inputs import InputAlignment, input_alignment
from onebasin.analysis.path import Curve, evaluate_path
from onebasin.analysis.plane import Plane, evaluate_plane, pairwise_curves
from onebasin.analysis.spectrum import Spectrum, spectrum
from onebasin.analysis.taylor import PairedTest, Taylor, paired_t_test, taylor_barrier

__all__ = [
    "Calibration",
    "Curve",
    "Distance",
    "Evaluation",
    "InputAlignment",
    "PairedTest",
    "Plane",
    "Spectrum",
    "Taylor",
    "calibration",
    "classification",
    "distance",
    "evaluate_path",
    "evaluate_plane",
    "input_alignment",
    "paired_t_test",
    "pairwise_curves",
    "spectrum",
    "taylor_barrier",
]
