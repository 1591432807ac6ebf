"""Trains a config as a function, for notebooks, worker processes and the command line. `inference.py` uses the run.

These functions do not parse flags or end the process, and set signal handlers only on the main thread.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from engine.api.auto_size import choose_sizes, row_unit, with_stored_sizes
from engine.api.objects import Objects, with_objects
from engine.api.resume import (
    Accepted,
    by_section,
    check_config,
    check_data,
    check_readers_of_total,
    check_total_reaches_checkpoint,
    summarize_datasets,
)
from engine.api.saved_run import SavedRun
from engine.base.errors import CheckpointError, ConfigError
from engine.base.types import Device
from engine.base.user_errors import describe as describe_error
from engine.cluster import group, peer_failure
from engine.cluster.consistency_check import check_consistency, software
from engine.compile import cache
from engine.compile import step_costs as compiled_step
from engine.compile.build import build_program
from engine.compile.flops import has_unknown_length
from engine.compile.out_of_memory import out_of_memory_reported
from engine.compile.program import Program
from engine.compile.report import describe, describe_collectives, describe_flops, describe_frozen
from engine.compile.xla_warnings import rematerialization_explained
from engine.config.dev_run import tiny
from engine.config.hardware import find as find_hardware
from engine.config.loading import load
from engine.config.schedules import check_functions
from engine.config.schema import Config
from engine.config.target import check_targets, target_names
from engine.config.text import flatten, from_text, to_text, value_text
from engine.config.validation import validate
from engine.data import dataset_summary
from engine.data.context import names_total_steps
from engine.data.sampling.share_schedule import for_run
from engine.data.source import Source, has_transform, source_name
from engine.data.streams.source import Readable, descriptions
from engine.loop.events.replica_check import coverage
from engine.loop.hooks import Hook
from engine.loop.phases import COMPILING
from engine.loop.preemption import start_ended_by_sigterm
from engine.loop.trainer import Trainer
from engine.observe.reporter import Reporter
from engine.observe.summary import Summary
from engine.parallel import targets
from engine.parallel.mesh import create_cpu_devices, fake_devices, make_mesh
from engine.run import code
from engine.run.directory import RunDirectory, default_workdir
from engine.storage.mounts import local_text
from engine.training.precision import rounding_note
from engine.training.task import Task

OBSERVERS = ("engine.planning.predict.observe",)
"""Functions of extension packages that make observers of a run (`loop/observers.py`)."""

AnyConfig = Config | ml_collections.ConfigDict | str | Path


def resolve_config(config: AnyConfig) -> Config:
    """Returns the validated config of a file, a module, a run directory, a ConfigDict or a Config."""
    if isinstance(config, Config):
        return config
    return load(local_text(str(config))) if isinstance(config, str | Path) else validate(config)


def train(
    config: AnyConfig,
    *,
    task: Task | str | None = None,
    data: Readable | str | Mapping[str, Any] | None = None,
    evaluation_data: Mapping[str, Readable | str | Mapping[str, Any]] | None = None,
    hooks: Mapping[str, Hook[Trainer] | str | Mapping[str, Any]] | None = None,
    workdir: str | Path | None = None,
    fresh: bool = False,
    fast_dev_run: bool = False,
    accept_schedule_change: bool = False,
    accept_data_change: bool = False,
    began: float | None = None,
) -> Summary:
    """Trains a config to its last step and returns the summary; resumes the run if the directory contains one.

    In a run of several processes, each calls it with the same arguments, after
    `engine.cluster.processes.initialize`.

    `task`, `data`, `evaluation_data` and `hooks` replace sections of the config, each by an object, a dotted path, or a
    section {"target": ...}. Only Python code that passes the same objects again can resume, evaluate or load a run that
    was started with objects.

    Args:
        config: a Config, a ConfigDict, or a value of `--config`: a file, a module or a run directory.
        task: the Task.
        data: the training data: a source, a stream, an iterable or a generator function.
        evaluation_data: name of an evaluation -> its data; the config may set its `every` and other fields.
        hooks: name -> hook; the config may set `hooks.<name>.every`.
        workdir: the run directory; runs/<name> by default.
        fresh: start a new run; an existing run is moved aside, never deleted.
        fast_dev_run: train, save and evaluate for two steps on little data.
        accept_schedule_change: resume although a changed `train.total` changes the learning-rate schedule.
        accept_data_change: resume although the training data has changed.
        began: monotonic start time of this attempt, such as the start of the process; None: now.

    Raises:
        ConvoyError: any failure; its `exit_code` is the exit code of the command line.
    """
    began = time.monotonic() if began is None else began
    if workdir == "":
        raise ConfigError("workdir: found an empty text. Give a directory, or None for runs/<name>.")
    objects = Objects()
    if any(given is not None for given in (task, data, evaluation_data, hooks)):
        found = resolve_config(config) if isinstance(config, str | Path) else config
        config, objects = with_objects(found, task, data, evaluation_data or {}, hooks or {})
    config = resolve_config(config)
    objects.check(config)
    if fast_dev_run:
        return _fast_dev_run(tiny(config, _row_unit), objects, workdir, began)
    accepted = Accepted(schedule=accept_schedule_change, data=accept_data_change)
    path = default_workdir(config.name, target_names(config)[0]) if workdir is None else workdir
    return _train(config, objects, path, fresh=fresh, accepted=accepted, began=began)


def _train(
    config: Config,
    objects: Objects,
    path: str | Path,
    *,
    fresh: bool,
    accepted: Accepted,
    began: float,
    kept: bool = True,
) -> Summary:
    """Trains in the directory `path`; with `kept=False` the summary does not show the directory."""
    check_targets(config)
    check_functions(config)
    _check_processes(config)
    config = set_up_devices(config, None if fresh else RunDirectory(path))
    with RunDirectory.open(path, fresh=fresh, began=began) as directory:
        directory.kept = kept
        config, stored_sizes = with_stored_sizes(config, directory)
        changed = check_config(config, directory, accepted)
        reporter = Reporter(directory, config.name, config.log.progress, kept=kept)
        with reporter, out_of_memory_reported(config.train, config.mesh), peer_failure.lost_peers_reported():
            with start_ended_by_sigterm():
                trainer = _build_trainer(config, objects, directory, changed, accepted, reporter, stored_sizes)
            reporter.start(trainer.total_steps, trainer.step, trainer.summary)
            trainer.run()
            group.run_on_primary(directory.check_complete, "the files of the run")
        return reporter.summary


def _build_trainer(
    config: Config,
    objects: Objects,
    directory: RunDirectory,
    changed: Sequence[str],
    accepted: Accepted,
    reporter: Reporter,
    stored_sizes: Sequence[str],
) -> Trainer:
    """Opens the data, builds the trainer and stores the config.

    `changed` names evaluations with other data, and `stored_sizes` is as for `choose_sizes`.
    """
    source, evaluation_sources = objects.build_sources(config)
    task, mesh = objects.build_task(config), make_mesh(config.mesh)
    with directory.stopwatch.during(COMPILING.kind):
        config = choose_sizes(config, task, mesh, source, evaluation_sources, directory.messages.append, stored_sizes)
    source = for_run(source, config.train)
    summaries = summarize_datasets(source, evaluation_sources)
    changed_data, messages = check_data(summaries, directory, accepted)
    check_total_reaches_checkpoint(config, len(source), directory)
    directory.messages += messages
    directory.messages += descriptions(by_section(source, evaluation_sources))
    trainer = Trainer(
        task,
        mesh,
        source,
        config,
        directory,
        evaluation_sources=evaluation_sources,
        hooks=objects.build_hooks(config),
        on_row=reporter.row,
        on_message=reporter.message,
        on_phase=reporter.phase,
        on_slowest=reporter.slowest,
        observers=OBSERVERS,
    )
    readers = [type(trainer.program.spec.task).__name__] if trainer.program.reads_total_steps else []
    if has_transform(source) and names_total_steps(source.transform):
        readers.append(f"{source_name(source)}.transform")
    check_readers_of_total(readers, source, config, directory, accepted)
    directory.write_config_text(to_text(config))  # after all checks of the config
    directory.write_data_text(dataset_summary.to_text(summaries))
    if group.is_primary():
        directory.write_code_text(code.to_text(code.describe(target_names(config), directory.attempt)))
    for name in sorted({*changed, *changed_data}):
        trainer.checkpoints.retention.forget(name)
    return trainer


def _row_unit(config: Config) -> int:
    """Returns the number of which the rows of a microbatch are a multiple, on the devices at hand."""
    mesh = make_mesh(set_up_devices(config).mesh)
    # With cpu_devices=auto, the number of devices follows the batch from here on.
    return math.lcm(row_unit(mesh, config.sharding), mesh.size if config.mesh.cpu_devices == "auto" else 1)


def _fast_dev_run(
    config: Config, objects: Objects, workdir: str | Path | None, began: float, kept: bool = True
) -> Summary:
    """Trains two steps and restores the checkpoint; without `workdir` the directory is temporary."""
    if not workdir:
        if group.count() > 1:
            raise ConfigError(
                "--fast-dev-run with several processes: no run directory. Set --workdir=DIR to a shared folder."
            )
        # Ignores errors of the removal, which a hanging write can cause: they would hide the error of the run.
        with tempfile.TemporaryDirectory(prefix="convoy-fast-dev-run-", ignore_cleanup_errors=True) as temporary:
            return _fast_dev_run(config, objects, temporary, began, kept=False)
    summary = _train(config, objects, workdir, fresh=True, accepted=Accepted(), began=began, kept=kept)
    run = SavedRun(summary.directory.path)
    restored = run.restore(summary.step, _program(run.config, objects, None)[0])
    if int(restored.step) != summary.step:
        raise CheckpointError(f"{run.directory}: the checkpoint of step {summary.step} holds step {restored.step}.")
    return summary


def _check_processes(config: Config) -> None:
    """Checks that all processes have the same config, code and libraries; does not initialize devices.

    Raises:
        InconsistentProcesses: in every process, with the differences.
    """
    if group.count() > 1:
        settings = {name: value_text(name, value) for name, value in flatten(config)}
        targets = [text for name, text in settings.items() if name.endswith("target")]
        check_consistency({**settings, **software(targets)}, "start")


def set_up_devices(config: Config, directory: RunDirectory | None = None) -> Config:
    """Creates the CPU devices and enables the compilation cache; returns the config with the number of devices.

    Must be called before JAX initializes its devices. A resumed run keeps the number that "auto" gave at its start.
    """
    if config.cache.compiled:
        cache.enable(config.cache.max_gib)
    setting = config.mesh.cpu_devices
    if setting == "auto" and directory is not None and directory.exists():
        setting = from_text(directory.read_config_text(), str(directory.config)).mesh.cpu_devices
    count = create_cpu_devices(setting, config.train.global_batch_size)
    if count is None:
        return config
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, cpu_devices=count))


def program(config: AnyConfig, devices: Sequence[Device] | None = None) -> tuple[Program, int]:
    """Returns the program of a config and the total number of steps; compiles only to choose automatic sizes.

    Args:
        config: as for `train`.
        devices: devices of the mesh; None: all devices of JAX.
    """
    return _program(set_up_config(config), Objects(), devices)[:2]


def set_up_config(config: AnyConfig) -> Config:
    """Returns the resolved config; its targets are checked and the devices are set up."""
    config = resolve_config(config)
    check_targets(config)
    check_functions(config)
    return set_up_devices(config)


def _program(
    config: Config,
    objects: Objects,
    devices: Sequence[Device] | None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Program, int, Mapping[str, Source]]:
    """Returns the program, the number of steps, and the sources by config section; `say` as for `choose_sizes`."""
    source, evaluation_sources = objects.build_sources(config)
    task, mesh = objects.build_task(config), make_mesh(config.mesh, devices)
    config = choose_sizes(config, task, mesh, source, evaluation_sources, say)
    built, total = build_program(task, mesh, for_run(source, config.train), config)
    return built, total, by_section(source, evaluation_sources)


def explain(
    config: AnyConfig, *, devices: int | None = None, collectives: bool = True, hardware: str | None = None
) -> str:
    """Returns a description of the mesh, the state on each device, and the FLOPs, memory and collectives of a step.

    Call it before JAX starts its devices: it creates CPU devices in place of the real ones.

    Args:
        config: as for `train`.
        devices: number of devices; None: the product of the mesh axes.
        collectives: whether to compile a step, which takes long for large models, and list its collectives.
        hardware: a target (`parallel/targets.py`), for which the step is compiled; None: CPU devices.
    """
    parts = explain_parts(config, devices=devices, collectives=collectives, hardware=hardware)
    return "\n".join(parts)


def explain_parts(
    config: AnyConfig, *, devices: int | None, collectives: bool, hardware: str | None = None
) -> Iterator[str]:
    """Yields the parts of `explain` as soon as they are known."""
    if devices is not None and devices < 1:
        raise ConfigError(f"--devices = {devices}: allowed is a whole number from 1.")
    if devices is not None and hardware is not None:
        raise ConfigError(f"--devices = {devices}: --hardware={hardware} has a number of devices. Remove --devices.")
    config = resolve_config(config)
    if hardware is None:
        mesh_spec, fakes = fake_devices(config.mesh, config.train.global_batch_size, devices)
        config = dataclasses.replace(config, mesh=mesh_spec)
    else:
        config = dataclasses.replace(config, cache=dataclasses.replace(config.cache, compiled=False))
        if hardware == targets.LOCAL:
            set_up_devices(config)  # creates CPU devices, before JAX starts
        mesh_spec, fakes = dataclasses.replace(config.mesh, cpu_devices=None), targets.devices(hardware)
        config = dataclasses.replace(config, mesh=mesh_spec)
    sizes: list[str] = []
    built, total, sources = _program(set_up_config(config), Objects(), fakes, sizes.append)
    yield from sizes
    mesh, state = built.mesh, built.abstract_state.to_tree()
    yield describe(mesh_spec, config.sharding, mesh, state, built.spec.model.names, total)
    if frozen := describe_frozen(state["params"], built.spec.model.trained):
        yield frozen
    yield coverage(config.resilience.replica_check, state)
    yield from descriptions(sources)
    yield from (f"warning: {text}" for text in built.warnings)
    spec = built.spec
    if note := rounding_note(spec.task, built.abstract_batch.examples, spec.compute_dtype, spec.layout.precision):
        yield note
    traced = built.trace(1)  # of several lengths, the longest
    yield _flops_line(built, has_unknown_length(traced.jaxpr.jaxpr))
    if collectives and (mesh.size > 1 or hardware is not None):
        warnings: list[str] = []
        with rematerialization_explained(warnings.append), out_of_memory_reported(config.train, config.mesh):
            compiled = compiled_step.read(built, traced.lower().compile())
        yield from warnings
        row = find_hardware(mesh.devices.flat[0].device_kind)
        yield compiled_step.describe(compiled, None if row is None else row.hbm_bytes)
        yield describe_collectives(compiled.collectives, mesh.devices.flat[0].platform)


def _flops_line(built: Program, at_least: bool) -> str:
    """Returns a line about the FLOPs of a traced step; of several lengths, the longest.

    Args:
        built: the program, whose step has been traced.
        at_least: as for `describe_flops`.
    """
    built.shape_shares = [*[0.0] * (len(built.shape_shares) - 1), 1.0]
    try:
        model = built.flops_per_step
    except Exception as error:  # raised by the author's code, and a run goes without this count, too
        return f"FLOPs of a step are left out: tracing the loss for one device failed: {describe_error(error)}"
    return describe_flops(model, built.hardware_flops_per_step, at_least)
