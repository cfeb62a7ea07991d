"""Find the permutation symmetries of any PyTorch model, align independently trained networks, merge them in one basin.

The public names, in the order of the pipeline; each is imported when it is first used, so that `onebasin --help` does
not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebasin.activations import ActivationMoments as ActivationMoments
    from onebasin.activations import Activations as Activations
    from onebasin.analysis.calibration import Calibration as Calibration
    from onebasin.analysis.calibration import calibration as calibration
    from onebasin.analysis.distance import Distance as Distance
    from onebasin.analysis.distance import distance as distance
    from onebasin.analysis.evaluation import classification as classification
    from onebasin.analysis.inputs import InputAlignment as InputAlignment
    from onebasin.analysis.inputs import input_alignment as input_alignment
    from onebasin.analysis.path import Curve as Curve
    from onebasin.analysis.path import evaluate_path as evaluate_path
    from onebasin.analysis.plane import Plane as Plane
    from onebasin.analysis.plane import evaluate_plane as evaluate_plane
    from onebasin.analysis.plane import pairwise_curves as pairwise_curves
    from onebasin.analysis.spectrum import Spectrum as Spectrum
    from onebasin.analysis.spectrum import spectrum as spectrum
    from onebasin.analysis.taylor import PairedTest as PairedTest
    from onebasin.analysis.taylor import Taylor as Taylor
    from onebasin.analysis.taylor import paired_t_test as paired_t_test
    from onebasin.analysis.taylor import taylor_barrier as taylor_barrier
    from onebasin.batchnorm import recompute_batchnorm as recompute_batchnorm
    from onebasin.best import Best as Best
    from onebasin.checkpoints import load as load
    from onebasin.checkpoints import load_permutation as load_permutation
    from onebasin.checkpoints import load_spec as load_spec
    from onebasin.checkpoints import save as save
    from onebasin.errors import OneBasinError as OneBasinError
    from onebasin.interpolate import lerp as lerp
    from onebasin.interpolate import slerp as slerp
    from onebasin.layer_inputs import LayerInputs as LayerInputs
    from onebasin.layer_inputs import LayerMoments as LayerMoments
    from onebasin.layers import LayerStatistics as LayerStatistics
    from onebasin.layout import Interleave as Interleave
    from onebasin.layout import Leaf as Leaf
    from onebasin.layout import Product as Product
    from onebasin.layout import Sum as Sum
    from onebasin.matching import ActivationMatching as ActivationMatching
    from onebasin.matching import Alignment as Alignment
    from onebasin.matching import BestOf as BestOf
    from onebasin.matching import CoordinateDescent as CoordinateDescent
    from onebasin.matching import Covariance as Covariance
    from onebasin.matching import Criterion as Criterion
    from onebasin.matching import FrankWolfe as FrankWolfe
    from onebasin.matching import Hybrid as Hybrid
    from onebasin.matching import Polish as Polish
    from onebasin.matching import Sinkhorn as Sinkhorn
    from onebasin.matching import SinkhornRebasin as SinkhornRebasin
    from onebasin.matching import StopReason as StopReason
    from onebasin.matching import StraightThrough as StraightThrough
    from onebasin.matching import WeightMatching as WeightMatching
    from onebasin.matching.align import align as align
    from onebasin.merging import Merge as Merge
    from onebasin.merging import merge_many as merge_many
    from onebasin.merging import merge_universe as merge_universe
    from onebasin.merging.merge import merge as merge
    from onebasin.merging.repair import repair as repair
    from onebasin.params import Params as Params
    from onebasin.params import params_of as params_of
    from onebasin.permutation import Permutation as Permutation
    from onebasin.report.figures import barrier_figure as barrier_figure
    from onebasin.report.figures import plot_barrier as plot_barrier
    from onebasin.report.figures_analysis import alignment_figure as alignment_figure
    from onebasin.report.figures_analysis import heat_figure as heat_figure
    from onebasin.report.figures_analysis import input_figure as input_figure
    from onebasin.report.figures_analysis import plane_figure as plane_figure
    from onebasin.report.figures_analysis import reliability_figure as reliability_figure
    from onebasin.report.figures_analysis import spectrum_figure as spectrum_figure
    from onebasin.report.record import record as record
    from onebasin.spec import Group as Group
    from onebasin.spec import PermutationSpec as PermutationSpec
    from onebasin.symmetry.discover import permutation_spec as permutation_spec
    from onebasin.symmetry.prove import prove as prove
    from onebasin.symmetry.rules import rule as rule
    from onebasin.synthetic import synthetic_batches as synthetic_batches

# Public name -> the module that has it.
_HOME = {
    "Params": "params",
    "params_of": "params",
    "Leaf": "layout",
    "Sum": "layout",
    "Product": "layout",
    "Interleave": "layout",
    "Group": "spec",
    "PermutationSpec": "spec",
    "permutation_spec": "symmetry.discover",
    "prove": "symmetry.prove",
    "rule": "symmetry.rules",
    "Permutation": "permutation",
    "load": "checkpoints",
    "save": "checkpoints",
    "load_spec": "checkpoints",
    "load_permutation": "checkpoints",
    "WeightMatching": "matching",
    "ActivationMatching": "matching",
    "Activations": "activations",
    "ActivationMoments": "activations",
    "LayerInputs": "layer_inputs",
    "LayerMoments": "layer_inputs",
    "LayerStatistics": "layers",
    "synthetic_batches": "synthetic",
    "Best": "best",
    "StraightThrough": "matching",
    "SinkhornRebasin": "matching",
    "Descent": "matching",
    "Polish": "matching",
    "BestOf": "matching",
    "Criterion": "matching",
    "Hybrid": "matching",
    "Covariance": "matching",
    "CoordinateDescent": "matching",
    "FrankWolfe": "matching",
    "Sinkhorn": "matching",
    "align": "matching.align",
    "Alignment": "matching",
    "StopReason": "matching",
    "lerp": "interpolate",
    "slerp": "interpolate",
    "merge": "merging.merge",
    "merge_many": "merging",
    "merge_universe": "merging",
    "repair": "merging.repair",
    "Merge": "merging",
    "recompute_batchnorm": "batchnorm",
    "classification": "analysis.evaluation",
    "calibration": "analysis.calibration",
    "Calibration": "analysis.calibration",
    "evaluate_path": "analysis.path",
    "Curve": "analysis.path",
    "pairwise_curves": "analysis.plane",
    "evaluate_plane": "analysis.plane",
    "Plane": "analysis.plane",
    "taylor_barrier": "analysis.taylor",
    "Taylor": "analysis.taylor",
    "paired_t_test": "analysis.taylor",
    "PairedTest": "analysis.taylor",
    "distance": "analysis.distance",
    "Distance": "analysis.distance",
    "spectrum": "analysis.spectrum",
    "Spectrum": "analysis.spectrum",
    "input_alignment": "analysis.inputs",
    "InputAlignment": "analysis.inputs",
    "plot_barrier": "report.figures",
    "barrier_figure": "report.figures",
    "alignment_figure": "report.figures_analysis",
    "spectrum_figure": "report.figures_analysis",
    "heat_figure": "report.figures_analysis",
    "input_figure": "report.figures_analysis",
    "plane_figure": "report.figures_analysis",
    "reliability_figure": "report.figures_analysis",
    "record": "report.record",
    "OneBasinError": "errors",
}

__version__ = "0.1.0"
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        expected, do = import_module("onebasin.errors").choices(name, __all__)
        raise AttributeError(f"module 'onebasin' has no attribute {name!r}; {do} ({expected})")
    value = getattr(import_module(f"onebasin.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
