"""Two problems with known answers, on which every optimizer runs in milliseconds.

- `least_squares`: a linear regression `A W = B` with a condition number of 10^4 and without noise. Its minimum is
  known, and a loss is the distance to it as a share of the distance at the start.
- `noisy_quadratic`: 1/2 sum h_i x_i^2 with h_i = 1/i and gradients with a noise of variance h_i / B (Zhang et al. 2019,
  arXiv:1907.04164). A loss is the exact risk. For gradient descent with momentum and a constant learning rate the risk
  is known, after any number of steps (`expected_risk`) and in the steady state (`steady_risk`).

The parameter is a matrix `w`, so that Muon and SOAP treat it as one.
"""

import dataclasses
import functools
import math
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.optimizers.optimizers import OPTIMIZERS, OptimizerSpec
from benchmarks.optimizers.rows import Row, Run
from benchmarks.optimizers.spaces import program_key
from engine.base.errors import ConfigError
from engine.base.types import PyTree
from engine.config.target import parameters_of

CONDITION = 1e4
NOISE_BATCH = 16
"""B of the noisy quadratic."""
MOMENTA, STEADY_RATES = (0.0, 0.9), (0.02, 0.05, 0.1)
"""Momentum and constant learning rates of gradient descent whose risk is compared with the known one."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem with one matrix `w`.

    Attributes:
        title: name for people.
        steps: steps of a run.
        first: the parameter at the start.
        gradient: (w, key) -> gradient, with noise if the problem has noise.
        loss: w -> the loss without noise.
    """

    title: str
    steps: int
    first: np.ndarray
    gradient: Callable[[jax.Array, jax.Array], jax.Array]
    loss: Callable[[jax.Array], jax.Array]


def _least_squares(rows: int = 128, inputs: int = 32, outputs: int = 16) -> Problem:
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=(size, inputs)))[0] for size in (rows, inputs))
    matrix = (left * np.geomspace(1, CONDITION**-0.5, inputs)) @ right.T  # singular values; A^T A has their squares
    best = random.normal(size=(inputs, outputs))
    a, solution = jnp.asarray(matrix, jnp.float32), jnp.asarray(best, jnp.float32)

    def gap(w: jax.Array) -> jax.Array:
        """Returns f(w) - f(solution) exactly: the residual of the solution is orthogonal to the columns of A."""
        return 0.5 * jnp.sum((a @ (w - solution)) ** 2)

    first = np.zeros((inputs, outputs), np.float32)
    start = float(gap(jnp.asarray(first)))
    return Problem(
        "least squares, condition number 10^4",
        2000,
        first,
        lambda w, key: a.T @ (a @ (w - solution)) / start,
        lambda w: gap(w) / start,
    )


def _noisy_quadratic(side: int = 32) -> Problem:
    curvature = _curvature(side)
    h = jnp.asarray(curvature, jnp.float32)
    noise = jnp.asarray(np.sqrt(curvature / NOISE_BATCH), jnp.float32)
    return Problem(
        "noisy quadratic",
        2000,
        np.ones((side, side), np.float32),
        lambda w, key: h * w + noise * jax.random.normal(key, w.shape),
        lambda w: 0.5 * jnp.sum(h * w**2),
    )


def _curvature(side: int = 32) -> np.ndarray:
    return (1 / np.arange(1, side * side + 1)).reshape(side, side)


def steady_risk(rate: float, momentum: float = 0.0, side: int = 32) -> float:
    """Returns the expected risk of gradient descent with heavy-ball momentum after many steps of a constant rate.

    x' = (1 + m) x - m x_before - r (h x + e) with a noise e of variance h / B has the variance
    r (1 + m) / (B (1 - m) (2 (1 + m) - r h)) in its steady state.
    """
    h = _curvature(side)
    variance = rate * (1 + momentum) / (NOISE_BATCH * (1 - momentum) * (2 * (1 + momentum) - rate * h))
    return float(0.5 * np.sum(h * variance))


def expected_risk(rate: float, momentum: float, at: Sequence[int], side: int = 32) -> list[float]:
    """Returns the expected risk of the same after some steps, which tends to that of the steady state.

    The second moments of a parameter x and its momentum v follow a linear recursion.
    """
    h = _curvature(side).ravel()
    one, zero = np.ones_like(h), np.zeros_like(h)
    matrix = np.array([[one - rate * h, -rate * momentum * one], [h, momentum * one]])  # (x, v) -> the next ones
    noise = np.array([[rate**2 * one, -rate * one], [-rate * one, one]]) * h / NOISE_BATCH
    moments, found = np.array([[one, zero], [zero, zero]]), []
    for step in range(1, max(at) + 1):
        moments = np.einsum("abn,bcn,dcn->adn", matrix, moments, matrix) + noise
        if step in at:
            found.append(float(0.5 * np.sum(h * moments[0, 0])))
    return found


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "least_squares": functools.cache(_least_squares),
    "noisy_quadratic": functools.cache(_noisy_quadratic),
}
"""Name -> problem."""


