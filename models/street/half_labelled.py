"""Vehicles and lane lines from two datasets of camera scenes, of which each has the labels of one of them only.

One network with two heads learns from both datasets in each step.
"""

import dataclasses

import optax
from flax import nnx

from engine import Loss, Task, metrics

from .bev import Above, LiftSplat, depth_loss
from .camera_scenes import MASKS, CameraScenes
from .lidar import STRIDE, split
from .parts import wide_linear


class Labelled:
    """Source of camera scenes with the mask of one kind only: `mask`, bool `[GRID, GRID]`."""

    def __init__(self, kind: str, count: int = 1000, seed: int = 0):
        self.scenes, self.index = CameraScenes(count, seed), MASKS.index(kind)

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        scene = self.scenes[index]
        kept = {name: scene[name] for name in ("images", "intrinsics", "poses", "depth")}
        return {**kept, "mask": scene["masks"][..., self.index]}


class TwoHeads(nnx.Module):
    """Lift, splat, convolutions from above, and a head for each kind of mask."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.cameras = LiftSplat(width, width // 4, rngs)
        self.above = Above(width // 4, width // 2, rngs)
        first = nnx.initializers.constant(-2.0)
        self.heads = nnx.Dict({name: nnx.Linear(width // 2, STRIDE**2, bias_init=first, rngs=rngs) for name in MASKS})

    def __call__(self, batch):
        """Returns kind -> logits `[batch, GRID, GRID]`, and logits of the depth of each patch."""
        grid, depths = self.cameras(batch)
        x = self.above(grid)
        return {name: split(wide_linear(head, x))[..., 0] for name, head in self.heads.items()}, depths


def mask_loss(logits, mask) -> Loss:
    """Returns the cross-entropy of a mask, whose cells, which are few, count three times."""
    return 10 * Loss.of(optax.sigmoid_binary_cross_entropy(logits, mask) * (1 + 2 * mask))


@dataclasses.dataclass
class TwoMasks(Task):
    """Finds the cells of vehicles and of lane lines, each taught by a dataset of its own: `vehicle` and `lane`."""

    width: int = 64
    depth: float = 0.5  # factor of the loss of depths
    full_precision = ("intrinsics", "poses", "depth")

    def build(self, rngs):
        return TwoHeads(self.width, rngs)

    def loss(self, model, batch, rng):
        losses = {}
        for kind, scenes in batch.items():
            logits, depths = model(scenes)
            mask = mask_loss(logits[kind], scenes["mask"])
            losses[kind] = Loss.sum(mask=mask, depth=self.depth * depth_loss(depths, scenes["depth"]))
        return losses

    def evaluate(self, model, batch):
        """Returns the intersection over union of the mask, over all cells of all scenes."""
        [(kind, scenes)] = batch.items()
        found, mask = model(scenes)[0][kind] > 0, scenes["mask"]
        return {"iou": metrics.Ratio.of(found & mask, found | mask)}
