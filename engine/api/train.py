"""Trains a config as a function, for notebooks, worker processes and the command line. `inference.py` uses the run.

These functions do not parse flags or end the process, and set signal handlers only on the main thread.
"""

import dataclasses
import math
import pkgutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from engine.api.objects import Objects, with_objects
from engine.api.prepared import AnyConfig, Prepared, check_code, prepare, resolve_config, restore_sizes, set_up_devices
from engine.api.resume import (
    Accepted,
    changed_batch_sizes,
    check_config,
    check_data,
    check_readers_of_total,
    check_total_reaches_checkpoint,
    summarize_datasets,
)
from engine.base.errors import CheckpointError, ConfigError
from engine.base.files import temporary_folder
from engine.cluster import group, peer_failure
from engine.cluster.consistency_check import check_consistency, software
from engine.compile.out_of_memory import out_of_memory_reported
from engine.config.schema import Config
from engine.config.target import target_names, user_targets
from engine.config.text import field_texts, to_text
from engine.data import dataset_summary
from engine.data.adapt import Readable, descriptions
from engine.data.context import names_total_steps
from engine.data.source import source_name
from engine.loop.events.save import Rebuild
from engine.loop.hooks import Hook, hook_sections
from engine.loop.phases import COMPILING
from engine.loop.preemption import Interrupted, Preempted, start_ended_by_sigterm
from engine.loop.trainer import Trainer
from engine.observe.reporter import Reporter
from engine.observe.summary import Summary
from engine.parallel.mesh import axes_text, make_mesh
from engine.run import code
from engine.run.directory import RunDirectory, default_workdir
from engine.training.task import Task, has_encode

OBSERVERS = ("engine.planning.predict.observe",)
"""Functions of extension packages that make observers of a run (`loop/observers.py`)."""
REPORT = "engine.report.at_end.reported"
"""Function of an extension package whose context writes the report of a run at its exit (`log.report`)."""


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
        SystemExit, KeyboardInterrupt: SIGTERM or SIGINT stopped the run, whose state is saved; no `except Exception`
            catches this. `Preempted` and `Interrupted` of `engine/loop/preemption.py`.
    """
    began = time.monotonic() if began is None else began
    if workdir == "":
        raise ConfigError("workdir: found an empty text. Give a directory, or None for runs/<name>.")
    objects = Objects()
    if any(given is not None for given in (task, data, evaluation_data, hooks)):
        found = resolve_config(config) if isinstance(config, str | Path) else config
        config, objects = with_objects(found, task, data, evaluation_data or {}, hooks or {})
    config = resolve_config(config)
    objects.check(user_targets(config))
    if fast_dev_run:
        from engine.config.dev_run import tiny

        return _fast_dev_run(tiny(config, _row_unit), objects, workdir, began)
    accepted = Accepted(schedule=accept_schedule_change, data=accept_data_change)
    path = default_workdir(config.name, target_names(config)[0]) if workdir is None else workdir
    return _train(config, objects, path, fresh=fresh, accepted=accepted, began=began)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A run that only tries a config: its summary proposes no longer training, and no directory that is not kept."""

    kept: bool


def _train(
    config: Config,
    objects: Objects,
    path: str | Path,
    *,
    fresh: bool,
    accepted: Accepted,
    began: float,
    trial: _Trial | None = None,
) -> Summary:
    """Trains in the directory `path`."""
    kept = trial is None or trial.kept
    check_code(config)
    if group.count() > 1:
        settings = field_texts(config)
        targets = [text for name, text in settings.items() if name.endswith("target")]
        check_consistency({**settings, **software(targets)}, "start")
    if config.log.trackers:
        from engine.observe.writer import build_trackers

        group.run_on_primary(lambda: len(build_trackers(config)), "the trackers")  # a missing package, before the run
    config = set_up_devices(config, None if fresh else RunDirectory(path))
    with RunDirectory.open(path, fresh=fresh, began=began) as directory, _reported(config, directory):
        directory.kept = kept
        section, stored_sizes = restore_sizes(config.train, directory)
        config = dataclasses.replace(config, train=section)
        changed = check_config(config, directory, accepted)
        reporter = Reporter(directory, config.name, config.log.progress, kept=kept, trial=trial is not None)
        with reporter, out_of_memory_reported(config.train, config.mesh), peer_failure.lost_peers_reported():
            with start_ended_by_sigterm():
                prepared = prepare(config, objects, directory=directory)
                if group.count() > 1:
                    from engine.parallel.connect import connect  # a single process does not need it

                    connect(prepared.mesh)
                with directory.stopwatch.during(COMPILING.kind):
                    prepared.check_rows()
                    prepared = prepared.with_sizes(directory.messages.append, stored_sizes)
                trainer = _build_trainer(prepared, directory, changed, accepted, reporter)
            while (change := _run(trainer, reporter)) is not None:
                del trainer  # two states may not fit in memory
                with start_ended_by_sigterm():
                    _check_not_stopped(change, directory)
                    trainer = _build_trainer(prepared, directory, changed, accepted, reporter)
            group.run_on_primary(directory.check_complete, "the files of the run")
        return reporter.summary


