"""Metrics with states that merge over microbatches, batches, devices and hosts: counts exactly, floats up to rounding.

Names are imported on first use, so that `engine.metrics.results` does not load jax. `_MODULES` repeats the imports
below, which only type checkers execute; a test compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.driving.detection import AveragePrecision
    from engine.driving.detection_score import DetectionScore
    from engine.driving.forecasting import BestOfModes
    from engine.driving.kitti_precision import KittiAveragePrecision
    from engine.driving.waymo_motion import WaymoMotion
    from engine.metrics.classification import ConfusionMatrix, PrecisionRecall, Roc
    from engine.metrics.distribution import Histogram, Quantiles
    from engine.metrics.language import BitsPerByte, Perplexity
    from engine.metrics.mean import Mean, Ratio, RootMeanSquare, Sum
    from engine.metrics.metric import Metric, collected
    from engine.metrics.results import Bins, Curve, Image, Table

__all__ = [
    "AveragePrecision",
    "BestOfModes",
    "Bins",
    "BitsPerByte",
    "ConfusionMatrix",
    "Curve",
    "DetectionScore",
    "Histogram",
    "Image",
    "KittiAveragePrecision",
    "Mean",
    "Metric",
    "Perplexity",
    "PrecisionRecall",
    "Quantiles",
    "Ratio",
    "Roc",
    "RootMeanSquare",
    "Sum",
    "Table",
    "WaymoMotion",
    "collected",
]

_MODULES = {
    "engine.metrics.classification": ("ConfusionMatrix", "PrecisionRecall", "Roc"),
    "engine.driving.detection": ("AveragePrecision",),
    "engine.driving.detection_score": ("DetectionScore",),
    "engine.metrics.distribution": ("Histogram", "Quantiles"),
    "engine.driving.forecasting": ("BestOfModes",),
    "engine.driving.waymo_motion": ("WaymoMotion",),
    "engine.driving.kitti_precision": ("KittiAveragePrecision",),
    "engine.metrics.language": ("BitsPerByte", "Perplexity"),
    "engine.metrics.mean": ("Mean", "Ratio", "RootMeanSquare", "Sum"),
    "engine.metrics.metric": ("Metric", "collected"),
    "engine.metrics.results": ("Bins", "Curve", "Image", "Table"),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
