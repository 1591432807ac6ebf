"""A model of `models.py` in a hand-written JAX loop: a worker, whose argument is `jobs.Job` as JSON.

With a second argument it reports the time of its first step and ends.
"""

import functools
import math
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.accelerator import jobs
from benchmarks.accelerator.models import LEARNING_RATE, WEIGHT_DECAY, Cnn, decays
from benchmarks.accelerator.plain_models import first_weight, loss
from benchmarks.first_step_hook import report_first_step
from benchmarks.worker import serve


def sharding(mesh: Mesh, shape: tuple[int, ...], stacked: bool) -> NamedSharding:
    """Splits the first dimension of a weight that divides over the devices, after that of the layers."""
    for i in range(int(stacked), len(shape)):
        if shape[i] % mesh.size == 0 and math.prod(shape) >= 2**12:
            return NamedSharding(mesh, PartitionSpec(*[None] * i, "fsdp"))
    return NamedSharding(mesh, PartitionSpec())


def main() -> None:
    """Trains a turn at a time."""
    job = jobs.read_job(jobs.job_of_process())
    model, mesh = job.model, Mesh(np.array(jobs.devices(job)), ("fsdp",))
    weights = model.weights
    shardings = {name: sharding(mesh, shape, name.startswith("stack/")) for name, (shape, _) in weights.items()}
    decayed = {name: decays(name, shape) for name, (shape, _) in weights.items()}
    tx = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=decayed)

    @functools.partial(jax.jit, out_shardings=shardings)
    def first_params() -> dict[str, jax.Array]:
        return {name: first_weight(name, *of) for name, of in weights.items()}

    everywhere = NamedSharding(mesh, PartitionSpec())
    params, state = first_params(), {}
    if isinstance(model, Cnn):
        for i, size in ((1, model.width), (2, 2 * model.width)):
            state |= {f"norm{i}/mean": jnp.zeros(size), f"norm{i}/var": jnp.ones(size)}
    state = jax.device_put(state, everywhere)
    opt_state = tx.init(params)  # each of its arrays has the sharding of its weight
    opt_state = jax.device_put(opt_state, jax.tree.map(lambda x: x.sharding if x.ndim else everywhere, opt_state))
    arrays, rows = model.data(model.rows()), NamedSharding(mesh, PartitionSpec("fsdp"))
    out_shardings = (*jax.tree.map(lambda x: x.sharding, (params, state, opt_state)), everywhere)

    def step(params: Any, state: Any, opt_state: Any, batch: Any) -> Any:
        (value, state), grads = jax.value_and_grad(functools.partial(loss, model), has_aux=True)(params, state, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, value

    program = jax.jit(step, donate_argnums=(0, 1, 2), out_shardings=out_shardings)

    def put(number: int) -> dict[str, jax.Array]:
        first = number * model.batch % model.rows()
        return jax.device_put({name: x[first : first + model.batch] for name, x in arrays.items()}, rows)

    done, batch = 0, put(0)
    compiled: Any = None

    def turn(steps: int) -> list[float]:
        nonlocal params, state, opt_state, done, batch, compiled
        losses, begin = [], time.perf_counter()
        if compiled is None:  # ahead of time, so that no later step compiles again
            compiled = program.lower(params, state, opt_state, batch).compile()
        for _ in range(steps):
            params, state, opt_state, value = compiled(params, state, opt_state, batch)
            losses.append(value)
            done += 1
            batch = put(done)  # travels to the device while it computes
        jax.block_until_ready(params)
        seconds = time.perf_counter() - begin
        return [seconds, *(float(value) for value in losses)]

    if len(sys.argv) > 2:
        turn(1)
        report_first_step()
    serve(turn, jobs.peak_bytes)


if __name__ == "__main__":
    main()
