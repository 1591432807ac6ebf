"""Updates of an optimizer on a mesh and on one device: first with given gradients, then in whole train steps.

Given gradients are the same bits on every mesh. So they show whether the optimizer computes the same update, apart from
the rounding of its own sums. In whole steps each device rounds its part of a gradient, which some optimizers enlarge:
Lion by the sign of numbers near zero, Muon by small singular values. `shake` says how far a relative change of the
first parameters moves the result on one device.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.optimizer_matrix.subjects import MIXES, ROWS, Text, has_experts, on_mesh, on_one_device
from engine.compile.program import Program
from engine.data.batch import Batch
from engine.parallel.layout import with_layout
from engine.parallel.mesh import replicated
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
    """Parameters after the steps minus those at the start, and the losses of whole steps."""

    changes: Arrays
    losses: np.ndarray


@functools.cache
def first_params(experts: bool) -> Arrays:
    """Returns the parameters with which every run starts."""
    rng, found = np.random.default_rng(2), {}
    for path, x in on_one_device("adamw", experts).abstract_state.params.items():
        scale = "scale" in path
        found[path] = rng.normal(float(scale), 0.1 if scale else 0.2, x.shape).astype(np.float32)
    return found


@functools.cache
def gradients(experts: bool) -> tuple[Arrays, ...]:
    """Returns gradients of each step, of about the size that those of the decoder have."""
    rng = np.random.default_rng(0)
    shapes = {path: x.shape for path, x in first_params(experts).items()}
    return tuple(
        {path: rng.normal(0, 0.02, shape).astype(np.float32) for path, shape in shapes.items()} for _ in range(STEPS)
    )


def updated(optimizer: str, mesh: str | None, experts: bool = False, shake: float = 0.0) -> Result:
    """Returns the result of updates with given gradients.

    Args:
        optimizer: a key of OPTIMIZERS.
        mesh: a key of MESHES; None for one device.
        experts: whether the decoder of one device has experts.
        shake: relative change of each gradient.
    """
    experts, program = _program(optimizer, mesh, experts)
    noise = np.random.default_rng(1).standard_normal
    spec, start = program.spec, first_params(experts)
    state = program.abstract_state
    params = {path: jax.device_put(x, state.params[path].sharding) for path, x in start.items()}
    opt_state = program.compile_optimizer_state()(params)[0]

    def update(params: Any, opt_state: Any, grads: Any) -> Any:
        grads = constrain(spec, grads)
        return optimize(spec, params, opt_state, grads, optax.tree.norm(grads))

    shardings = jax.tree.map(lambda x: x.sharding, (state.params, state.opt_state))
    jitted = jax.jit(with_layout(spec.layout, update), out_shardings=shardings)
    for each in gradients(experts):
        if shake:
            each = {path: x * (1 + shake * noise(x.shape, np.float32)) for path, x in each.items()}
        grads = {path: jax.device_put(x, state.params[path].sharding) for path, x in each.items()}
        params, opt_state = jitted(params, opt_state, grads)
    return Result(_changes(start, params), np.zeros(0))


def trained(optimizer: str, mesh: str | None, experts: bool = False, shake: float = 0.0) -> Result:
    """Returns the result of whole train steps.

    Args:
        optimizer: as for `updated`.
        mesh: as for `updated`.
        experts: as for `updated`.
        shake: relative change of the parameters at the start.
    """
    experts, program = _program(optimizer, mesh, experts)
    start, noise = first_params(experts), np.random.default_rng(1).standard_normal
    shaken = {path: x * (1 + shake * noise(x.shape, np.float32)) for path, x in start.items()} if shake else start
    shardings = program.abstract_state.params
    state = program.init({path: jax.device_put(x, shardings[path].sharding) for path, x in shaken.items()})
    step = _compiled(optimizer, mesh, experts)
    numbers, losses = jax.device_put(program.spec.optimizer.numbers, replicated(program.mesh)), []
    for i in range(STEPS):
        batch = Batch(_batch(i), np.ones(ROWS, np.float32))
        placed = jax.device_put(batch, program.spec.batch_sharding)
        state, metrics = step(state, (placed,), program.skip_mask((False,)), numbers)
        losses.append(float(metrics[0, 0, 0] / metrics[0, 0, 1]))
    return Result(_changes(shaken, state.params), np.array(losses))


@functools.cache
def _compiled(optimizer: str, mesh: str | None, experts: bool) -> jax.stages.Compiled:
    return _program(optimizer, mesh, experts)[1].trace(1).lower().compile()


def _program(optimizer: str, mesh: str | None, experts: bool) -> tuple[bool, Program]:
    if mesh is None:
        return experts, on_one_device(optimizer, experts)
    return has_experts(mesh), on_mesh(optimizer, mesh)


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
