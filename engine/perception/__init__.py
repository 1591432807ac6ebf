"""Operations of perception models that JAX lacks: sampling, scatter, boxes, targets. All have static shapes.

Every function takes a batch as the first dimension, and works on the rows of each device without those of the others.
Names are imported on first use. `_MODULES` repeats the imports below, which only type checkers execute; a test
compares the two. A file is not named like a public name: importing the file would replace the name.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.perception.bilinear import grid_sample
    from engine.perception.cells import FirstPoints, Occupied, cell_indices, first_points, occupied_cells
    from engine.perception.chamfer import chamfer_distance
    from engine.perception.deformable import DeformableAttention, deformable_attention
    from engine.perception.heatmaps import Peaks, focal_loss, gaussian_radius, heatmap_peaks, heatmap_targets
    from engine.perception.lifting import frustum_points, lift_splat
    from engine.perception.matching import Matched, match
    from engine.perception.polylines import PolylineEncoder
    from engine.perception.rectangles import box_iou, box_iou_3d, rotated_intersection, rotated_iou
    from engine.perception.scatter import scatter_max, scatter_mean, scatter_sum
    from engine.perception.sparse import SparseGrid, inverse_conv, neighbours, strided_conv, submanifold_conv
    from engine.perception.suppression import Kept, circle_nms, nms, soft_nms

__all__ = [
    "DeformableAttention",
    "FirstPoints",
    "Kept",
    "Matched",
    "Occupied",
    "Peaks",
    "PolylineEncoder",
    "SparseGrid",
    "box_iou",
    "box_iou_3d",
    "cell_indices",
    "chamfer_distance",
    "circle_nms",
    "deformable_attention",
    "first_points",
    "focal_loss",
    "frustum_points",
    "gaussian_radius",
    "grid_sample",
    "heatmap_peaks",
    "heatmap_targets",
    "inverse_conv",
    "lift_splat",
    "match",
    "neighbours",
    "nms",
    "occupied_cells",
    "rotated_intersection",
    "rotated_iou",
    "scatter_max",
    "scatter_mean",
    "scatter_sum",
    "soft_nms",
    "strided_conv",
    "submanifold_conv",
]

_MODULES = {
    "engine.perception.bilinear": ("grid_sample",),
    "engine.perception.cells": ("FirstPoints", "Occupied", "cell_indices", "first_points", "occupied_cells"),
    "engine.perception.chamfer": ("chamfer_distance",),
    "engine.perception.deformable": ("DeformableAttention", "deformable_attention"),
    "engine.perception.heatmaps": ("Peaks", "focal_loss", "gaussian_radius", "heatmap_peaks", "heatmap_targets"),
    "engine.perception.lifting": ("frustum_points", "lift_splat"),
    "engine.perception.matching": ("Matched", "match"),
    "engine.perception.polylines": ("PolylineEncoder",),
    "engine.perception.rectangles": ("box_iou", "box_iou_3d", "rotated_intersection", "rotated_iou"),
    "engine.perception.scatter": ("scatter_max", "scatter_mean", "scatter_sum"),
    "engine.perception.sparse": ("SparseGrid", "inverse_conv", "neighbours", "strided_conv", "submanifold_conv"),
    "engine.perception.suppression": ("Kept", "circle_nms", "nms", "soft_nms"),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
