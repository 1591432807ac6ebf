"""Every model on every mesh computes what one device computes.

Each row of the table compares a model on a mesh of fake CPU devices, in float32, with the same steps on one device:
three losses, the gradient of every parameter, and the parameters and the model state after three steps of SGD with
momentum, with dropout in the models that have it. To count FLOPs traces the loss once more, so only models that more
axes than data, fsdp and tensor may split are compared in them. A mesh axis that a model cannot split is refused, which
is a row too. Every Task of `models/` is in a row. pairs_test.py has other optimizers and settings.

The error of an array is |a - b| over max(|a|, 1e-3 x the norm of all arrays x sqrt(its share of all elements)): some
true gradients are zero (the key bias of attention), which have no relative error. All rows have the same tolerance, but
those of lidar and cameras, and of bfloat16: see `SWITCHES` and `HALF`. The rows are those of mesh_table.py, in which
each pair of settings occurs. Models that take long to compile leave out meshes whose axes other meshes have, too.

Where two experts have nearly the same score for a token, rounding decides. The batches are chosen so that this does not
happen, even for parameters that differ by far more than rounding (`SHAKE`).
"""

import dataclasses
import functools
import importlib
import itertools
import pkgutil
from typing import Any

import jax
import numpy as np
import pytest

from convoy_zoo import models
from engine import Task
from engine.base.errors import ShardingError
from engine.parallel.mesh import replicated
from tests import zoo
from tests.models import mesh_table
from tests.models.dataset_subjects import SUBJECTS
from tests.models.mesh_subjects import HALF, MESHES, SWITCHES, TOLERANCE

SEEDS = (1, 101, 201)  # of the batches
SHAKE = 3e-6  # relative change of each parameter; rounding is 1e-7
# Small rates, so that rounding in an update does not change the choice of experts in the next step.
SGD = {"target": "optax.sgd", "arguments": {"momentum": 0.9}, "clip_norm": None}

table: list[str] = []


@dataclasses.dataclass
class Steps:
    """Three steps: their losses, the gradient of the first, the variables after the last, and FLOPs or 0."""

    flops: float
    losses: np.ndarray
    gradient: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    model_state: dict[str, np.ndarray]


def train(subject: str, mesh: str | None, shake: float = 0.0) -> Steps:
    """Trains a model for three steps on a mesh or on one device; `shake` perturbs the initial parameters."""
    program, step = on_one_device(subject) if mesh is None else compiled(subject, mesh)
    batches = [SUBJECTS[subject].batch(seed) for seed in SEEDS]
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
        if i == 0:  # the first momentum is the first gradient
            for path, x in jax.tree.leaves_with_path(state.opt_state):
                names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
                gradient |= {name: jax.device_get(x) for name in names if name in state.params}
    flops = program.flops_per_step if SUBJECTS[subject].splits else 0.0
    return Steps(flops, np.array(losses), gradient, *jax.device_get((state.params, state.model_state)))


def compiled(subject: str, mesh: str | None) -> tuple[Any, Any]:
    """Returns the program of a model and its compiled step."""
    spec, layout = (None, {}) if mesh is None else MESHES[mesh]
    found, devices = SUBJECTS[subject], 6 if mesh is not None and "6 devices" in mesh else None
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), found.batch(SEEDS[0]))
    settings = {"learning_rate": found.learning_rate, "precision": found.precision, **SGD, **found.optimizer}
    program = zoo.program(
        found.task(), mesh=spec, batch_size=found.rows, example=example, layout=layout, devices=devices, **settings
    )
    return program, program.trace(1).lower().compile()


on_one_device = functools.cache(functools.partial(compiled, mesh=None))


def first_state(program: Any, subject: str) -> Any:
    """The same initial state for every mesh, placed as the program wants it. The optimizer starts from zeros."""
    zeros = jax.tree.map(lambda to: np.zeros(to.shape, to.dtype), program.abstract_state)
    params, model_state = initial(subject)
    rng = np.asarray(jax.random.key_data(jax.random.key(0)))
    state = dataclasses.replace(zeros, params=params, model_state=model_state, rng=rng)
    return jax.tree.map(lambda x, to: jax.device_put(x.reshape(to.shape), to.sharding), state, program.abstract_state)


