"""Training and evaluation as functions: what notebooks, workers, tests and the command line call.

Owns: the way from a config to a Trainer, and what a resume may change. Does not own: the loop (`trainer.py`), exit
codes of the process and printing (`main.py`). No function here parses flags, ends the process or sets a signal
handler off the main thread.
"""

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from engine.checkpoint.export import export_safetensors
from engine.checkpoint.policy import Retention
from engine.checkpoint.store import CheckpointStore, StepInfo
from engine.cluster import group, peer_failure, processes
from engine.cluster.consistency_check import check_consistency, software
from engine.config.dev_run import tiny
from engine.config.duration import RunSize
from engine.config.errors import CheckpointError, ConfigError, DataError
from engine.config.identity import identity_differences, schedule_change
from engine.config.loading import load
from engine.config.schema import Config, Data
from engine.config.target import build, check
from engine.config.text import flatten, from_text, to_text, value_text
from engine.config.validation import validate
from engine.data import identity
from engine.data.source import Source, limited
from engine.evaluation import build_evaluations
from engine.mounts import local_text
from engine.observe.report import Summary
from engine.observe.reporter import Reporter
from engine.parallel.mesh import cpu_device_count, make_mesh
from engine.resilience.out_of_memory import out_of_memory_reported
from engine.run.directory import RunDirectory, default_workdir
from engine.trainer import Trainer
from engine.training import compile_cache
from engine.training.build import build_program
from engine.training.program import Program
from engine.training.state import TrainState

AnyConfig = Config | ml_collections.ConfigDict | str | Path


def resolve_config(config: AnyConfig) -> Config:
    """Returns the validated config of a file, a module, a run directory, a ConfigDict or a Config."""
    if isinstance(config, Config):
        return config
    return load(local_text(str(config))) if isinstance(config, str | Path) else validate(config)


def train(
    config: AnyConfig,
    *,
    workdir: str | Path | None = None,
    fresh: bool = False,
    fast_dev_run: bool = False,
    accept_schedule_change: bool = False,
    accept_data_change: bool = False,
    began: float | None = None,
) -> Summary:
    """Trains a config to its end in a run directory and returns the summary; goes on where the directory stopped.

    Several processes call it alike, after `engine.cluster.processes.initialize`.

    Args:
        config: a Config, a ConfigDict, or what `--config` takes: a file, a module, a run directory.
        workdir: the run directory; runs/<name> by default.
        fresh: start anew; an earlier run is moved aside, never deleted.
        fast_dev_run: two steps of everything on little data.
        accept_schedule_change: go on although another `train.total` alters the learning-rate schedule.
        accept_data_change: go on although the training data is not what the run began with.
        began: monotonic seconds from which on time counts for this attempt, as the start of the process; None: now.

    Raises:
        ConvoyError: with a sentence and the `exit_code` of the command line.
    """
    began = time.monotonic() if began is None else began
    config = resolve_config(config)
    if fast_dev_run:
        return _fast_dev_run(tiny(config), workdir, began)
    return _train(
        config,
        workdir or default_workdir(config),
        fresh=fresh,
        accept_schedule_change=accept_schedule_change,
        accept_data_change=accept_data_change,
        began=began,
    )


def _train(
    config: Config,
    path: str | Path,
    *,
    fresh: bool,
    accept_schedule_change: bool = False,
    accept_data_change: bool = False,
    began: float,
    kept: bool = True,
) -> Summary:
    """Trains in the directory `path`, of which nothing is said in the summary if it is not kept."""
    check_targets(config)
    check_processes(config)
    config = set_up_devices(config, None if fresh else RunDirectory(path))
    with RunDirectory.open(path, fresh=fresh, began=began) as directory:
        changed = _check_resume(config, directory, accept_schedule_change)
        reporter = Reporter(directory, config.name, config.log.progress, kept=kept)
        with reporter, out_of_memory_reported(config), peer_failure.lost_peers_reported():
            sources = sources_of(config)
            facts = _facts(config, *sources)
            changed += _check_data(facts, directory, accept_data_change)
            trainer = _trainer(config, directory, reporter, *sources)
            directory.write_config_text(to_text(config))  # now that nothing in it can be refused
            directory.write_data_text(identity.to_text(facts))
            for name in sorted(set(changed)):
                trainer.checkpoints.retention.forget(name)
            reporter.start(trainer.total_steps, trainer.step, trainer.summary)
            trainer.run()
        return reporter.summary


