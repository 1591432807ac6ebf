"""The models of meshes_test.py with their batches, and the meshes.

Each Task of `models/` is a subject. Models that take long to compile leave out meshes whose axes others have, too.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from convoy_zoo.models.actor_critic import CartPole
from convoy_zoo.models.decoder import LanguageModel
from convoy_zoo.models.detection import CANVAS, Detection
from convoy_zoo.models.digits import Digits
from convoy_zoo.models.fashion_mnist import Fashion
from convoy_zoo.models.gan import DigitsGan
from convoy_zoo.models.mean_teacher import MeanTeacher
from convoy_zoo.models.moe_decoder import MoeLanguageModel
from convoy_zoo.models.pedestrians.forecasting import Forecast
from convoy_zoo.models.scenes import NextStep
from convoy_zoo.models.street.bev import Bev, Views
from convoy_zoo.models.street.camera_scenes import GRID, KINDS, MASKS, PATCH
from convoy_zoo.models.street.cameras import COLUMNS, Rig
from convoy_zoo.models.street.cameras import ROWS as LINES
from convoy_zoo.models.street.fusion import Fusion
from convoy_zoo.models.street.half_labelled import TwoMasks
from convoy_zoo.models.street.lidar import LidarDetection
from convoy_zoo.models.street.memory import DriveDetection
from convoy_zoo.models.traffic.motion_tokens import NextToken
from convoy_zoo.models.traffic.token_model import TokenModel
from convoy_zoo.models.traffic.wayformer import FEATURES, FUTURE, TrafficForecast
from convoy_zoo.models.vit import Vit
from engine import ArraySource, Joint, Task
from engine.config.schema import DcnMeshSpec, Group, MeshSpec
from engine.joint.bundles import Bundles
from engine.joint.task import adapted
from tests import drives, zoo
from tests.joint import twin

TOLERANCE = 1e-5
ROWS, TIME, VOCABULARY = 24, 16, 64  # rows of a batch; positions of a row
# Of lidar and cameras. A batch has two million rectified values. Rounding changes the sign of a few of them, which
# moved gradients by up to 6e-4.
SWITCHES = 1e-2

SIZES: dict[str, Any] = {"vocabulary": VOCABULARY, "width": 32, "hidden": 64, "depth": 8, "heads": 8, "kv_heads": 4}


def packed(seed: int) -> dict[str, np.ndarray]:
    """Packed rows of two or three documents, with some padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (ROWS, TIME + 1), np.int32)
    cuts = np.sort(rng.integers(1, TIME, (ROWS, 2)), axis=1)
    segments = 1 + (np.arange(TIME) >= cuts[:, :1]) + (np.arange(TIME) >= cuts[:, 1:])
    segments[: ROWS // 3] = np.where(segments[: ROWS // 3] == 3, 0, segments[: ROWS // 3])
    starts = np.where(segments[:, 1:] != segments[:, :-1], np.arange(1, TIME), 0)
    starts = np.maximum.accumulate(np.pad(starts, ((0, 0), (1, 0))), axis=1)
    last = np.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (0, 1)))
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments.astype(np.int32),
        "positions": (np.arange(TIME) - starts).astype(np.int32),
        "weight": ((segments > 0) & ~last).astype(np.float32),
    }


