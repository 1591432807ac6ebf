"""Every model on every mesh computes what one device computes, and has the same model FLOPs.

Each row of the table compares a model on a mesh of fake CPU devices, in float32, with the same steps on one device:
three losses, the gradient of every parameter, and the parameters after three steps of SGD with momentum, with dropout
in the models that have it. One model on each kind of mesh also compares the losses of AdamW. A mesh axis that a model
cannot split is refused, which is a row too.

The error of an array is |a - b| over max(|a|, 1e-3 x the norm of all arrays x sqrt(its share of all elements)): some
true gradients are zero (the key bias of attention), which have no relative error. All rows have the same tolerance, but
those of lidar and cameras, and of bfloat16: see `SWITCHES` and `HALF`. The rows are those of mesh_table.py, in which
each pair of settings occurs. Models that take long to compile leave out meshes whose axes other meshes have, too.

Where two experts have nearly the same score for a token, rounding decides. The batches are chosen so that this does not
happen, even for parameters that differ by far more than rounding (`SHAKE`).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from engine import Task
from engine.base.errors import ShardingError
from engine.config.schema import DcnMeshSpec, MeshSpec
from engine.parallel.mesh import replicated
from models.decoder import LanguageModel
from models.digits import Digits
from models.fashion_mnist import Fashion
from models.moe_decoder import MoeLanguageModel
from models.pedestrians.forecasting import Forecast
from models.street.bev import Bev
from models.street.camera_scenes import GRID, MASKS, PATCH
from models.street.cameras import COLUMNS, Rig
from models.street.cameras import ROWS as LINES
from models.street.lidar import LidarDetection
from models.traffic.motion_tokens import NextToken
from models.traffic.token_model import TokenModel
from models.traffic.wayformer import FEATURES, FUTURE, TrafficForecast
from models.vit import Vit
from tests import zoo
from tests.models import mesh_table

TOLERANCE = 1e-5
ROWS, TIME, VOCABULARY = 24, 16, 64  # rows of a batch; positions of a row
SEEDS = (1, 101, 201)  # of the batches
SHAKE = 3e-6  # relative change of each parameter; rounding is 1e-7
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


def sweeps(seed: int) -> dict[str, Any]:
    """Points around two objects of each sweep, one of which may be padding."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(-20, 20, (ROWS, 2, 2)), rng.uniform(0.5, 2, (ROWS, 2, 7))], axis=-1)
    points = np.repeat(boxes[..., :4], 16, axis=1) + rng.normal(0, 3, (ROWS, 32, 4))
    return {
        "points": points.astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "label": rng.integers(0, 4, (ROWS, 2), np.int32),
        "moving": rng.integers(0, 2, (ROWS, 2), np.int32),
        "mask": {"points": rng.random((ROWS, 32)) < 0.9, "objects": rng.random((ROWS, 2)) < [1, 0.5]},
    }


