"""Every model on every mesh gives the numbers of one device.

One row of the table is a model on a mesh of fake CPU devices, in float32, against the same step on one device: the
first loss and the gradient of every parameter, and three steps: the parameters after SGD with momentum, the losses of
AdamW; once more with dropout. A mesh that has nothing to split in a model is refused, and that is a row too.

The error of a leaf is |a - b| over max(|a|, 1e-3 x the norm of all leaves x sqrt(the leaf's share of the numbers)):
some true gradients are zero (an attention's key bias), and there is no relative error of nothing. One tolerance for
all.

Where two experts are nearly as good for a token, rounding decides: the batches are such that this does not happen, also
with parameters that differ by far more than rounding (`SHAKE`), on any machine.

The programs are those of a run, partitioned as there; only LLVM is told to spend no time on the machine code of each.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from engine import Task
from engine.config.errors import ShardingError
from engine.config.schema import MeshSpec, Slices
from models.decoder import LanguageModel
from models.digits import Digits
from models.fashion_mnist import Fashion
from models.moe_decoder import MoeLanguageModel
from models.vit import Vit
from tests import zoo

TOLERANCE = 1e-5
ROWS, TIME, VOCABULARY = 24, 16, 64  # rows of a batch; positions of a row
FEWEST_ROWS = 96
SEEDS = (1, 101, 201)  # of the batches
SHAKE = 3e-6  # relative change of each parameter; rounding is 1e-7

SIZES: dict[str, Any] = {"vocabulary": VOCABULARY, "width": 32, "hidden": 64, "depth": 8, "heads": 8, "kv_heads": 4}


def packed(seed: int) -> dict[str, np.ndarray]:
    """Rows of two or three documents and some padding."""
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
    """Noise with labels; `whole` numbers of 0..255 as a camera gives them."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (ROWS, side, side), np.uint8) if whole else rng.random((ROWS, side, side), np.float32)
    return {"image": pixels, "label": rng.integers(0, 10, ROWS, np.int32)}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model of the zoo: its Task for a dropout rate, its batches by seed, and the axes that need a layer of it."""

    task: Callable[[float], Task]
    batch: Callable[[int], Any]
    splits: tuple[str, ...] = ()
    dropout: bool = True


def vit(dropout: float) -> Task:
    return Vit(patch=7, width=32, depth=8, heads=8, dropout=dropout)


SEQUENCES = ("context", "pipeline")
SUBJECTS = {
    "digits": Subject(lambda rate: Digits(width=32), functools.partial(images, 8, False), dropout=False),
    "fashion": Subject(lambda rate: Fashion(width=4), functools.partial(images, 28, True), dropout=False),
    "mlp": Subject(lambda rate: zoo.Classify("mlp", dropout=rate), functools.partial(zoo.examples, ROWS)),
    "cnn": Subject(lambda rate: zoo.Classify("cnn", dropout=rate), functools.partial(zoo.examples, ROWS)),
    "moe": Subject(
        lambda rate: MoeLanguageModel(**SIZES, capacity_factor=1.0, dropout=rate), packed, (*SEQUENCES, "expert")
    ),
    "dropless": Subject(
        lambda rate: MoeLanguageModel(**SIZES, capacity_factor=None, dropout=rate), packed, (*SEQUENCES, "expert")
    ),
    "decoder": Subject(lambda rate: LanguageModel(**SIZES, dropout=rate), packed, SEQUENCES),
    "vit": Subject(vit, functools.partial(images, 28, True), SEQUENCES),
}

MESHES: dict[str, tuple[MeshSpec, dict[str, Any]]] = {
    "data 8": (MeshSpec(data=8), {}),
    "fsdp 8": (MeshSpec(fsdp=8), {}),
    "data 2 x fsdp 4": (MeshSpec(data=2, fsdp=4), {}),
    "data 8, ZeRO-1": (MeshSpec(data=8), {"zero1": True}),
    "fsdp 2 x tensor 4": (MeshSpec(fsdp=2, tensor=4), {}),
    "data 2 x context 4, ring": (MeshSpec(data=2, context=4), {}),
    "data 2 x context 4, all-to-all": (MeshSpec(data=2, context=4), {"context": "all-to-all"}),
    "pipeline 2 x data 2 x tensor 2": (MeshSpec(pipeline=2, data=2, tensor=2), {}),
    "pipeline 4 x fsdp 2, circular": (MeshSpec(pipeline=4, fsdp=2), {"repeats": 2, "microbatches": 4}),
    "expert 4 x data 2": (MeshSpec(expert=4, data=2), {}),
    "expert 2 x fsdp 2 x tensor 2": (MeshSpec(expert=2, fsdp=2, tensor=2), {}),
    "DCN data 2 x fsdp 4": (MeshSpec(fsdp=4, dcn=Slices(data=2)), {}),
    "data 3 x fsdp 2, 6 devices": (MeshSpec(data=3, fsdp=2), {}),
}

# Small rates: what an update moves by rounding alone must not change which expert is chosen in the next step; of a true
# gradient that is zero, AdamW takes the sign of the error.
SGD = {"target": "optax.sgd", "arguments": {"momentum": 0.9}, "learning_rate": 0.03, "clip_norm": None}
ADAMW = {"target": "optax.adamw", "learning_rate": 0.001}

table: list[str] = []


@dataclasses.dataclass
class Steps:
    """Three steps: the losses, the gradient of the first, the parameters after the last."""

    losses: np.ndarray
    gradient: dict[str, np.ndarray]
    params: dict[str, np.ndarray]


def train(subject: str, dropout: float, optimizer: dict[str, Any], mesh: str | None, shake: float = 0.0) -> Steps:
    """Trains a model three steps on a mesh, or on one device, from parameters that are shaken a little."""
    spec, layout = (None, {}) if mesh is None else MESHES[mesh]
    task, batches = SUBJECTS[subject].task(dropout), [SUBJECTS[subject].batch(seed) for seed in SEEDS]
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches[0])
    devices = 6 if mesh is not None and "6 devices" in mesh else None
    program = zoo.program(
        task, mesh=spec, batch_size=ROWS, example=example, layout=layout, devices=devices, **optimizer
    )
    step = program.trace(1).lower().compile(compiler_options={"xla_backend_optimization_level": 0})
    state = first_state(program, subject, dropout, optimizer, mesh)
    if shake:
        noise = np.random.default_rng(0).standard_normal
        shaken = jax.tree.map(lambda x: x * (1 + shake * noise(x.shape, x.dtype)), state.params)
        state = dataclasses.replace(state, params=shaken)
    losses, gradient = [], {}
    for i, batch in enumerate(batches):
        state, metrics = step(
            state, (jax.device_put(zoo.batch(batch), program.spec.batch_sharding),), program.skip_mask((False,))
        )
        losses.append(zoo.losses(np.asarray(metrics))[0])
        if i == 0:  # the first momentum is the first gradient; that of AdamW is a tenth of it
            parts = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, dict))
            gradient = jax.device_get(next(x for x in parts if isinstance(x, dict)))
    return Steps(np.array(losses), gradient, jax.device_get(state.params))


def first_state(program: Any, subject: str, dropout: float, optimizer: dict[str, Any], mesh: str | None) -> Any:
    """The first state of one device, placed as the program wants it."""
    if mesh is None:
        return program.init()
    state = first_alone(subject, dropout, optimizer is ADAMW)
    return jax.tree.map(lambda x, to: jax.device_put(x.reshape(to.shape), to.sharding), state, program.abstract_state)


@functools.cache
def first_alone(subject: str, dropout: float, adamw: bool) -> Any:
    """The first state on one device, on the host."""
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), SUBJECTS[subject].batch(0))
    task, optimizer = SUBJECTS[subject].task(dropout), ADAMW if adamw else SGD
    return jax.device_get(zoo.program(task, batch_size=ROWS, example=example, **optimizer).init())


@functools.cache
def alone(subject: str, dropout: float, adamw: bool) -> Steps:
    """The same on one device."""
    return train(subject, dropout, ADAMW if adamw else SGD, None)


def error(wanted: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest error of a leaf, and its path."""
    assert wanted.keys() == found.keys() and wanted
    norm = np.sqrt(sum(np.square(x).sum() for x in wanted.values()))
    count = sum(x.size for x in wanted.values())

    def of(path: str) -> float:
        a, b = wanted[path].ravel(), found[path].ravel()  # the layers of a circular pipeline are folded differently
        return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-3 * norm * np.sqrt(a.size / count)))

    return max((of(path), path) for path in wanted)