def images(side: int, whole: bool, seed: int) -> dict[str, np.ndarray]:
    """Noise with labels; `whole` returns integers of 0..255 like a camera."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (ROWS, side, side), np.uint8) if whole else rng.random((ROWS, side, side), np.float32)
    return {"image": pixels, "label": rng.integers(0, 10, ROWS, np.int32)}


def walks(seed: int) -> dict[str, np.ndarray]:
    """Packed rows of two scenes, of three and two pedestrians, and one place of padding."""
    rng = np.random.default_rng(seed)
    tracks = rng.uniform(-3, 3, (ROWS, 6, 1, 2)) + rng.normal(0, 0.4, (ROWS, 6, 20, 2)).cumsum(axis=2)
    ids = np.tile(np.array([1, 1, 1, 2, 2, 0], np.int32), (ROWS, 1))
    tracks = tracks.astype(np.float32)
    return {"history": tracks[:, :, :8], "future": tracks[:, :, 8:], "segment_ids": ids, "mask": ids > 0}


def sweeps(rows: int, seed: int) -> dict[str, Any]:
    """Points around two objects of each sweep, one of which may be padding."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(-20, 20, (rows, 2, 2)), rng.uniform(0.5, 2, (rows, 2, 7))], axis=-1)
    points = np.repeat(boxes[..., :4], 16, axis=1) + rng.normal(0, 3, (rows, 32, 4))
    return {
        "points": points.astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "label": rng.integers(0, 4, (rows, 2), np.int32),
        "moving": rng.integers(0, 2, (rows, 2), np.int32),
        "mask": {"points": rng.random((rows, 32)) < 0.9, "objects": rng.random((rows, 2)) < [1, 0.5]},
    }


def swept_drives(rows: int, seed: int) -> dict[str, Any]:
    """Windows of two sweeps of drives, of which some start and some end."""
    rng = np.random.default_rng(seed)
    windows = jax.tree.map(lambda x: x.reshape(rows, 2, *x.shape[1:]), sweeps(2 * rows, seed))
    return {
        **windows,
        "hits": rng.integers(0, 2, (rows, 2, 2), np.int32),
        "motion": rng.uniform(-2, 2, (rows, 2, 3)).astype(np.float32),
        "sequence": {
            "starts": rng.random(rows) < 0.3,
            "valid": np.stack([np.ones(rows, bool), rng.random(rows) < 0.7], 1),
        },
    }


def half_labelled(rows: int, seed: int) -> Bundles:
    """Views with one of the masks each, two datasets of them."""
    found = {}
    for number, name in enumerate(MASKS):
        seen = views(rows, seed + number)
        found[name] = {**seen, "mask": seen.pop("masks")[..., number]}
    return Bundles(found, dict.fromkeys(MASKS, 1))


def two_masks() -> Task:
    """Returns the Task of two datasets of views, for their bundles."""
    one = {name: ArraySource(half_labelled(1, 0)[name]) for name in MASKS}
    return adapted(TwoMasks(width=8), Joint(one), "data")