def views(seed: int) -> dict[str, np.ndarray]:
    """Noise from six cameras of each vehicle, with masks and depths."""
    rng = np.random.default_rng(seed)
    rigs = [Rig.mounted(rng) for _ in range(ROWS)]
    patches = (ROWS, 6, LINES // PATCH[0], COLUMNS // PATCH[1])
    return {
        "images": rng.integers(0, 256, (ROWS, 6, LINES, COLUMNS, 3), np.uint8),
        "intrinsics": np.stack([rig.intrinsics for rig in rigs]).astype(np.float32),
        "poses": np.stack([rig.poses for rig in rigs]).astype(np.float32),
        "depth": rng.uniform(2, 60, patches).astype(np.float32),
        "masks": rng.random((ROWS, GRID, GRID, len(MASKS))) < 0.1,
    }


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
    "expert 4 x data 2",
    "expert 2 x fsdp 2 x tensor 2",
)
SUBJECTS = {
    "digits": Subject(lambda: Digits(width=32), functools.partial(images, 8, False)),
    "fashion": Subject(lambda: Fashion(width=4), functools.partial(images, 28, True)),
    "mlp": Subject(lambda: zoo.Classify("mlp", dropout=RATE), functools.partial(zoo.examples, ROWS)),
    "cnn": Subject(lambda: zoo.Classify("cnn", dropout=RATE), functools.partial(zoo.examples, ROWS)),
    "moe": Subject(
        lambda: MoeLanguageModel(**SIZES, capacity_factor=1.0, dropout=RATE), packed, (*SEQUENCES, "expert")
    ),
    # Without dropout: the blocks are those of "moe".
    "dropless": Subject(lambda: MoeLanguageModel(**SIZES, capacity_factor=None), packed, (*SEQUENCES, "expert")),
    "decoder": Subject(lambda: LanguageModel(**SIZES, dropout=RATE), packed, SEQUENCES),
    "vit": Subject(
        lambda: Vit(patch=7, width=32, depth=8, heads=8, dropout=RATE), functools.partial(images, 28, True), SEQUENCES
    ),
    "forecast": Subject(lambda: Forecast(modes=4, width=16, heads=4, temporal=1), walks, without=SIMPLE),
    "lidar": Subject(
        lambda: LidarDetection(width=4),
        sweeps,
        without=(*SIMPLE, "data 3 x fsdp 2, 6 devices"),
        tolerance=SWITCHES,
        learning_rate=1e-3,
    ),
    "cameras": Subject(
        lambda: Bev(width=8),
        views,
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
NOT_IN_HALF = ("data 8", "DCN data 2 x fsdp 4", "data 3 x fsdp 2, 6 devices", *REFUSED[1:])
SUBJECTS["bfloat16"] = Subject(
    lambda: LanguageModel(**{**SIZES, "depth": 2}), packed, SEQUENCES, NOT_IN_HALF, HALF, precision="bfloat16"
)

MESHES: dict[str, tuple[MeshSpec, dict[str, Any]]] = {
    "data 8": (MeshSpec(data=8), {}),
    "fsdp 8": (MeshSpec(fsdp=8), {}),
    "data 8, ZeRO-1": (MeshSpec(data=8), {"zero1": True}),
    "fsdp 2 x tensor 4": (MeshSpec(fsdp=2, tensor=4), {}),
    "data 2 x context 4, ring": (MeshSpec(data=2, context=4), {}),
    "data 2 x context 4, all-to-all": (MeshSpec(data=2, context=4), {"context": "all-to-all"}),
    "pipeline 2 x data 2 x tensor 2": (MeshSpec(pipeline=2, data=2, tensor=2), {}),
    "pipeline 4 x fsdp 2, circular": (MeshSpec(pipeline=4, fsdp=2), {"repeats": 2, "microbatches": 4}),
    "expert 4 x data 2": (MeshSpec(expert=4, data=2), {}),
    "expert 2 x fsdp 2 x tensor 2": (MeshSpec(expert=2, fsdp=2, tensor=2), {}),
    "DCN data 2 x fsdp 4": (MeshSpec(fsdp=4, dcn=DcnMeshSpec(data=2)), {}),
    "data 3 x fsdp 2, 6 devices": (MeshSpec(data=3, fsdp=2), {}),
}

# Small rates, so that rounding in an update does not change the choice of experts in the next step. Where the true
# gradient is zero, AdamW takes the sign of the rounding error.
SGD = {"target": "optax.sgd", "arguments": {"momentum": 0.9}, "clip_norm": None}
ADAMW = {"target": "optax.adamw", "learning_rate": 0.001}

table: list[str] = []


@dataclasses.dataclass
class Steps:
    """Three steps: their losses, the gradient of the first, the parameters after the last, and the FLOPs of a step."""

    flops: float
    losses: np.ndarray
    gradient: dict[str, np.ndarray]
    params: dict[str, np.ndarray]


def train(subject: str, optimizer: dict[str, Any], mesh: str | None, shake: float = 0.0) -> Steps:
    """Trains a model for three steps on a mesh or on one device; `shake` perturbs the initial parameters."""
    spec, layout = (None, {}) if mesh is None else MESHES[mesh]
    task, batches = SUBJECTS[subject].task(), [SUBJECTS[subject].batch(seed) for seed in SEEDS]
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches[0])
    devices = 6 if mesh is not None and "6 devices" in mesh else None
    settings: dict[str, Any] = {"learning_rate": SUBJECTS[subject].learning_rate} | optimizer
    settings["precision"] = SUBJECTS[subject].precision
    program = zoo.program(task, mesh=spec, batch_size=ROWS, example=example, layout=layout, devices=devices, **settings)
    step = program.trace(1).lower().compile()
    state = first_state(program, subject)
    if shake:
        noise = np.random.default_rng(0).standard_normal
        shaken = jax.tree.map(lambda x: x * (1 + shake * noise(x.shape, x.dtype)), state.params)
        state = dataclasses.replace(state, params=shaken)
    losses, gradient = [], {}
    numbers = jax.device_put(program.spec.optimizer.numbers, replicated(program.mesh))
    for i, batch in enumerate(batches):
        placed = jax.device_put(zoo.batch(batch), program.spec.batch_sharding)
        state, metrics = step(state, (placed,), program.skip_mask((False,)), numbers)
        losses.append(zoo.losses(np.asarray(metrics))[0])
        if i == 0:  # the first momentum is the first gradient; that of AdamW is a tenth of it
            parts = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, dict))
            gradient = jax.device_get(next(x for x in parts if isinstance(x, dict)))
    return Steps(program.flops_per_step, np.array(losses), gradient, jax.device_get(state.params))


