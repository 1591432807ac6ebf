"""Updates of an optimizer on a mesh and on one device: first with given gradients, then in whole train steps.

Given gradients are the same bits on every mesh. So they show whether the optimizer computes the same update, apart from
the rounding of its own sums. In whole steps each device rounds its part of a gradient, which some optimizers enlarge:
Lion by the sign of numbers near zero, Muon by small singular values. `shake` says how far a relative change of the
first parameters moves the result on one device.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.optimizer_matrix.subjects import MIXES, ROWS, Text, built, has_experts
from engine.compile.program import Program
from engine.data.batch import Batch
from engine.parallel.layout import with_layout
from engine.training.gradients import constrain
from engine.training.update import optimize

STEPS = 3
SHAKE = 1e-6
"""Relative change of each parameter, about ten times the rounding of float32."""
TOLERANCE = 1e-5
"""Of updates with given gradients."""
BASES = 1e-4
"""The same with SOAP: a relative change of the gradients by 1e-6 on one device changes its updates by 4e-5, since the
eigenvectors of two near eigenvalues enlarge it."""

type Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Result:
    """What the steps have done.

    Attributes:
        changes: path -> parameter after the steps minus that at the start.
        losses: the loss of each whole step.
        params: the parameters after each dispatch.
        averages: the averages of `train.ema_decay` after the last step.
    """

    changes: Arrays
    losses: np.ndarray
    params: Sequence[Arrays] = ()
    averages: Arrays | None = None


def random_params(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns parameters: scales around 1, and others around 0."""
    rng, found = np.random.default_rng(2), {}
    for path, shape in shapes.items():
        scale = "scale" in path
        found[path] = rng.normal(float(scale), 0.1 if scale else 0.2, shape).astype(np.float32)
    return found


@functools.cache
def first_params(experts: bool) -> Arrays:
    """Returns the parameters with which every run starts."""
    return random_params({path: x.shape for path, x in built("adamw", None, experts).abstract_state.params.items()})


@functools.cache
def gradients(experts: bool) -> tuple[Arrays, ...]:
    """Returns gradients of each step, of about the size that those of the decoder have."""
    rng = np.random.default_rng(0)
    shapes = {path: x.shape for path, x in first_params(experts).items()}
    return tuple(
        {path: rng.normal(0, 0.02, shape).astype(np.float32) for path, shape in shapes.items()} for _ in range(STEPS)
    )


class Updates:
    """Updates of an optimizer with given gradients, without a forward pass.

    Args:
        optimizer: a key of OPTIMIZERS or MIXES.
        mesh: a key of MESHES, which decides whether the decoder has experts; None for one device.
        experts: whether the decoder of one device has experts.
        setting: as for `subjects.built`.
    """

    def __init__(self, optimizer: str, mesh: str | None, experts: bool = False, setting: str = ""):
        _, program = _program(optimizer, mesh, experts, setting)
        self._state, spec = program.abstract_state, program.spec
        self.params: Any = self._placed(random_params({path: x.shape for path, x in self._state.params.items()}))
        self._opt_state = program.compile_optimizer_state()(self.params)[0]
        self._grads = self.params

        def update(params: Any, opt_state: Any, grads: Any) -> Any:
            grads = constrain(spec, grads)
            return optimize(spec, params, opt_state, grads, optax.tree.norm(grads))

        shardings = jax.tree.map(lambda x: x.sharding, (self._state.params, self._state.opt_state))
        self._update = jax.jit(with_layout(spec.layout, update), out_shardings=shardings)

    def _placed(self, arrays: Arrays) -> dict[str, jax.Array]:
        return {path: jax.device_put(x, self._state.params[path].sharding) for path, x in arrays.items()}

    def step(self, grads: Arrays | None = None) -> None:
        """Updates the parameters; None: with the gradients of the step before, at first the first parameters."""
        self._grads = self._grads if grads is None else self._placed(grads)
        self.params, self._opt_state = self._update(self.params, self._opt_state, self._grads)