def views(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Noise from six cameras of each vehicle, with masks and depths."""
    rng = np.random.default_rng(seed)
    rigs = [Rig.mounted(rng) for _ in range(rows)]
    patches = (rows, 6, LINES // PATCH[0], COLUMNS // PATCH[1])
    return {
        "images": rng.integers(0, 256, (rows, 6, LINES, COLUMNS, 3), np.uint8),
        "intrinsics": np.stack([rig.intrinsics for rig in rigs]).astype(np.float32),
        "poses": np.stack([rig.poses for rig in rigs]).astype(np.float32),
        "depth": rng.uniform(2, 60, patches).astype(np.float32),
        "masks": rng.random((rows, GRID, GRID, len(MASKS))) < 0.1,
    }


def sensors(rows: int, seed: int) -> dict[str, Any]:
    """Sweeps and views of the same vehicles."""
    return {**sweeps(rows, seed), **views(rows, seed)}


def sights(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Views with what each patch shows."""
    found = views(rows, seed)
    kind = np.random.default_rng(seed).integers(0, len(KINDS), found["depth"].shape, np.int32)
    return {"images": found["images"], "intrinsics": found["intrinsics"], "kind": kind}


def drive_windows(seed: int) -> dict[str, Any]:
    """Windows of drives, of which some start and some end."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(1, 5, ROWS)
    return {
        **{name: rng.normal(size=(ROWS, 4)).astype(np.float32) for name in ("x", "y")},
        "seen": rng.random((ROWS, 4)) < 0.3,
        "sequence": {"starts": rng.random(ROWS) < 0.3, "valid": np.arange(4) < ends[:, None]},
    }


def canvases(seed: int) -> dict[str, np.ndarray]:
    """Noise with up to four boxes."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, CANVAS - 8, (ROWS, 4, 2))
    return {
        "image": rng.random((ROWS, CANVAS, CANVAS), np.float32),
        "boxes": np.concatenate([corner, corner + 8], axis=-1).astype(np.float32),
        "label": rng.integers(0, 10, (ROWS, 4), np.int32),
        "present": rng.random((ROWS, 4)) < 0.7,
    }


def agents(seed: int) -> dict[str, np.ndarray]:
    """Packed rows of two scenes, of five and two agents, and one place of padding."""
    rng = np.random.default_rng(seed)
    ids = np.tile(np.array([1, 1, 1, 1, 1, 2, 2, 0], np.int32), (ROWS, 1))
    arrays = {"agents": (8, 4), "step": (8, 2), "wind": (2, 2)}
    drawn = {name: rng.normal(size=(ROWS, *shape)).astype(np.float32) for name, shape in arrays.items()}
    return {**drawn, "segment_ids": ids, "mask": ids > 0}


def episodes(seed: int) -> dict[str, np.ndarray]:
    """Seeds of episodes."""
    return {"seed": np.arange(seed * ROWS, (seed + 1) * ROWS, dtype=np.uint32)}


def surroundings(seed: int) -> dict[str, Any]:
    """Tokens of three agents, pieces of lanes and lights around each agent to predict."""
    rng = np.random.default_rng(seed)
    tokens = {name: rng.normal(size=(ROWS, 3, size)).astype(np.float32) for name, size in FEATURES.items()}
    return {
        **tokens,
        "mask": {name: rng.random((ROWS, 3)) < [1, 0.7, 0.7] for name in tokens},
        "speed": rng.uniform(0, 10, ROWS).astype(np.float32),
        "future": rng.normal(0, 5, (ROWS, FUTURE, 2)).cumsum(1).astype(np.float32),
    }


def tracks(seed: int) -> dict[str, np.ndarray]:
    """Three agents on four pieces of lanes; the second half of the tracks may be missing."""
    rng = np.random.default_rng(seed)
    agents, pieces, steps = 3, 4, 6
    pose = rng.normal(0, 0.5, (ROWS, agents, steps, 3)).cumsum(2) + rng.normal(0, 10, (ROWS, agents, 1, 3))
    lanes = rng.normal(0, 10, (ROWS, pieces, 1, 2)) + rng.normal(0, 3, (ROWS, pieces, 5, 2)).cumsum(2)
    known = (np.arange(steps) < steps // 2) | (rng.random((ROWS, agents, 1)) < 0.7)
    return {
        "pose": pose.astype(np.float32),
        "valid": known,
        "size": rng.uniform(1, 5, (ROWS, agents, 2)).astype(np.float32),
        "type": rng.integers(0, 5, (ROWS, agents), np.int32),
        "points": lanes.astype(np.float32),
        "width": rng.uniform(3, 4, (ROWS, pieces)).astype(np.float32),
        "limit": rng.uniform(8, 20, (ROWS, pieces)).astype(np.float32),
        "kind": rng.integers(0, 4, (ROWS, pieces), np.int32),
        "mask": rng.random((ROWS, pieces)) < 0.8,
        "light": rng.integers(0, 4, (ROWS, pieces, steps), np.int32),
    }


class Tokens(NextToken):
    """The model of motion tokens with random tokens, without the scenes of which they are made."""

    def build(self, rngs):
        movements = np.random.default_rng(0).normal(0, 0.7, (self.tokens, 3)).astype(np.float32)
        return TokenModel(self, movements, rngs)


MESHES: dict[str, tuple[MeshSpec, dict[str, Any]]] = {
    "data 8": (MeshSpec(data=8), {}),
    "fsdp 8": (MeshSpec(fsdp=8), {}),
    "data 8, ZeRO-1": (MeshSpec(data=8), {"zero1": True}),
    "fsdp 2 x tensor 4": (MeshSpec(fsdp=2, tensor=4), {}),
    "data 2 x context 4, ring": (MeshSpec(data=2, context=4), {}),
    "data 2 x context 4, all-to-all": (MeshSpec(data=2, context=4), {"context": "all-to-all"}),
    "pipeline 2 x data 2 x tensor 2": (MeshSpec(pipeline=2, data=2, tensor=2), {}),
    "pipeline 4 x fsdp 2, circular": (MeshSpec(pipeline=4, fsdp=2), {"repeats": 2, "microbatches": 4}),
    "expert 4 x data 2, ZeRO-1": (MeshSpec(expert=4, data=2), {"zero1": True}),
    "expert 2 x fsdp 2 x tensor 2": (MeshSpec(expert=2, fsdp=2, tensor=2), {}),
    "DCN data 2 x fsdp 4": (MeshSpec(fsdp=4, dcn=DcnMeshSpec(data=2)), {}),
    "data 3 x fsdp 2, 6 devices": (MeshSpec(data=3, fsdp=2), {}),
}


def only(*names: str) -> tuple[str, ...]:
    """Returns the other meshes, which a model leaves out."""
    return tuple(mesh for mesh in MESHES if mesh not in names)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model: its Task, its batch for a seed, the mesh axes that only some models can split, and what is its own."""

    task: Callable[[], Task]
    batch: Callable[[int], Any]
    splits: tuple[str, ...] = ()
    without: tuple[str, ...] = ()  # meshes
    tolerance: float = TOLERANCE
    learning_rate: float = 0.03
    precision: str = "float32"
    rows: int = ROWS
    optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings of the section


# Of bfloat16, whose numbers have a relative error of up to 2**-9. Each device of a mesh rounds its part of a sum.
HALF = 0.05
RATE = 0.1  # of dropout
SEQUENCES = ("context", "pipeline")
SIMPLE = ("data 8", "fsdp 8", "data 8, ZeRO-1", "DCN data 2 x fsdp 4")
REFUSED = (
    "data 2 x context 4, ring",
    "data 2 x context 4, all-to-all",
    "pipeline 2 x data 2 x tensor 2",
    "pipeline 4 x fsdp 2, circular",
    "expert 4 x data 2, ZeRO-1",
    "expert 2 x fsdp 2 x tensor 2",
)
SUBJECTS = {
    "digits": Subject(lambda: Digits(width=32), functools.partial(images, 8, False)),
    "fashion": Subject(lambda: Fashion(width=4), functools.partial(images, 28, True)),
    "joint": Subject(lambda: twin.for_joint(dropout=RATE), functools.partial(twin.bundles, ROWS)),
    "mlp": Subject(lambda: zoo.Classify("mlp", dropout=RATE), functools.partial(zoo.examples, ROWS)),
    "cnn": Subject(lambda: zoo.Classify("cnn", dropout=RATE), functools.partial(zoo.examples, ROWS)),
    "moe": Subject(
        lambda: MoeLanguageModel(**SIZES, capacity_factor=1.0, dropout=RATE),
        packed,
        (*SEQUENCES, "expert"),
        ("data 8, ZeRO-1", "DCN data 2 x fsdp 4", "data 2 x context 4, all-to-all"),
    ),
    # Without dropout: the blocks are those of "moe". tests/layers/experts_on_meshes_test.py splits its sequences.
    "dropless": Subject(
        lambda: MoeLanguageModel(**SIZES, capacity_factor=None),
        packed,
        (*SEQUENCES, "expert"),
        ("DCN data 2 x fsdp 4", "data 2 x context 4, ring", "data 2 x context 4, all-to-all"),
    ),
    # pairs_test.py has it in pipelines.
    "decoder": Subject(
        lambda: LanguageModel(**SIZES, dropout=RATE),
        packed,
        SEQUENCES,
        ("pipeline 2 x data 2 x tensor 2", "pipeline 4 x fsdp 2, circular", "DCN data 2 x fsdp 4"),
    ),
    "vit": Subject(
        lambda: Vit(patch=7, width=32, depth=8, heads=8, dropout=RATE), functools.partial(images, 28, True), SEQUENCES
    ),
    "forecast": Subject(
        lambda: Forecast(modes=4, width=16, heads=4, temporal=1), walks, without=(*SIMPLE, "data 3 x fsdp 2, 6 devices")
    ),
    "lidar": Subject(
        lambda: LidarDetection(width=4),
        functools.partial(sweeps, 8),
        rows=8,
        without=(*SIMPLE, "data 3 x fsdp 2, 6 devices"),
        tolerance=SWITCHES,
        learning_rate=1e-3,
    ),
    "cameras": Subject(
        lambda: Bev(width=8),
        functools.partial(views, 6),
        rows=6,
        without=(*SIMPLE, *REFUSED, "fsdp 2 x tensor 4"),
        tolerance=SWITCHES,
        learning_rate=1e-3,
    ),
    "traffic": Subject(
        lambda: TrafficForecast(modes=2, width=16, heads=4, latents=3, encoder=0, decoder=1),
        surroundings,
        without=(*SIMPLE, *REFUSED, "data 3 x fsdp 2, 6 devices"),
        learning_rate=1e-3,
    ),
    "tokens": Subject(
        lambda: Tokens(tokens=16, width=16, heads=4, depth=1, nearest=2),
        tracks,
        without=(*SIMPLE, *REFUSED, "data 3 x fsdp 2, 6 devices"),
    ),
}
SUBJECTS["bfloat16"] = Subject(
    lambda: LanguageModel(**{**SIZES, "depth": 2}),
    packed,
    SEQUENCES,
    only("data 2 x context 4, ring"),
    HALF,
    precision="bfloat16",
)
SUBJECTS |= {
    "detection": Subject(lambda: Detection(width=4), canvases, without=only("data 3 x fsdp 2, 6 devices")),
    "scenes": Subject(
        lambda: NextStep(width=16, depth=1, heads=4),
        agents,
        SEQUENCES[:1],
        only("fsdp 2 x tensor 4", "data 2 x context 4, all-to-all"),
    ),
    "gan": Subject(
        lambda: DigitsGan(width=32),
        functools.partial(images, 8, False),
        without=only("data 8, ZeRO-1"),
        tolerance=1e-4,  # the gradient of the last bias of the critic is a difference of two almost equal sums
        optimizer={"groups": {name: Group(match=f"^{name}") for name in ("generator", "critic")}},
    ),
    "mean-teacher": Subject(
        lambda: MeanTeacher(width=32),
        functools.partial(images, 8, False),
        without=only("DCN data 2 x fsdp 4"),
        optimizer={"trainable": "^student"},
    ),
    "actor-critic": Subject(
        lambda: CartPole(width=16, length=20, passes=2), episodes, without=only("data 3 x fsdp 2, 6 devices")
    ),
    "memory": Subject(lambda: drives.Track(rows=ROWS), drive_windows, without=only("data 3 x fsdp 2, 6 devices")),
    "drives": Subject(
        lambda: DriveDetection(width=4, memory=4, rows=8),
        functools.partial(swept_drives, 8),
        rows=8,
        without=only("DCN data 2 x fsdp 4"),
        tolerance=SWITCHES,
        learning_rate=1e-3,
    ),
    "masks": Subject(
        two_masks,
        functools.partial(half_labelled, 8),
        rows=8,
        without=only("data 8"),
        tolerance=SWITCHES,
        learning_rate=1e-3,
    ),
    "views": Subject(lambda: Views(width=8), functools.partial(sights, 8), rows=8, without=only("data 8")),
    "fusion": Subject(
        lambda: Fusion(lidar_width=4, camera_width=8),
        functools.partial(sensors, 8),
        rows=8,
        without=only("DCN data 2 x fsdp 4"),
        tolerance=SWITCHES,
        learning_rate=1e-3,
    ),
}