def _fast_dev_run(config: Config, workdir: str | Path | None, began: float, kept: bool = True) -> Summary:
    """Two steps of everything, then restores what was saved; in a directory that is removed unless one is named."""
    if not workdir:
        if processes.count() > 1:
            raise ConfigError(
                "--fast-dev-run with several processes: no run directory. Name one that all of them see: --workdir=DIR."
            )
        # A write that hangs may still go on in there: no error of the removal may hide that of the run.
        with tempfile.TemporaryDirectory(prefix="convoy-fast-dev-run-", ignore_cleanup_errors=True) as temporary:
            return _fast_dev_run(config, temporary, began, kept=False)
    summary = _train(config, workdir, fresh=True, began=began, kept=kept)
    directory, config = _open_run(summary.directory.path)
    restored = _restore(directory, summary.step, _program(config)[0])
    if int(restored.step) != summary.step:
        raise CheckpointError(f"{directory}: the checkpoint of step {summary.step} holds step {restored.step}.")
    return summary


def check_targets(config: Config) -> None:
    """Imports every target of a config and checks its arguments; no device starts.

    Raises:
        ConfigError: a name that does not exist, or an argument that the target does not take.
    """
    check(config.task, "task")
    check(config.data, "data")
    check(config.optimizer, "optimizer", given=("learning_rate",))
    for name, evaluation in config.evaluations.items():
        check(evaluation.data, f"evaluations.{name}.data")
    for name, hook in config.hooks.items():
        check(hook, f"hooks.{name}")


def check_processes(config: Config) -> None:
    """Refuses to train where this process has another config, code or libraries than the others; starts no device.

    Raises:
        InconsistentProcesses: in every process, with the difference.
    """
    if processes.count() > 1:
        settings = {name: value_text(name, value) for name, value in flatten(config)}
        targets = [value for name, value in flatten(config) if name.endswith("target")]
        check_consistency({**settings, **software(targets)}, "start")


def set_up_devices(config: Config, directory: RunDirectory | None = None) -> Config:
    """Makes the CPU devices and turns the compile cache on; returns the config with the number of devices in it.

    Must come before anything asks JAX for devices. A run keeps the number that "auto" gave at its start.
    """
    if config.cache.compiled:
        compile_cache.enable(config.cache.max_gib)
    setting = config.mesh.cpu_devices
    if setting == "auto" and directory is not None and directory.exists():
        setting = from_text(directory.read_config_text(), str(directory.config)).mesh.cpu_devices
    count = cpu_device_count(setting, config.train.global_batch_size)
    if count is None:
        return config
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise ConfigError(
            f"mesh.cpu_devices = {count}: JAX has already started its devices in this process. Set JAX_NUM_CPU_DEVICES "
            "before it does, or leave mesh.cpu_devices at None."
        ) from error
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, cpu_devices=count))


def _check_resume(config: Config, directory: RunDirectory, accept_schedule_change: bool) -> list[str]:
    """Returns the names of evaluations whose data changed; raises ConfigError when the run itself would change.

    The first process looks, for all of them.
    """
    return group.run_on_primary(
        lambda: _changed_evaluations(config, directory, accept_schedule_change), "the check of the earlier config"
    )


