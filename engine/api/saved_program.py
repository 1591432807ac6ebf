"""The program of a trained model on the devices at hand, which need not be those of its training."""

from collections.abc import Callable, Iterable, Sequence

import jax
from jax.sharding import Mesh

from engine.api.prepared import set_up_devices
from engine.base.errors import ConfigError, ShardingError
from engine.base.types import Device
from engine.cluster import group
from engine.compile.build import build_evaluation_program
from engine.compile.evaluation_program import EvaluationProgram
from engine.config.schema import Config, MeshSpec
from engine.parallel.fitting import fitting_meshes, spec_text
from engine.parallel.mesh import axes_text, check_batch, make_mesh
from engine.training.task import Task


def open_program(
    task: Task,
    config: Config,
    overrides: Sequence[str],
    batch_sizes: Iterable[int],
    say: Callable[[str], None],
    devices: Sequence[Device] | None = None,
) -> tuple[MeshSpec, EvaluationProgram]:
    """Creates the devices and returns the program of a run on them, with its config section `mesh`.

    If the mesh of the run does not fit the devices, the model or the batches, another one does, and a sentence says so.

    Args:
        task: the Task of the run.
        config: config of the run, with the overrides.
        overrides: changes of the config; a mesh, a sharding or a number of devices that they choose is not replaced.
        batch_sizes: sizes of the global batches.
        say: called with a sentence for the user, in the primary.
        devices: devices to use; None: all devices of JAX.

    Raises:
        TaskError, ShardingError, ConfigError: the Task, the devices and the settings do not fit together.
    """
    spec, program = _open(task, config, overrides, batch_sizes, say, devices)
    if group.count() > 1 and devices is None:
        from engine.parallel.connect import connect  # a single process does not need it

        connect(program.mesh)
    return spec, program


def _open(
    task: Task,
    config: Config,
    overrides: Sequence[str],
    batch_sizes: Iterable[int],
    say: Callable[[str], None],
    devices: Sequence[Device] | None,
) -> tuple[MeshSpec, EvaluationProgram]:
    names = [text.partition("=")[0].strip() for text in overrides]

    def build(mesh: Mesh) -> EvaluationProgram:
        return build_evaluation_program(task, mesh, config.train, config.sharding, config.optimizer.trainable)

    is_chosen = any(name.startswith(("mesh.", "sharding.")) and name != "mesh.cpu_devices" for name in names)
    try:
        set_up_devices(config)
    except ConfigError:  # JAX has started in this process with another number of devices, as in a notebook
        if is_chosen or "mesh.cpu_devices" in names:
            raise
    if is_chosen:
        return config.mesh, build(make_mesh(config.mesh, devices))
    found = jax.devices() if devices is None else devices
    first: ShardingError | None = None
    for spec, chosen in fitting_meshes(config.mesh, found):
        try:
            program = build(make_mesh(spec, chosen))
            program.abstract_weights(averaged=False)
            for size in batch_sizes:
                check_batch(program.mesh, size, 1, "the batch size")
        except ShardingError as error:
            first = first or error
            continue
        if first is not None and group.is_primary():
            say(
                f"warning: the mesh of the run ({spec_text(config.mesh)}) does not fit here, so "
                f"{axes_text(program.mesh.shape)} is used, on {len(chosen)} of {len(found)} "
                f"device{'s' * (len(found) > 1)}. --config.mesh.NAME=N chooses another."
            )
        return spec, program
    assert first is not None
    raise first