def first_state(program: Any, subject: str) -> Any:
    """The initial state of one device, placed as the program wants it. Both optimizers start from zeros."""
    state = initial(subject)
    zeros = jax.tree.map(lambda to: np.zeros(to.shape, to.dtype), program.abstract_state.opt_state)
    return jax.tree.map(
        lambda x, to: jax.device_put(x.reshape(to.shape), to.sharding),
        dataclasses.replace(state, opt_state=zeros),
        program.abstract_state,
    )


@functools.cache
def initial(subject: str) -> Any:
    """The initial state on one device, as host arrays."""
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), SUBJECTS[subject].batch(0))
    program = zoo.program(SUBJECTS[subject].task(), batch_size=ROWS, example=example, **SGD)
    state = program.init()
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
    return jax.device_get(state)


@functools.cache
def alone(subject: str, adamw: bool = False) -> Steps:
    """The same steps on one device."""
    return train(subject, ADAMW if adamw else SGD, None)


def error(wanted: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest error of an array, and its path."""
    assert wanted.keys() == found.keys() and wanted
    norm = np.sqrt(sum(np.square(x).sum() for x in wanted.values()))
    count = sum(x.size for x in wanted.values())

    def of(path: str) -> float:
        a, b = wanted[path].ravel(), found[path].ravel()  # the layers of a circular pipeline are folded differently
        return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-3 * norm * np.sqrt(a.size / count)))

    return max((of(path), path) for path in wanted)


def unsplit(subject: str, mesh: str) -> set[str]:
    """The axes of the mesh that cannot split the model, so that the row is refused."""
    axes = {axis for axis in ("pipeline", "context", "expert") if (getattr(MESHES[mesh][0], axis) or 1) > 1}
    return axes - set(SUBJECTS[subject].splits)


def also_adamw(subject: str, mesh: str) -> bool:
    """Whether the row trains with AdamW too. Its state is sharded as that of SGD with momentum, array by array."""
    return subject in (("decoder", "vit") if unsplit("mlp", mesh) else ("mlp",))


# Two shards take every other test, and each model is trained on one device in one shard only.
ALL = mesh_table.ROWS
HALVES = [[row for row in ALL if not unsplit(*row) and list(SUBJECTS).index(row[0]) % 2 == half] for half in (0, 1)]
TRAINED = [row for rows in itertools.zip_longest(*HALVES) for row in rows if row]


def test_table_has_every_pair_of_settings_that_all_models_on_all_meshes_have():
    product = [row for row in itertools.product(SUBJECTS, MESHES) if row[1] not in SUBJECTS[row[0]].without]
    wanted, found = (
        set().union(*(mesh_table.pairs(*row, unsplit(*row), also_adamw(*row)) for row in rows))
        for rows in (product, ALL)
    )
    assert not wanted - found and {*ALL} <= {*product}


@pytest.mark.parametrize(("subject", "mesh"), TRAINED)
def test_mesh_matches_one_device(subject, mesh):
    errors = {}
    for adamw in (False, True) if also_adamw(subject, mesh) else (False,):
        wanted, found = alone(subject, adamw), train(subject, ADAMW if adamw else SGD, mesh)
        assert found.flops == wanted.flops > 0
        gradient, path = error(wanted.gradient, found.gradient)
        errors |= {
            f"losses, AdamW {adamw}": float(np.abs(1 - found.losses / wanted.losses).max()),
            f"gradient of {path}, AdamW {adamw}": gradient,
        }
        if not adamw:
            errors["parameters"] = error(wanted.params, found.params)[0]
    table.append(f"{subject:9} {mesh:32} {max(errors.values()):.1e}")
    assert max(errors.values()) <= SUBJECTS[subject].tolerance, errors


@pytest.mark.parametrize("subject", [name for name in SUBJECTS if "expert" in SUBJECTS[name].splits])
def test_expert_choice_is_stable_under_small_parameter_changes(subject):
    wanted, found = alone(subject), train(subject, SGD, None, SHAKE)
    assert np.abs(1 - found.losses / wanted.losses).max() <= TOLERANCE, "choose other SEEDS"


@pytest.mark.parametrize(("subject", "mesh"), [row for row in ALL if unsplit(*row)])
def test_mesh_axis_that_the_model_cannot_split_is_refused(subject, mesh):
    with pytest.raises(ShardingError, match=r"mesh.(pipeline|context|expert) = \d: the model of \w+ has no "):
        train(subject, SGD, mesh)
    table.append(f"{subject:9} {mesh:32} refused")


@pytest.fixture(scope="module", autouse=True)
def whole_table(request):
    """Prints the table of the selected rows and fails where a row is missing."""
    yield
    specs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    asked = [spec for spec in specs if spec is not None and {"subject", "mesh"} <= spec.params.keys()]
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        limits = f"errors at most {TOLERANCE}, of lidar and cameras {SWITCHES}, of bfloat16 {HALF}"
        print("\n" + "\n".join(table) + f"\n{len(table)} rows of {len(ALL)}, {limits}")
    assert len(table) == len(asked)