def _changed_evaluations(config: Config, directory: RunDirectory, accept_schedule_change: bool) -> list[str]:
    if not _has_checkpoint(directory):
        return []  # nothing was trained that another config could spoil
    old = from_text(directory.read_config_text(), str(directory.config))
    if differences := identity_differences(old, config):
        raise ConfigError(
            f"{directory} holds a run of another config:\n  " + "\n  ".join(differences) + "\n"
            f"Go on with its own config (--config={directory}), name another --workdir (with its weights by "
            f"--config.init.checkpoint={directory}), or start anew with --fresh (the old run is moved aside)."
        )
    change = schedule_change(old, config)
    if change and not accept_schedule_change:
        raise ConfigError(f"{directory}: {change} To go on with it, add --accept-schedule-change.")
    return [
        name
        for name, e in old.evaluations.items()
        if name in config.evaluations and config.evaluations[name].data != e.data
    ]


def _has_checkpoint(directory: RunDirectory) -> bool:
    return directory.exists() and CheckpointStore(directory.checkpoints).latest() is not None


def _facts(config: Config, source: Source, evaluation_sources: Mapping[str, Source]) -> dict[str, identity.Facts]:
    """What the datasets of a run are, the same in every process."""
    facts: dict[str, identity.Facts] = {"data": identity.facts_of(source)}
    facts |= {f"evaluations.{name}.data": identity.facts_of(found) for name, found in evaluation_sources.items()}
    check_consistency(
        {f"{where}: {name}": text for where, found in facts.items() for name, text in found.items()}, "data"
    )
    return facts


def _check_data(facts: Mapping[str, identity.Facts], directory: RunDirectory, accept: bool) -> list[str]:
    """Returns the names of evaluations whose data is another one than before; the first process looks.

    Raises:
        DataError: the training data is, and that is not accepted.
    """
    changed, told = group.run_on_primary(lambda: _data_changes(facts, directory, accept), "the check of the dataset")
    directory.messages += told
    return changed


def _data_changes(
    facts: Mapping[str, identity.Facts], directory: RunDirectory, accept: bool
) -> tuple[list[str], list[str]]:
    before = identity.read(directory.data) if _has_checkpoint(directory) else {}
    if not before:
        return [], []
    differences = identity.changes(before.get("data", facts["data"]), facts["data"], "data")
    if differences and not accept:
        raise DataError(
            f"{directory} holds a run on another dataset:\n  " + "\n  ".join(differences) + "\n"
            "Give it the data that it began with, add --accept-data-change to go on with this one from the same place "
            "in its order, name another --workdir, or start anew with --fresh (the old run is moved aside)."
        )
    told, changed = [f"the dataset has changed, which is accepted: {text}" for text in differences], []
    for where in sorted((before.keys() & facts.keys()) - {"data"}):
        if lines := identity.changes(before[where], facts[where], where):
            changed.append(where.removeprefix("evaluations.").removesuffix(".data"))
            told.append(f"{changed[-1]} is another dataset than before, so its earlier results are dropped: {lines[0]}")
    return changed, told


def sources_of(config: Config) -> tuple[Source, dict[str, Source]]:
    """Returns the training source and those of the evaluations, limited as the config says."""

    def source(section: Data, where: str) -> Source:
        return limited(build(section, where), section.limit)

    evaluations = {name: source(e.data, f"evaluations.{name}.data") for name, e in config.evaluations.items()}
    return source(config.data, "data"), evaluations


def _trainer(
    config: Config,
    directory: RunDirectory,
    reporter: Reporter,
    source: Source,
    evaluation_sources: Mapping[str, Source],
) -> Trainer:
    return Trainer(
        build(config.task, "task"),
        make_mesh(config.mesh),
        source,
        config,
        directory,
        evaluation_sources=evaluation_sources,
        hooks={name: build(hook, f"hooks.{name}") for name, hook in config.hooks.items()},
        on_row=reporter.row,
        on_message=reporter.message,
        on_phase=reporter.phase,
    )


