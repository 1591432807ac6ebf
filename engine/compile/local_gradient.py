"""Computes the gradient of the rows of each device twice: on that device, and on the next one, to compare the bits.

It is a program of its own. A device has all parameters there and calls the loss as if it were alone, so that nothing
between the parameters and the gradient depends on another device. Both computations run the same executable: the rows
move to the next device in between. So a healthy device gives the same bits as its neighbour.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import PartitionSpec

from engine.base.errors import ConfigError
from engine.compile.program import Program
from engine.data.batch import Batch
from engine.parallel.digest import Digests
from engine.parallel.layout import with_layout
from engine.parallel.mesh import AXES, BATCH_AXES, one_device, replicated
from engine.training.arrays import Arrays
from engine.training.gradients import gradients
from engine.training.state import TrainState
from engine.training.step import step_key
from engine.training.update import has_own_update

FIELD = "resilience.gradient_check"
GPU_FLAG = "--xla_gpu_deterministic_ops=true"
_SPLIT_BY_LAYERS = [axis for axis in AXES if axis not in BATCH_AXES or axis == "expert"]

type Suspects = dict[str, list[int]]
"""Path of a parameter -> indices in `mesh.devices.flat` of the devices whose gradient may be wrong."""


def check_supported(program: Program, flags: str | None = None) -> None:
    """Refuses programs whose devices do not compute the same bits for the same rows.

    Args:
        program: the program of the run.
        flags: value of XLA_FLAGS; by default that of the environment.

    Raises:
        ConfigError: the mesh, the platform or the Task does not allow the check.
    """
    spec, advice = program.spec, f"Use {FIELD}=None."
    name, platform = type(spec.task).__name__, spec.layout.platform
    for axis in _SPLIT_BY_LAYERS:
        if (size := spec.mesh.shape[axis]) > 1:
            raise ConfigError(
                f"{FIELD}: mesh.{axis} = {size} splits the layers of {name}, so that no device computes a gradient "
                f"alone. The check needs a mesh of data and fsdp. {advice}"
            )
    if platform == "gpu" and GPU_FLAG not in (os.environ.get("XLA_FLAGS", "") if flags is None else flags).split():
        raise ConfigError(
            f"{FIELD}: two GPUs give the same bits only with deterministic operations. Set XLA_FLAGS={GPU_FLAG}, which "
            f"makes some operations slower. Otherwise: {advice}"
        )
    if platform not in ("cpu", "gpu"):
        raise ConfigError(
            f"{FIELD}: found devices of the platform {platform}, on which equal bits have not been shown. Allowed are "
            f"cpu and gpu. {advice}"
        )
    if has_own_update(spec.task):
        raise ConfigError(f"{FIELD}: {name} has an update of its own in place of the gradient of a loss. {advice}")
    if spec.row_state:
        raise ConfigError(f"{FIELD}: {name} keeps state for each row ({', '.join(spec.row_state[:3])}). {advice}")
    if not spec.loss_on_each_device:
        raise ConfigError(
            f"{FIELD}: the loss of {name} is one number per batch or calls Python, so that no device computes a part "
            f"of it alone. Return Loss.of(values) with one value per example. Otherwise: {advice}"
        )


class LocalGradients:
    """The compiled programs of the check, for batches of any shape of the run.

    Args:
        program: the program of the run, which `check_supported` has accepted.
    """

    def __init__(self, program: Program):
        self._mesh, self._batch_sharding = program.mesh, program.spec.batch_sharding
        self._compute = jax.jit(_make_local_gradient(program))
        params, whole = program.abstract_state.params, replicated(self._mesh)
        trained = {path: params[path] for path in program.spec.model.trained}
        self._digests = Digests({k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for k, x in trained.items()})

    def suspects(self, state: TrainState, batch: Batch) -> Suspects:
        """Returns the devices whose gradient differs from that of a neighbour; waits. Every process must call it.

        If two neighbours differ, a third device decides which of them is wrong, where the mesh has one.
        """
        own, next_one = (self._rows(state, batch, distance) for distance in (0, 1))
        votes = [own, next_one]
        if (own == next_one).all():
            return {}
        if self._mesh.size > 2:
            votes.append(self._rows(state, batch, 2))
        return find_suspects(self._digests.paths, np.stack(votes))

    def _rows(self, state: TrainState, batch: Batch, distance: int) -> np.ndarray:
        """Returns the digests `[devices, arrays, 2]` of the rows of each device, as `distance` devices later has them.

        The state keeps no part that the gradient does not need, which would be copied to all devices.
        """
        small = dataclasses.replace(state, opt_state={}, ema=None, loss_window=state.step)
        grads = self._compute(small, self._moved(batch, distance))
        return np.roll(np.asarray(self._digests.rows(grads, gather=True)), -distance, 0)

    def _moved(self, batch: Batch, distance: int) -> Batch:
        """Returns a batch whose rows are so many devices later."""
        if not distance:
            return batch
        return _roll(batch, distance, self._mesh.size, self._batch_sharding)


def find_suspects(paths: tuple[str, ...], votes: np.ndarray) -> Suspects:
    """Returns the devices whose digest of the same gradient is not that of most devices; all of them if none is.

    Args:
        paths: paths of the parameters.
        votes: uint32 `[computations, devices, arrays, 2]`: computation n of the rows of device i is that of device i+n.
    """
    size, found = votes.shape[1], {}
    for array, path in enumerate(paths):
        suspects: set[int] = set()
        for device in range(size):
            values = [tuple(vote) for vote in votes[:, device, array]]
            most = max(values, key=values.count)
            if values.count(most) == 1:
                most = None
            suspects |= {
                (device + n) % size for n, value in enumerate(values) if value != most and len(set(values)) > 1
            }
        if suspects:
            found[path] = sorted(suspects)
    return found


def _make_local_gradient(program: Program) -> Callable[[TrainState, Batch], Arrays]:
    """Returns `(state, batch) -> gradients`: each device's own, although their sharding says that all are equal."""
    spec = program.spec
    layout = dataclasses.replace(
        spec.layout, mesh=one_device(spec.mesh), zero1=False, offload_optimizer=False, used=set()
    )
    alone = dataclasses.replace(spec, layout=layout, accumulate=1, opt_shardings=None, grad_shardings={})

    def local(state: TrainState, batch: Batch) -> Arrays:
        rows = len(batch.weight) // spec.accumulate  # those of one microbatch, for which there is memory
        first = jax.tree.map(lambda x: x[:rows], batch)
        return gradients(alone, program.task_metrics, state, first, step_key(state, state.step), state.step)[0]

    whole, rows = PartitionSpec(), PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        with_layout(layout, local), mesh=spec.mesh, in_specs=(whole, rows), out_specs=whole, check_vma=False
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _roll(batch: Batch, distance: int, devices: int, sharding: jax.sharding.NamedSharding) -> Batch:
    def roll(x: jax.Array) -> jax.Array:
        moved = jax.numpy.roll(x, distance * (len(x) // devices), 0)
        return jax.lax.with_sharding_constraint(moved, sharding)

    return jax.tree.map(roll, batch)
