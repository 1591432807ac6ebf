"""Prepares a config for a verb: resolves its settings, checks it, and builds its data, Task, mesh and program.

The steps run in this order: `resolve_config`, `check_code`, `set_up_devices`, `prepare`, `Prepared.with_sizes`. A
training opens its run directory before `prepare`. No other module replaces automatic settings by values.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_collections
from jax.sharding import Mesh

from engine.api.objects import Objects
from engine.api.resume import newest_checkpoint, stored_roles
from engine.base.host import check_virtual_memory
from engine.base.types import Device
from engine.cluster import group
from engine.compile import cache
from engine.compile.build import build_evaluation_program, build_program, build_task
from engine.compile.program import Program
from engine.config.loading import load
from engine.config.schedules import check_functions
from engine.config.schema import Config, Train
from engine.config.setting import AUTO
from engine.config.target import check_targets
from engine.config.text import from_text
from engine.config.validation import validate
from engine.data.adapt import for_run
from engine.data.source import BaseSource
from engine.parallel.mesh import create_cpu_devices, fake_devices, make_mesh
from engine.run.directory import RunDirectory
from engine.storage.mounts import local_text
from engine.training.task import Task, for_sources

AnyConfig = Config | ml_collections.ConfigDict | str | Path


@dataclass(frozen=True)
class Prepared:
    """What a config describes, built.

    Attributes:
        config: the config, with values in place of automatic settings after `with_sizes`.
        objects: objects that replace targets of the config.
        task: the Task.
        mesh: the devices.
        source: the training data.
        evaluation_sources: name of an evaluation -> its data.
        roles: as for `build_program`.
    """

    config: Config
    objects: Objects
    task: Task
    mesh: Mesh
    source: BaseSource
    evaluation_sources: Mapping[str, BaseSource]
    roles: str | None = None

    @property
    def sources(self) -> dict[str, BaseSource]:
        """Config section -> source, the training data first."""
        evaluations = {f"evaluations.{name}.data": source for name, source in self.evaluation_sources.items()}
        return {"data": self.source} | evaluations

    def check_rows(self) -> None:
        """Raises ConfigError if `train.accumulate` is auto, and another number would change the result.

        It may run the loss on the devices. `train` checks a number once the trainer is built.
        """
        train = self.config.train
        if train.accumulate != AUTO:
            return
        from engine.compile.row_check import check_loss

        trainable = self.config.optimizer.trainable
        program = build_evaluation_program(self.task, self.mesh, train, self.config.sharding, trainable)
        check_loss(program, self.source, train)

    def with_sizes(self, say: Callable[[str], None] = lambda text: None, stored: Sequence[str] = ()) -> "Prepared":
        """Returns this with values in place of automatic settings of the step, for which it compiles programs.

        Args:
            say: called with a sentence about the choice.
            stored: fields of a resumed run whose values auto gave at its start.

        Raises:
            ConfigError: nothing fits, or the memory of the devices is not known.
        """
        if not (stored or _has_auto(self.config.train)):
            return self
        from engine.api.auto_size import choose_sizes
        from engine.loop.compiled_sizes import CompiledSizes

        compiled = functools.partial(
            CompiledSizes, self.build_program, self.config.evaluations, self.evaluation_sources, len(self.source)
        )
        train = choose_sizes(self.config, self.mesh, compiled, say, stored)
        config = dataclasses.replace(self.config, train=train)
        return dataclasses.replace(self, config=config, source=for_run(self.source, train))

    def build_program(self, train: Train | None = None, step: int | None = None) -> tuple[Program, int]:
        """Returns the program and the total number of steps; `train` replaces that section of the config.

        `step` is that of `compile.build.build_program`.
        """
        config = self.config if train is None else dataclasses.replace(self.config, train=train)
        return build_program(self.task, self.mesh, self.source, config, self.roles, step)


def prepare(
    config: Config,
    objects: Objects | None = None,
    devices: Sequence[Device] | None = None,
    directory: RunDirectory | None = None,
) -> Prepared:
    """Opens the data of a config, and builds its Task and its mesh; automatic sizes are not chosen yet.

    Args:
        config: the config, after `set_up_devices`.
        objects: objects that replace targets of the config.
        devices: devices of the mesh; None: all devices of JAX.
        directory: a run that the program resumes.
    """
    objects = objects or Objects()
    source, evaluation_sources = objects.build_sources(config.data, config.evaluations, config.train)
    task = build_task(config.task) if objects.task is None else objects.task
    roles = None if directory is None else stored_roles(directory)
    mesh = make_mesh(config.mesh, devices)
    prepared = Prepared(config, objects, task, mesh, source, evaluation_sources, roles)
    return dataclasses.replace(prepared, task=for_sources(task, prepared.sources))


def run_of(config: AnyConfig) -> RunDirectory | None:
    """Returns the run directory if the config is one."""
    if not isinstance(config, str | Path):
        return None
    directory = RunDirectory(local_text(str(config)))
    return directory if directory.exists() else None


def program(config: AnyConfig, devices: Sequence[Device] | None = None) -> tuple[Program, int]:
    """Returns the program of a config and the total number of steps; compiles only to choose automatic sizes.

    Args:
        config: as for `engine.train`.
        devices: devices of the mesh; None: all devices of JAX.
    """
    return prepare(set_up(resolve_config(config)), devices=devices).with_sizes().build_program()


def resolve_config(config: AnyConfig, *, cached: bool = True) -> Config:
    """Returns the validated config of a file, a module, a run directory, a ConfigDict or a Config.

    Args:
        config: as for `engine.train`.
        cached: False switches JAX's compilation cache off. JAX cannot read cached programs for absent devices.
    """
    if isinstance(config, str | Path):
        config = load(local_text(str(config)))
    elif not isinstance(config, Config):
        config = validate(config)
    return config if cached else dataclasses.replace(config, cache=dataclasses.replace(config.cache, compiled=False))


def check_code(config: Config) -> None:
    """Imports the targets and the schedules of a config and checks their arguments; does not initialize devices."""
    check_targets(config)
    check_functions(config.optimizer)


def set_up_devices(config: Config, directory: RunDirectory | None = None) -> Config:
    """Creates the CPU devices and enables the compilation cache; returns the config with the number of devices.

    Must be called before JAX initializes its devices. A resumed run keeps the number that "auto" gave at its start.
    """
    check_virtual_memory()
    if config.cache.compiled:
        cache.enable(config.cache.max_gib)
    setting = config.mesh.cpu_devices
    if setting == "auto" and directory is not None and directory.exists():
        setting = from_text(directory.read_config_text(), str(directory.config)).mesh.cpu_devices
    count = create_cpu_devices(setting, config.train.global_batch_size)
    if count is None:
        return config
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, cpu_devices=count))


def set_up(config: Config) -> Config:
    """Checks the code of a config and sets up its devices; returns the config with their number."""
    check_code(config)
    return set_up_devices(config)


def set_up_absent_devices(
    config: Config, count: int | None, hardware: str | None
) -> tuple[Config, Sequence[Device] | None]:
    """Sets up devices in place of those of a run; returns the config for them, and the devices.

    Args:
        config: the config.
        count: number of CPU devices; None: the product of the mesh axes.
        hardware: a target (`parallel/targets.py`), for which programs can be compiled; None: CPU devices.

    Returns:
        The config, and the devices; None if the devices of JAX suffice.
    """
    if hardware is None:
        mesh, devices = fake_devices(config.mesh, config.train.global_batch_size, count)
    else:
        from engine.parallel import targets

        if hardware == targets.LOCAL:
            set_up_devices(config)  # creates CPU devices, before JAX starts
        mesh, devices = dataclasses.replace(config.mesh, cpu_devices=None), targets.devices(hardware)
    return set_up(dataclasses.replace(config, mesh=mesh)), devices


def _has_auto(train: Train) -> bool:
    """Whether a setting of the section is auto, so that programs are compiled to choose it."""
    return AUTO in (train.global_batch_size, train.accumulate, train.remat)


def restore_sizes(train: Train, directory: RunDirectory) -> tuple[Train, list[str]]:
    """Returns the section of a resumed run with the values that auto gave at its start, and the fields that have them.

    The section of a new run is returned unchanged.
    """
    if not _has_auto(train):
        return train, []
    from engine.api.auto_size import AUTOMATIC, auto_fields, with_values

    def stored() -> list[int | str] | None:
        if newest_checkpoint(directory) is None:
            return None
        before = from_text(directory.read_config_text(), str(directory.config)).train
        return [getattr(before, name) for name in AUTOMATIC]

    found = group.run_on_primary(stored, "the stored size of a step")
    return (train, []) if found is None else (with_values(train, found), auto_fields(train))