def _run(trainer: Trainer, reporter: Reporter) -> Rebuild | None:
    """Runs to the last step; returns the reason if the trainer has to be built again to continue."""
    reporter.start(trainer.total_steps, trainer.step, trainer.summary)
    try:
        trainer.run()
    except Rebuild as change:
        return change.with_traceback(None)  # its frames reference the old state
    return None


def _check_not_stopped(change: Rebuild, directory: RunDirectory) -> None:
    """Raises Preempted or Interrupted if a signal came while a trainer saved to be built again."""
    if change.preemption is not None and change.preemption.received:
        kind = Interrupted if change.preemption.interrupted else Preempted
        raise kind(f"asked to stop; the state is saved in {directory}.")


def _reported(config: Config, directory: RunDirectory) -> AbstractContextManager[object]:
    """Returns a context that writes the report of the run at its end, if the config asks for it."""
    if config.log.report and group.is_primary():
        return pkgutil.resolve_name(REPORT)(directory, config.log.progress)
    return nullcontext()


def _build_trainer(
    prepared: Prepared, directory: RunDirectory, changed: Sequence[str], accepted: Accepted, reporter: Reporter
) -> Trainer:
    """Checks the data, builds the trainer and stores the config; `changed` names evaluations with other data."""
    config, source = prepared.config, prepared.source
    summaries = summarize_datasets(prepared.sources)
    changed_data, messages = check_data(summaries, directory, accepted)
    check_total_reaches_checkpoint(config.train, len(source), directory)
    directory.messages += [
        *messages,
        *descriptions(prepared.sources, config.data.shuffle, config.train.global_batch_size),
    ]
    if prepared.task.mixes_rows or has_encode(prepared.task):
        resized = changed_batch_sizes(config, directory)
        changed_data = [*changed_data, *resized]
        directory.messages += [
            f"evaluations.{name}.batch_size has changed, and {type(prepared.task).__name__} compares the rows of a "
            "batch: its earlier results are dropped."
            for name in resized
        ]
    trainer = Trainer(
        prepared.task,
        prepared.mesh,
        source,
        config,
        directory,
        evaluation_sources=prepared.evaluation_sources,
        hooks=prepared.objects.build_hooks(hook_sections(config)),
        on_row=reporter.row,
        on_message=reporter.message,
        on_phase=reporter.phase,
        on_slowest=reporter.slowest,
        observers=OBSERVERS,
        roles=prepared.roles,
    )
    ignored = trainer.program.spec.ignored_rows
    if config.train.accumulate > 1 or any(ignored):
        from engine.compile.row_check import check_loss

        found = check_loss(trainer.program.evaluation, source, config.train, ignored)
        directory.messages += [f"warning: {text}" for text in found]
    readers = [type(trainer.program.spec.task).__name__] if trainer.program.reads_total_steps else []
    if source.has_transform and names_total_steps(source.transform):
        readers.append(f"{source_name(source)}.transform")
    check_readers_of_total(readers, source, config.train.total, directory, accepted)
    directory.write_config_text(to_text(config))  # after all checks of the config
    if prepared.roles is None and (text := trainer.program.spec.optimizer.roles_text):
        directory.write_optimizer_text(text)
    if group.is_primary():
        if directory.attempt > 1 or any(map(dataset_summary.reads_files, prepared.sources.values())):
            from engine.api.lineage import record_run  # a first attempt on arrays has nothing to record

            record_run(directory, config, prepared.sources, summaries)
        found = code.describe(target_names(config), directory.attempt, _environment(prepared.mesh))
        directory.write_code_text(code.to_text(found))
    directory.write_data_text(dataset_summary.to_text(summaries))
    for name in sorted({*changed, *changed_data}):
        trainer.checkpoints.retention.forget(name)
    return trainer


def _environment(mesh: Mesh) -> dict[str, str]:
    """Returns the devices of a run as text, for `code.json`."""
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    return {"devices": devices, "processes": str(group.count()), "mesh": axes_text(mesh.shape)}


def _row_unit(config: Config) -> int:
    """Returns the number of which the rows of a microbatch are a multiple, on the devices at hand."""
    from engine.parallel.schedule import row_unit

    mesh = make_mesh(set_up_devices(config).mesh)
    # With cpu_devices=auto, the number of devices follows the batch from here on.
    return math.lcm(row_unit(mesh, config.sharding.microbatches), mesh.size if config.mesh.cpu_devices == "auto" else 1)


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
        with temporary_folder("fast-dev-run") as temporary:
            return _fast_dev_run(config, objects, temporary, began, kept=False)
    from engine.api.saved_run import SavedRun

    summary = _train(config, objects, workdir, fresh=True, accepted=Accepted(), began=began, trial=_Trial(kept))
    run = SavedRun(summary.directory.path)
    found = prepare(run.config, objects, directory=run.directory).with_sizes()
    program, _ = found.build_program(step=max(summary.step - 1, 0))  # its last step decides what the state has
    restored = run.restore(summary.step, program)
    if int(restored.step) != summary.step:
        raise CheckpointError(f"{run.directory}: the checkpoint of step {summary.step} holds step {restored.step}.")
    return summary