def updated(optimizer: str, mesh: str | None, experts: bool = False, shake: float = 0.0) -> Result:
    """Returns the result of updates with given gradients.

    Args:
        optimizer: as for `Updates`.
        mesh: as for `Updates`.
        experts: as for `Updates`.
        shake: relative change of each gradient.
    """
    experts = has_experts(mesh) if mesh else experts
    run, noise = Updates(optimizer, mesh, experts), np.random.default_rng(1).standard_normal
    for each in gradients(experts):
        run.step({path: x * (1 + shake * noise(x.shape, np.float32)) for path, x in each.items()} if shake else each)
    return Result(_changes(first_params(experts), run.params), np.zeros(0))


def trained(
    optimizer: str, mesh: str | None, experts: bool = False, shake: float = 0.0, setting: str = "", k: int = 1
) -> Result:
    """Returns the result of whole train steps.

    Args:
        optimizer: as for `updated`.
        mesh: as for `updated`.
        experts: as for `updated`.
        shake: relative change of the parameters at the start.
        setting: a key of SETTINGS.
        k: steps of a dispatch.
    """
    experts, program = _program(optimizer, mesh, experts, setting)
    noise, shardings = np.random.default_rng(1).standard_normal, program.abstract_state.params
    start = {path: x for path, x in first_params(experts).items() if path in shardings}
    start = {path: x * (1 + shake * noise(x.shape, np.float32)) if shake else x for path, x in start.items()}
    state = program.init({path: jax.device_put(x, shardings[path].sharding) for path, x in start.items()})
    begin, params, losses = jax.device_get(state.params), [], []
    steps = program.steps(k)
    for first in range(0, STEPS, k):
        batches = tuple(Batch(_batch(i), np.ones(ROWS, np.float32)) for i in range(first, first + k))
        placed = jax.device_put(batches, program.spec.batch_sharding)
        state, metrics = steps(state, placed, program.skip_mask((False,) * k))
        losses += [float(each[0, 0] / each[0, 1]) for each in np.asarray(metrics)]
        params.append(jax.device_get(state.params))
    averages = None if state.ema is None else jax.device_get(state.ema)
    return Result(_changes(begin, params[-1]), np.array(losses), [begin, *params], averages)


def _program(optimizer: str, mesh: str | None, experts: bool, setting: str = "") -> tuple[bool, Program]:
    return has_experts(mesh) if mesh else experts, built(optimizer, mesh, experts, setting)


def _batch(step: int) -> dict[str, np.ndarray]:
    text = Text()
    rows = [text[i] for i in range(step * ROWS, (step + 1) * ROWS)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _changes(start: Arrays, params: Mapping[str, Any]) -> Arrays:
    found = {path: np.asarray(jax.device_get(x), np.float64) for path, x in params.items()}
    return {path: found[path].reshape(x.shape) - x for path, x in start.items()}


def error(wanted: Arrays, found: Arrays) -> tuple[float, str]:
    """Returns the largest difference of an array over its norm, and its path; infinite if something is not finite.

    The norm is at least one hundredth of the array's share of the norm of all arrays.
    """
    norm, count = np.sqrt(sum(np.square(x).sum() for x in wanted.values())), sum(x.size for x in wanted.values())

    def of(path: str) -> float:
        if not np.isfinite(found[path]).all():
            return float("inf")
        least = 1e-2 * norm * np.sqrt(wanted[path].size / count)
        return float(np.linalg.norm(found[path] - wanted[path]) / max(np.linalg.norm(wanted[path]), least))

    return max((of(path), path) for path in wanted)


def tolerance(optimizer: str) -> float:
    """Returns the largest error that updates of an optimizer or a mix may have."""
    return BASES if "soap" in MIXES.get(optimizer, {"": optimizer}).values() else TOLERANCE


def loss_error(wanted: Result, found: Result) -> float:
    """Returns the largest relative difference of the losses."""
    return float(np.abs(1 - found.losses / wanted.losses).max())