def program(config: AnyConfig, devices: Sequence[Any] | None = None) -> tuple[Program, int]:
    """Returns the program of a config and its number of steps, for `explain` and for tests; nothing is compiled.

    Args:
        config: as for `train`.
        devices: of the mesh; None takes all that JAX has.
    """
    return _program(resolve_config(config), devices)[:2]


def evaluate(run: str | Path, *, step: int | str | None = None) -> dict[str, float]:
    """Returns "step" and the metrics of all evaluations of a run's checkpoint.

    Args:
        run: the run directory.
        step: of the checkpoint; "best" or None: the best where the run has one, else the newest; "latest".

    Raises:
        CheckpointError: no such checkpoint.
        ConfigError: the run's config has no evaluations.
    """
    directory, config = _open_run(run)
    if not config.evaluations:
        raise ConfigError(f"{directory.config}: no evaluations. Give the run some: config.evaluations.<name>.data.")
    program, total, source, sources = _program(config)
    with out_of_memory_reported(config), peer_failure.lost_peers_reported():
        chosen = group.broadcast(choose_step(directory, config, step), "the choice of the checkpoint")
        state = _restore(directory, chosen, program)
        results: dict[str, float] = {"step": chosen}
        size = RunSize(config.train.global_batch_size, len(source), total)
        for evaluation in build_evaluations(config.evaluations, sources, program, size):
            results |= evaluation.run(state) or {}
    return results


def export(run: str | Path, file: str | Path, *, step: int | str | None = None) -> list[str]:
    """Writes the weights of a run's checkpoint as safetensors, the averaged ones where the run keeps an average.

    Returns:
        The names of the arrays.
    """
    directory, config = _open_run(run)
    program = _program(config)[0]
    state = _restore(directory, choose_step(directory, config, step), program)
    return export_safetensors(state.to_tree(), file)


def checkpoints(run: str | Path) -> list[StepInfo]:
    """Returns what is known of each checkpoint of a run, oldest first; starts no device."""
    directory, _ = _open_run(run)
    return CheckpointStore(directory.checkpoints).describe()


def _open_run(run: str | Path) -> tuple[RunDirectory, Config]:
    """The directory and the config of an existing run."""
    directory = RunDirectory(run)
    return directory, from_text(directory.read_config_text(), str(directory.config))


def _program(config: Config, devices: Sequence[Any] | None = None) -> tuple[Program, int, Source, dict[str, Source]]:
    """The program of a config, its number of steps, and the sources."""
    check_targets(config)
    config = set_up_devices(config)
    source, evaluation_sources = sources_of(config)
    program, total = build_program(build(config.task, "task"), make_mesh(config.mesh, devices), source, config)
    return program, total, source, evaluation_sources


def _restore(directory: RunDirectory, step: int, program: Program) -> TrainState:
    store, abstract = CheckpointStore(directory.checkpoints), program.abstract_state.to_tree()
    return TrainState.from_tree(store.restore(step, abstract, program.spec.model.stacked))


def choose_step(directory: RunDirectory, config: Config, step: int | str | None) -> int:
    """Returns the checkpoint that a step, "latest", "best" or None means; None is the best where there is one.

    Raises:
        CheckpointError: it is not there; names those that are.
    """
    steps, c = CheckpointStore(directory.checkpoints).steps(), config.checkpoint
    best = Retention(directory.checkpoints, c.keep_latest, c.best, c.best_mode, c.keep_best).best()
    if not steps:
        raise CheckpointError(f"{directory}: no checkpoint yet. Train first: convoy train --config={directory}")
    if step in (None, "best") and best is not None and best[0] in steps:
        return best[0]
    if step in (None, "latest"):
        return steps[-1]
    if str(step).isdigit() and int(str(step)) in steps:
        return int(str(step))
    raise CheckpointError(f"{directory}: no checkpoint {step!r}. Found: {', '.join(map(str, steps))}, latest, best.")
