"""Masks from above and boxes of the ten classes of nuScenes from six cameras.

`models/street/camera_encoders.py` has the ways from cameras to a grid. Boxes are those of `models/street/centers.py`.
With a memory, each cell keeps what was seen before, moved with the vehicle, as in BEVFormer (Li et al. 2022,
arXiv:2203.17270) and `models/street/memory.py`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from engine import Loss, Padded, Sequences, TaskError, metrics, perception, plot, reset_at_starts
from engine.readers import NuScenes

from ..miniatures.folder import make_if_default
from .camera_encoders import LiftSplatEncoder, QueryEncoder
from .centers import CenterPoint, Space
from .lidar import split
from .memory import Memory, State, joined
from .nuscenes import CLASSES, DEFAULT, NuScenesDetection, Samples, scenes_of
from .parts import wide_linear

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
MASKS = {"vehicle": (*CLASSES[:5], "motorcycle", "bicycle"), "pedestrian": ("pedestrian",)}
"""Mask -> classes whose boxes are in it."""
WEIGHTS = np.array([4.0, 0.5], np.float32)  # of the losses of masks


def moved(state, before, now, space: Space):
    """Returns a state `[batch, rows, columns, width]` at the cells around a new pose, zeros from outside of the grid.

    Args:
        state: the state at the cells around the pose before.
        before, now: x and y in metres and heading of the vehicle in the world, `[batch, 3]`.
        space: the grid.
    """
    columns, rows = jnp.meshgrid(*(jnp.arange(count) for count in space.cells))
    here = space.middle(jnp.stack([columns, rows], -1)).astype(jnp.float32)
    x, y = _turned(here[..., 0], here[..., 1], now[:, 2, None, None])
    x, y = (value + (now - before)[:, k, None, None] for k, value in enumerate((x, y)))
    x, y = _turned(x, y, -before[:, 2, None, None])
    at = 2 * space.place(jnp.stack([x, y], -1)) / np.array(space.cells) - 1
    return perception.grid_sample(state, at)


def _turned(x, y, angle):
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x - sin * y, sin * x + cos * y


def mask_losses(logits, masks):
    """Returns the focal loss of masks `[batch, rows, columns, masks]`, float32 `[batch]`.

    It is divided by the number of cells in each mask, as in RetinaNet (Lin et al. 2017, arXiv:1708.02002). In a mean
    over all cells, pedestrians would not count: they are in 4 of 10,000 cells of the miniature. Cells in a mask weigh
    three times as much as others.
    """
    losses = optax.sigmoid_focal_loss(logits, masks.astype(logits.dtype), alpha=0.75)
    return (jnp.asarray(WEIGHTS) * losses.sum((1, 2)) / jnp.maximum(masks.sum((1, 2)), 1)).sum(-1)


class CameraModel(nnx.Module):
    """The encoder, convolutions and heads of centres, a head of masks, and with `memory` numbers a memory before them.

    Args:
        center: encoder, convolutions and heads.
        space: the grid of cells.
        width: features of a cell.
        finer: cells of the masks along each side of a cell.
        memory: numbers that are kept for each cell; 0 for none.
        rows: rows of the batch, whose memory is kept.
        rngs: random keys.
    """

    def __init__(
        self, center: CenterPoint, space: Space, width: int, finer: int, memory: int, rows: int, rngs: nnx.Rngs
    ):
        self.center, self.heads, self.finer = center, center.heads, finer
        self.masks = nnx.Linear(width, finer**2 * len(MASKS), bias_init=nnx.initializers.constant(-4.0), rngs=rngs)
        self.space = space
        self.memory = Memory(width, memory, rngs) if memory else None
        if memory:
            self.state = State(jnp.zeros((rows, self.space.cells[1], self.space.cells[0], memory)))
            self.pose = State(jnp.zeros((rows, 3)))

    def mask_logits(self, x):
        """Returns logits of the masks of features of cells, float32 `[batch, finer * rows, finer * columns, masks]`."""
        return split(wide_linear(self.masks, x), self.finer)

    def __call__(self, batch):
        """Returns the features of cells of all frames, `[batch * time, ...]`, and what is left out."""
        names = ("images", "intrinsics", "poses")
        if self.memory is None:
            return self.center(*(batch[name] for name in names))
        rows, times = batch["images"].shape[:2]
        features, lost = self.center(*(joined(batch[name]) for name in names))
        features = features.reshape(rows, times, *features.shape[1:])
        starts, valid = batch["sequence"]["starts"], batch["sequence"]["valid"]
        state, before, found = reset_at_starts(self.state[...], starts), self.pose[...], []
        for time in range(times):
            now = batch["pose"][:, time]
            x, new = self.memory(features[:, time], moved(state, before, now, self.space))
            state = jnp.where(valid[:, time, None, None, None], new, state)
            before = jnp.where(valid[:, time, None], now, before)
            found.append(x)
        self.state[...], self.pose[...] = state, before
        return joined(jnp.stack(found, 1)), lost


@dataclasses.dataclass
class NuScenesCameras(NuScenesDetection):
    """Finds the ten classes of nuScenes, and the cells of vehicles and pedestrians, from six cameras.

    A batch has the entries of `samples`, or with `memory` those of `drives`.

    Attributes:
        strides: of the three levels of the backbone.
        view: "lift_splat": patches of images are lifted to points, which are summed in cells; "deformable": cells read
            the images by deformable attention. `views_lost` counts pairs of a cell and a camera beyond two for a cell.
        heads, layers: heads of the attention, which divide `width`, and its layers.
        finer: cells of the masks along each side of a cell of the heatmap.
        memory: numbers that are kept for each cell from frame to frame; 0 for single frames.
        rows: train.global_batch_size, if there is a memory.
    """

    lower: Sequence[float] = (-38.4, -38.4, -3.0)
    upper: Sequence[float] = (38.4, 38.4, 5.0)
    cells: Sequence[int] = (64, 64)
    strides: Sequence[Sequence[int]] = ((2, 2), (2, 2), (2, 1))
    view: str = "lift_splat"
    heads: int = 4
    layers: int = 1
    finer: int = 2
    memory: int = 0
    rows: int = 2
    full_precision = ("intrinsics", "poses", "boxes", "pose")
    model_state = (State,)

    def build(self, rngs):  # pyright: ignore[reportIncompatibleMethodOverride], a model of other inputs
        strides = [(rows, columns) for rows, columns in self.strides]
        if self.view == "lift_splat":
            encoder = LiftSplatEncoder(self.width, self.space, strides, rngs)
        elif self.view == "deformable":
            encoder = QueryEncoder(self.width, self.space, strides, self.heads, self.layers, rngs)
        else:
            raise TaskError(f"task.view = {self.view!r}: unknown. Allowed: lift_splat, deformable.")
        groups = [[self.names.index(name) for name in group] for group in self.groups]
        center = CenterPoint(encoder, self.width, groups, rngs)
        return CameraModel(center, self.space, 2 * self.width, self.finer, self.memory, self.rows, rngs)

    def frames_of(self, batch):
        """Returns the labels of the frames of windows as a batch of frames; a batch of frames is returned as it is.

        Frames that pad a window have no objects.
        """
        if not self.memory:
            return batch
        frames = {name: joined(batch[name]) for name in ("boxes", "label", "attribute")}
        present = joined(batch["mask"]["objects"]) & batch["sequence"]["valid"].reshape(-1, 1)
        return {**frames, "mask": {"objects": present}}

    def masks_of(self, batch):
        """Returns which cells touch a box of each mask, bool `[batch, finer * rows, finer * columns, masks]`.

        The sides of a cell lie along the box, as if the cell were turned. The code of Lift, Splat, Shoot fills cells
        at the border of a box too (`get_binimg`). Cells whose middle is in a box would often miss a pedestrian.
        """
        space = dataclasses.replace(self.space, cells=tuple(self.finer * count for count in self.space.cells))
        columns, rows = jnp.meshgrid(*(jnp.arange(count) for count in space.cells))
        middle, half = space.middle(jnp.stack([columns, rows], -1)), sum(space.size(space.cells)) / 4
        x, y = middle[..., 0], middle[..., 1]
        box = batch["boxes"][..., None, None, :]
        along, across = _turned(x - box[..., 0], y - box[..., 1], -box[..., 6])
        inside = (jnp.abs(along) < box[..., 3] / 2 + half) & (jnp.abs(across) < box[..., 4] / 2 + half)
        chosen = jnp.array([[name in own for own in MASKS.values()] for name in self.names])[batch["label"]]
        chosen = chosen & batch["mask"]["objects"][..., None]
        return (inside[..., None] & chosen[:, :, None, None]).any(1)

    def loss(self, model, batch, rng):
        (x, lost), frames = model(batch), self.frames_of(batch)
        terms = dict(self.loss_of_cells(model.heads, x, lost, frames).terms)
        rows = len(batch["sequence"]["starts"] if self.memory else x)
        lost = lost.reshape(rows, -1).sum(1)
        left_out = {} if self.view == "lift_splat" else {"views_lost": metrics.Sum.of(lost)}
        terms["heat"] = dataclasses.replace(terms["heat"], metrics=left_out)
        masks = self.masks_of(frames)
        valid = jnp.ones(len(x)) if not self.memory else joined(batch["sequence"]["valid"])
        terms["masks"] = Loss.of(mask_losses(model.mask_logits(x), masks), valid)
        return Loss.sum(**{name: self._by_row(term, batch) for name, term in terms.items()})

    def _by_row(self, term: Loss, batch) -> Loss:
        """Returns a term of frames as one of windows."""
        if not self.memory:
            return term
        rows = len(batch["sequence"]["starts"])
        return dataclasses.replace(
            term, total=term.total.reshape(rows, -1).sum(1), weight=term.weight.reshape(rows, -1).sum(1)
        )

    def predict(self, model, batch):
        """Returns the boxes of NuScenesDetection, and the probability of each mask in each cell, `masks`."""
        x, _ = model(batch)
        return {**self.boxes_of(model.heads, x), "masks": jax.nn.sigmoid(model.mask_logits(x))}

    def evaluate(self, model, batch):
        """Returns the detection score, and the intersection over union of each mask; of windows of one frame."""
        found, frames = self.predict(model, batch), self.frames_of(batch)
        cells, masks = found["masks"] > 0.5, self.masks_of(frames)
        return {
            "nds": self.score_of(found, frames),
            **{
                f"iou/{name}": metrics.Ratio.of(cells[..., k] & masks[..., k], cells[..., k] | masks[..., k])
                for k, name in enumerate(MASKS)
            },
        }

    def figure(self, example, prediction):
        truth = np.asarray(self.masks_of(jax.tree.map(lambda x: np.asarray(x)[None], example)))[0]
        extent = (self.lower[0], self.upper[0], self.lower[1], self.upper[1])
        drawn = plot.masks(prediction["masks"], truth, extent=extent, names=tuple(MASKS))
        return drawn


class CameraSamples(Samples):
    """Source of the samples of nuScenes with six cameras, in the level frame.

    - `images`, uint8 `[6, rows, columns, 3]`; `intrinsics`, float32 `[6, 3, 3]`.
    - `poses`, float32 `[6, 4, 4]`: camera to level frame; `pose`, float32 `[3]`: x, y and heading in the world.
    - boxes, `sample`, `modality` and `ego_to_world` as in Samples.
    """

    def __init__(self, source: NuScenes):
        super().__init__(source, np.inf)

    def fingerprint(self):
        return self.source.fingerprint()

    def inputs(self, example, turn):
        """Returns the images and their calibration."""
        calibration = [example["calibration"][name] for name in CAMERAS]
        to_level = np.eye(4)
        to_level[:3, :3] = turn
        world = example["ego_to_world"]
        heading = np.arctan2(world[1, 0], world[0, 0])
        return {
            "images": np.stack([example[name] for name in CAMERAS]),
            "intrinsics": np.stack([one["intrinsics"] for one in calibration]),
            "poses": np.stack([to_level @ one["to_ego"] for one in calibration]).astype(np.float32),
            "pose": np.array([*world[:2, 3], heading], np.float32),
            "modality": "camera",
        }


def samples(
    folder: str = DEFAULT,
    split: str = "mini_train",
    version: str = "v1.0-mini",
    size: Sequence[int] | None = None,
    crop: Sequence[int] | None = None,
    objects: int = 80,
) -> Padded:
    """Returns the samples of a split with six cameras, padded.

    Args:
        folder, split, version, objects: as in `models.street.nuscenes.sweeps`.
        size: height and width to which images are resized, such as (396, 704) for nuScenes.
        crop: (top, left, height, width) of the part of resized images to read, such as (140, 0, 256, 704).
    """
    make_if_default("nuscenes", folder)
    scenes = scenes_of(Path(folder) / version, split)
    source = NuScenes(folder, version, CAMERAS, scenes, size=size, detection=True, crop=crop)
    return Padded(CameraSamples(source), {"objects": objects}, {"objects": ["boxes", "label", "attribute"]})


def drives(length: int = 4, **arguments) -> Sequences:
    """Returns windows of the drives of `samples`, for a model with a memory.

    Args:
        length: frames of a window.
        **arguments: those of `samples`.
    """
    frames = samples(**arguments)
    scenes = frames.source.known_names["scene"]
    return Sequences(frames, group=scenes, order=0.5 * np.arange(len(scenes)), length=length, carry=True)
