"""Cameras and lidar in one model: boxes, and masks in the bird's-eye view.

Both networks see the same square from above, at cells of the same size. What they see is joined there, and added to the
features of each before its heads. What is added is zero at first, so a model that starts with the weights of
`models/street/lidar.py` and `models/street/bev.py` starts with exactly their outputs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import Loss, Padded, Task, plot

from .bev import BevModel, depth_loss, intersection_over_union, mask_losses, overlay
from .camera_scenes import CameraScenes
from .cameras import Rig, corners
from .lidar import FOOTPRINT, OBJECTS, CenterModel, Convolution, LidarDetection, score_of
from .scenes import RAYS


class FusionModel(nnx.Module):
    """A model of each kind of sensor, and what each adds to the other."""

    def __init__(self, lidar_width: int, camera_width: int, rngs: nnx.Rngs):
        self.lidar = CenterModel(lidar_width, rngs)
        self.bev = BevModel(camera_width, rngs)
        widths = (self.lidar.neck.conv.out_features, self.bev.above.neck.conv.out_features)
        self.join = Convolution(sum(widths), sum(widths), 1, rngs)
        zeros = nnx.initializers.zeros_init()
        self.add = nnx.List([nnx.Linear(sum(widths), width, kernel_init=zeros, rngs=rngs) for width in widths])

    def __call__(self, batch):
        """Returns the outputs of CenterModel, and those of BevModel."""
        points = self.lidar.features(batch["points"], batch["mask"]["points"])
        grid, depths = self.bev.cameras(batch)
        images = self.bev.above(grid)
        both = self.join(jnp.concatenate([points, images], -1))
        boxes = self.lidar.heads(points + self.add[0](both))
        return boxes, (self.bev.head(images + self.add[1](both)), depths)


@dataclasses.dataclass
class Fusion(Task):
    """Finds boxes, cells of vehicles and cells of lane lines from six images and a lidar sweep."""

    lidar_width: int = 32
    camera_width: int = 64
    depth: float = 0.5  # factor of the loss of depths
    full_precision = ("points", "boxes", "intrinsics", "poses", "depth")

    def __post_init__(self):
        self.detection = LidarDetection(self.lidar_width)

    def build(self, rngs):
        return FusionModel(self.lidar_width, self.camera_width, rngs)

    def loss(self, model, batch, rng):
        boxes, (masks, depths) = model(batch)
        return Loss.sum(
            detection=self.detection.loss(lambda *_: boxes, batch, rng),
            **mask_losses(masks, batch["masks"]),
            depth=self.depth * depth_loss(depths, batch["depth"]),
        )

    def predict(self, model, batch):
        """Returns the predictions of LidarDetection and of Bev."""
        boxes, (masks, _) = model(batch)
        return {**self.detection.predict(lambda *_: boxes, batch), "masks": jax.nn.sigmoid(masks)}

    def evaluate(self, model, batch):
        found = self.predict(model, batch)
        return {"nds": score_of(found, batch), **intersection_over_union(found["masks"] > 0.5, batch["masks"])}

    def figure(self, example, prediction):
        boxes = prediction["boxes"][prediction["score"] > 0.3][:, :7]
        bottom = np.concatenate([boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] / 2, boxes[:, 3:]], 1)
        seen = Rig(example["intrinsics"], example["poses"]).seen(corners(bottom))
        figure, axes = overlay(example, prediction["masks"], seen)
        truth = example["boxes"][example["mask"]["objects"]]
        plot.boxes(boxes[:, FOOTPRINT], None, truth[:, FOOTPRINT], ego=None, ax=axes["above"])
        return figure


def scenes(count: int = 1000, seed: int = 0, images: bool = True) -> Padded:
    """Returns scenes with images and sweeps, padded to the number of rays and to OBJECTS labels."""
    fields = {"points": ["points"], "objects": ["boxes", "label", "moving", "hits", "alone"]}
    source = CameraScenes(count, seed, lidar=True, images=images)
    return Padded(source, {"points": RAYS, "objects": OBJECTS}, fields)