def train_problem(run: Run) -> Row:
    """Returns the row of a run on a problem."""
    program, state_bytes = _program(run.task, run.steps, run.optimizer, program_key(run.settings))
    rate, key = jnp.float32(run.settings["learning_rate"]), jax.random.key(run.seed)
    jax.block_until_ready(program(rate, key))  # compiles, and warms up
    begin = time.process_time()
    losses = np.asarray(jax.block_until_ready(program(rate, key)))
    seconds = time.process_time() - begin
    found = [float(losses[step - 1]) for step in run.evaluations]
    diverged = not all(map(math.isfinite, found))
    if diverged:
        found = found[: next(place for place, loss in enumerate(found) if not math.isfinite(loss)) + 1]
    size = PROBLEMS[run.task]().first.nbytes
    return Row(run, found, [], seconds, 1000 * seconds / run.steps, state_bytes, size, diverged)


@functools.lru_cache(maxsize=4)
def _program(
    name: str, steps: int, optimizer: str, shared: tuple[tuple[str, Any], ...]
) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], int]:
    """Returns the compiled program (learning rate, key) -> losses `[steps]`, and the bytes of the optimizer state."""
    problem, spec, settings = PROBLEMS[name](), OPTIMIZERS[optimizer], dict(shared)
    shape = _shape(settings.get("schedule", spec.schedule), steps, round(float(settings.get("warmup", 0)) * steps))

    def transformation(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(_build(spec, lambda count: rate * shape(count), rate, settings))

    def gradient(w: jax.Array, key: jax.Array) -> jax.Array:
        found = problem.gradient(w, key)
        if spec.sam is None:
            return found
        return problem.gradient(w + spec.sam * found / (jnp.linalg.norm(found) + 1e-12), key)

    def losses(rate: jax.Array, key: jax.Array) -> jax.Array:
        tx = transformation(rate)
        first = {"w": jnp.asarray(problem.first)}

        def step(carry: PyTree, number: jax.Array) -> tuple[PyTree, jax.Array]:
            params, state = carry
            grads = {"w": gradient(params["w"], jax.random.fold_in(key, number))}
            updates, state = tx.update(grads, state, params)
            params: Any = optax.apply_updates(params, updates)
            return (params, state), problem.loss(_averaged(state, params)["w"])

        return jax.lax.scan(step, (first, tx.init(first)), jnp.arange(steps))[1]

    state = jax.eval_shape(lambda rate: transformation(rate).init({"w": jnp.asarray(problem.first)}), jnp.float32(1))
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return jax.jit(losses), size


def _averaged(state: PyTree, params: PyTree) -> PyTree:
    """Returns the parameters to evaluate: the averages of a schedule-free optimizer."""
    if isinstance(state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(state, params)
    return params


def _shape(schedule: object, steps: int, warmup: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate over its peak, as a function of the step."""

    def factor(count: jax.Array) -> jax.Array:
        rise = jnp.minimum(1.0, count / warmup) if warmup else 1.0
        if schedule == "constant":
            return rise * jnp.float32(1)
        done = jnp.clip((count - warmup) / (steps - warmup), 0, 1)
        return rise * 0.5 * (1 + jnp.cos(jnp.pi * done))

    return factor


def _build(
    spec: OptimizerSpec, schedule: Callable[[jax.Array], jax.Array], rate: jax.Array, settings: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Returns the transformation of an optimizer for one matrix."""
    try:
        target = pkgutil.resolve_name(spec.target)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{spec.target} of {spec.title} is missing: {error}.") from error
    takes = parameters_of(target) or {}
    arguments: dict[str, Any] = {**spec.arguments, **dict.fromkeys({"weight_decay"} & takes.keys(), 0.0)}
    arguments |= {name: value for name, value in settings.items() if name in takes}
    numbers = optax.contrib.MuonDimensionNumbers((0,), (1,))
    for name in {"matrices", "muon_weight_dimension_numbers"} & takes.keys():
        arguments[name] = lambda params: dict.fromkeys(params, numbers)
    if spec.adam_ratio is not None:
        ratio = spec.adam_ratio
        arguments["adam_learning_rate"] = lambda count: ratio * schedule(count)
    return target(schedule, **arguments)