@functools.cache
def initial(subject: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random parameters, and the initial model state.

    NumPy draws the parameters: XLA compiles the random numbers of the model for half as long as its step.
    """
    spec, rng = on_one_device(subject)[0].spec, np.random.default_rng(0)

    def draw(path: str, to: Any) -> np.ndarray:
        scale, noise = path.endswith("scale"), rng.standard_normal(to.shape)
        if scale or to.ndim < 2:
            return (scale + 0.1 * noise).astype(to.dtype)
        return (noise / np.sqrt(np.prod(to.shape[:-1]))).astype(to.dtype)

    params = {path: draw(path, to) for path, to in spec.model.params.items()}
    if not spec.model.model_state:
        return params, {}
    return params, jax.device_get(jax.jit(lambda: spec.model.init(spec.task, 0)[1])())


@functools.cache
def alone(subject: str) -> Steps:
    """The same steps on one device."""
    return train(subject, None)


@functools.cache
def error_when_shaken(subject: str) -> float:
    """The largest change of a loss by a small change of the parameters: large where a token changes its expert."""
    return float(np.abs(1 - train(subject, None, SHAKE).losses / alone(subject).losses).max())


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


# Two shards take every other test, and each model is trained on one device in one shard only.
ALL = mesh_table.ROWS
HALVES = [[row for row in ALL if not unsplit(*row) and list(SUBJECTS).index(row[0]) % 2 == half] for half in (0, 1)]
TRAINED = [row for rows in itertools.zip_longest(*HALVES) for row in rows if row]


def test_table_has_every_pair_of_settings_that_all_models_on_all_meshes_have():
    product = [row for row in itertools.product(SUBJECTS, MESHES) if row[1] not in SUBJECTS[row[0]].without]
    wanted, found = (set().union(*(mesh_table.pairs(*row, unsplit(*row)) for row in rows)) for rows in (product, ALL))
    assert not wanted - found and {*ALL} <= {*product}


def test_every_task_of_models_is_in_a_row():
    tasks = [SUBJECTS[subject].task() for subject, _ in TRAINED]
    rows, written = {type(getattr(task, "task", task)) for task in tasks}, set()  # that of an author, in a joint one
    for module in pkgutil.walk_packages(models.__path__, f"{models.__name__}."):
        found = vars(importlib.import_module(module.name)).values()
        written |= {each for each in found if isinstance(each, type) and issubclass(each, Task)}
    trained = {base for row in rows for base in row.__mro__ if base.__module__.startswith(models.__name__)}
    assert {each for each in written if each.__module__.startswith(models.__name__)} <= trained


@pytest.mark.parametrize(("subject", "mesh"), TRAINED)
def test_mesh_matches_one_device(subject, mesh):
    wanted, found = alone(subject), train(subject, mesh)
    assert "expert" not in SUBJECTS[subject].splits or error_when_shaken(subject) <= TOLERANCE, "choose other SEEDS"
    assert found.flops == wanted.flops and (found.flops > 0) == bool(SUBJECTS[subject].splits)
    gradient, path = error(wanted.gradient, found.gradient)
    errors = {
        "losses": float(np.abs(1 - found.losses / wanted.losses).max()),
        f"gradient of {path}": gradient,
        "parameters": error(wanted.params, found.params)[0],
    }
    if wanted.model_state:  # batch statistics are those of the whole global batch
        errors["model state"] = error(wanted.model_state, found.model_state)[0]
    table.append(f"{subject:12} {mesh:32} {max(errors.values()):.1e}")
    assert max(errors.values()) <= SUBJECTS[subject].tolerance, errors


@pytest.mark.parametrize(("subject", "mesh"), [row for row in ALL if unsplit(*row)])
def test_mesh_axis_that_the_model_cannot_split_is_refused(subject, mesh):
    with pytest.raises(ShardingError, match=r"mesh.(pipeline|context|expert) = \d: the model of \w+ has no "):
        train(subject, mesh)
    table.append(f"{subject:12} {mesh:32} refused")


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