def refused(subject: str, mesh: str) -> bool:
    """Whether the model has nothing that an axis of the mesh splits."""
    axes = {axis for axis in ("pipeline", "context", "expert") if (getattr(MESHES[mesh][0], axis) or 1) > 1}
    return not axes <= set(SUBJECTS[subject].splits)


# Models alternate: of two shards, which take every other test, each has its own, and trains it on one device once.
ALL = [(subject, mesh) for mesh in MESHES for subject in SUBJECTS]


@pytest.mark.parametrize(("subject", "mesh"), [row for row in ALL if not refused(*row)])
def test_a_mesh_gives_the_numbers_of_one_device(subject, mesh):
    errors = {}
    for dropout in (0.0, 0.1):
        optimizer = ADAMW if dropout else SGD
        rate = dropout if SUBJECTS[subject].dropout else 0.0
        wanted, found = alone(subject, rate, adamw=optimizer is ADAMW), train(subject, rate, optimizer, mesh)
        gradient, path = error(wanted.gradient, found.gradient)
        errors |= {
            f"losses, dropout {dropout}": float(np.abs(1 - found.losses / wanted.losses).max()),
            f"gradient of {path}, dropout {dropout}": gradient,
        }
        if optimizer is SGD:
            errors["parameters"] = error(wanted.params, found.params)[0]
    table.append(f"{subject:9} {mesh:32} {max(errors.values()):.1e}")
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("subject", [name for name in SUBJECTS if "expert" in SUBJECTS[name].splits])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_token_of_the_batches_lies_between_two_experts(subject, dropout):
    optimizer = ADAMW if dropout else SGD
    wanted = alone(subject, dropout, adamw=optimizer is ADAMW)
    found = train(subject, dropout, optimizer, None, SHAKE)
    assert np.abs(1 - found.losses / wanted.losses).max() <= TOLERANCE, "choose other SEEDS"


@pytest.mark.parametrize(("subject", "mesh"), [row for row in ALL if refused(*row)])
def test_a_mesh_that_has_nothing_to_split_is_refused(subject, mesh):
    with pytest.raises(ShardingError, match=r"mesh.(pipeline|context|expert) = \d: the model of \w+ has no "):
        train(subject, 0.0, SGD, mesh)
    table.append(f"{subject:9} {mesh:32} refused")


def test_the_table_has_a_row_for_every_model_and_mesh():
    assert len(ALL) >= FEWEST_ROWS


@pytest.fixture(scope="module", autouse=True)
def whole_table(request):
    """Prints the table of the rows that were asked for, which may be a part, and fails where one is missing."""
    yield
    specs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    asked = [spec for spec in specs if spec is not None and {"subject", "mesh"} <= spec.params.keys()]
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(table) + f"\n{len(table)} rows of {len(ALL)}, errors at most {TOLERANCE}")
    assert len(table) == len(asked)
