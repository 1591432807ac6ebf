"""Cooldowns: a new run that continues the stable phase of another run, and decays over a number of steps of its own.

The new run directory begins with one checkpoint of the run, its config and the description of its data. The rest is an
ordinary resume with another `train.total`. Lineage records the checkpoint as `cooldown`.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from engine.api.lineage import address_of, input_of
from engine.api.resume import newest_checkpoint, stored_size
from engine.api.train import train
from engine.base import json_text
from engine.base.duration import DATA_UNITS, Duration, RunSize
from engine.base.errors import CheckpointError, ConfigError, FieldError, RunError
from engine.base.files import read_text
from engine.checkpoint import frozen
from engine.checkpoint.manifest import MANIFEST, SAVING, read_lock
from engine.checkpoint.policy import RESULTS, read_results
from engine.checkpoint.store import CheckpointStore
from engine.cluster import group
from engine.config.draft import draft_of
from engine.config.identity import identity_differences, schedule_change
from engine.config.override import apply
from engine.config.schedules import DECAY, STABLE, decay_steps, followers, sections
from engine.config.schema import Config, Log
from engine.config.text import from_text, to_text
from engine.config.validation import validate
from engine.run import lineage
from engine.run.atomic import cannot_write
from engine.run.directory import RunDirectory, cooldown_workdir, split_step

if TYPE_CHECKING:
    from engine.data.adapt import Readable
    from engine.loop.hooks import Hook
    from engine.loop.trainer import Trainer
    from engine.observe.summary import Summary
    from engine.training.task import Task

ROLE = "cooldown"
"""Role of the checkpoint in the record of lineage."""
STEPS_FLAG = "--cooldown-steps"
COPY_S = 3600.0  # longest copy of a checkpoint to another file system


class Settings(TypedDict, total=False):
    """Arguments of `engine.train` that a cooldown passes on."""

    task: "Task | str | None"
    data: "Readable | str | Mapping[str, Any] | None"
    evaluation_data: "Mapping[str, Readable | str | Mapping[str, Any]] | None"
    hooks: "Mapping[str, Hook[Trainer] | str | Mapping[str, Any]] | None"
    accept_schedule_change: bool
    accept_data_change: bool
    began: float | None


def cooldown(
    run: str | Path,
    *,
    step: int | None = None,
    steps: str | float | None = None,
    workdir: str | Path | None = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    on_message: Callable[[str], None] = lambda text: None,
    **settings: Unpack[Settings],
) -> "Summary":
    """Continues a checkpoint of the stable phase of a run in a new run that decays from there; returns its summary.

    The run, whose schedule is `warmup_stable_decay`, is only read. The new run has the length `step` + `steps`. Its
    state, data and random numbers are those that the run would have with this length. The same call again resumes it.

    Args:
        run: the run directory; also RUN@STEP or RUN/checkpoints/STEP.
        step: step of the checkpoint; None: the newest one of the stable phase.
        steps: length of the decay: a duration such as "500 steps", or a fraction of the new run; None: that of the run.
        workdir: the new run directory; by default the run's name with "-cooldown", and "-STEP" if the step is given.
        overrides: changed settings, each "mesh.fsdp=2"; those that a resume may change.
        fresh: begin anew; an existing run in `workdir` is moved aside.
        on_message: called with a sentence about the start, in the primary.
        settings: other arguments of `engine.train`, such as the objects that replace sections of the config.
            `accept_schedule_change` is needed if the Task or the data reads `context.total_steps`.

    Raises:
        ConvoyError: as `engine.train`, or the run or its checkpoint does not allow it.
    """
    path, given = split_step(str(run))
    step = given if step is None else step
    workdir = workdir or cooldown_workdir(path, step)
    request = _Request(RunDirectory(path), step, steps, tuple(overrides), settings.get("accept_schedule_change", False))
    chosen, text, message, is_ready = group.run_on_primary(
        lambda: request.plan(RunDirectory(workdir), fresh), "the cooldown"
    )
    if not is_ready:
        with RunDirectory.open(workdir, fresh=fresh, began=settings.get("began")) as directory:
            group.run_on_primary(lambda: _copy(request.run, chosen, directory), "the copy of the checkpoint", COPY_S)
    if group.is_primary():
        on_message(message)
    return train(
        from_text(text, str(workdir)),
        workdir=workdir,
        **settings,
    )


@dataclasses.dataclass(frozen=True)
class _Request:
    """What the user asks for; the arguments of `cooldown`."""

    run: RunDirectory
    step: int | None
    steps: str | float | None
    overrides: Sequence[str]
    accept_schedule_change: bool

    def plan(self, directory: RunDirectory, fresh: bool) -> tuple[int, str, str, bool]:
        """Checks the request, on the primary; writes nothing.

        Args:
            directory: the directory of the cooldown.
            fresh: whether a run that it holds does not count.

        Returns:
            The step of the checkpoint, the config of the cooldown as text, a sentence for the user, and whether the
            directory holds the checkpoint already.
        """
        started = None if fresh else _start_of(directory)
        is_ready = started is not None and directory.exists()
        if started is None and not fresh and directory.is_used():
            raise RunError(
                f"{directory} holds another run. Choose another --workdir for the cooldown, or add --fresh (the other "
                "run is moved aside)."
            )
        base_run = directory if is_ready else self.run
        base = from_text(base_run.read_config_text(), str(base_run.config))
        step = self._choose(base) if started is None else self._check_same(started, directory)
        config, decay = self._config(base, step, stored_size(base_run))
        newest = newest_checkpoint(directory)
        change = is_ready and schedule_change(base, config, newest or step, stored_size(base_run))
        if change and not self.accept_schedule_change:
            raise RunError(
                f"{directory} holds a cooldown of another length: {change} Choose another --workdir, or add "
                "--accept-schedule-change."
            )
        message = (
            f"cooldown of {self.run} from step {step}: the learning rate decays over {decay} steps, to step "
            f"{config.train.total.value}"
        )
        return step, to_text(config), message, is_ready

    def _check_same(self, started: lineage.Input, directory: RunDirectory) -> int:
        """Returns the step of the cooldown that the directory holds. Raises RunError if another one is asked for."""
        assert started.step is not None
        asked = address_of(self.run)
        is_same = started.path == asked
        with contextlib.suppress(CheckpointError, OSError):  # a run that was moved, and still has the checkpoint
            is_same = is_same or input_of(self.run, started.step, ROLE).id == started.id
        if not is_same or self.step not in (None, started.step):
            wanted = "" if self.step is None else f" from step {self.step}"
            raise RunError(
                f"{directory} holds the cooldown of {started.path} from step {started.step}, not of {asked}{wanted}. "
                "Choose another --workdir, or add --fresh (the other run is moved aside)."
            )
        return started.step

    def _choose(self, config: Config) -> int:
        """Returns the step of the checkpoint. Raises ConfigError or CheckpointError if there is none that fits."""
        store = CheckpointStore(self.run.checkpoints)
        first, last = _stable_phase(config, stored_size(self.run), str(self.run))
        steps = store.steps()
        listed = f"Checkpoints: {', '.join(map(str, steps)) or 'none'}."
        if self.step is not None and self.step not in steps:
            raise CheckpointError(f"{self.run}: there is no checkpoint of step {self.step}. {listed}")
        stable = [step for step in steps if first <= step <= last]
        chosen = self.step if self.step is not None else max(stable, default=None)
        if chosen is None or chosen not in stable:
            found = "no checkpoint" if chosen is None else f"step {chosen}"
            where = "lies in" if chosen is None else f"lies in the {'warm-up' if chosen < first else 'decay'}, not in"
            raise CheckpointError(
                f"{self.run}: {found} {where} the stable phase, which are steps {first} to {last}. {listed} Start from "
                "one of that phase. `checkpoint.keep_latest` says how many a run keeps."
            )
        # A run that became longer with --accept-schedule-change had decayed in the stable phase of its new length.
        saved = from_text(store.config_text(chosen), f"{self.run} at step {chosen}")
        first, last = _stable_phase(saved, stored_size(self.run), str(self.run))
        if not first <= chosen <= last:
            raise CheckpointError(
                f"{self.run}: step {chosen} was saved with train.total = {saved.train.total}, whose stable phase are "
                f"steps {first} to {last}. {listed} Start from one of that phase."
            )
        return chosen

    def _config(self, base: Config, step: int, dataset_size: int) -> tuple[Config, int]:
        """Returns the config of the cooldown, and the length of its decay.

        Raises:
            ConfigError: an override changes what a resume must not change, or the length is not valid.
        """
        draft = draft_of(base)
        draft.log.progress, draft.log.verbose = Log.progress, Log.verbose
        apply(draft, self.overrides, "--config.")
        changed = validate(draft, "the command line")
        if changed.train.total != base.train.total:
            advice = f"It is the step of the checkpoint and the decay, whose length is {STEPS_FLAG}."
            raise FieldError("train.total", "is not a setting of a cooldown", advice)
        if differences := identity_differences(base, changed):
            raise ConfigError(
                f"{self.run}: a cooldown continues this run, so it must not change:\n  " + "\n  ".join(differences)
            )
        decay = self._decay_steps(changed, step, dataset_size)
        for section in (draft.optimizer, *draft.optimizer.groups.values()):
            if section.schedule == STABLE:
                section.schedule_arguments = {**section.schedule_arguments, "decay": f"{decay} steps"}
        draft.train.total = f"{step + decay} steps"
        return validate(draft, "the command line"), decay

    def _decay_steps(self, config: Config, step: int, dataset_size: int) -> int:
        """Returns the length of the decay."""
        asked = self.steps
        if asked is None:
            decays = {
                where: section.schedule_arguments.get("decay", DECAY)
                for where, section in sections(config.optimizer).items()
                if section.schedule == STABLE
            }
            if len(set(decays.values())) > 1:
                found = ", ".join(f"{where}: {value}" for where, value in decays.items())
                raise ConfigError(
                    f"{self.run}: its groups decay over different lengths ({found}), and a cooldown has one. Give it "
                    f"with {STEPS_FLAG}."
                )
            asked = next(iter(decays.values()))
        return _length(asked, step, config.train.global_batch_size, dataset_size)


def _length(asked: object, step: int, batch_size: int, dataset_size: int) -> int:
    """Returns the number of steps of a duration or of a fraction of the run, which ends after these steps."""
    text = str(asked).strip()
    with contextlib.suppress(ValueError, ZeroDivisionError):
        fraction = Fraction(text)
        if not 0 < fraction < 1:
            raise FieldError(STEPS_FLAG, f"found {text}", "Allowed: a duration, or a fraction of the run in (0, 1).")
        return max(1, round(step * fraction / (1 - fraction)))
    duration = Duration.parse(text, STEPS_FLAG, DATA_UNITS)
    if duration.is_clock or duration.value == 0:
        raise FieldError(STEPS_FLAG, f"found {text!r}", f"Write a length above 0. Units: {', '.join(DATA_UNITS)}.")
    return duration.steps(batch_size, dataset_size)


def _stable_phase(config: Config, dataset_size: int, run: str) -> tuple[int, int]:
    """Returns the first and the last step at which the learning rates of all groups have their peak.

    Raises:
        ConfigError: the schedule of the run, or of a group, has no such phase.
    """
    optimizer, batch_size = config.optimizer, config.train.global_batch_size
    if optimizer.schedule != STABLE:
        raise ConfigError(
            f"{run}: optimizer.schedule is {optimizer.schedule}. A cooldown needs a run with {STABLE}, whose learning "
            "rate is constant until it decays."
        )
    for where, section in followers(optimizer).items():
        if section.schedule != STABLE:
            raise ConfigError(
                f"{run}: {where}.schedule is {section.schedule}, which follows the length of the run. A cooldown needs "
                f"{STABLE}, or a schedule that does not depend on the length, in every group."
            )
    total = config.train.total.steps(batch_size, dataset_size)
    begins, ends = [], []
    for where, section in sections(optimizer).items():
        group_settings = optimizer.groups.get(where.removeprefix("optimizer.groups."))
        until = None if group_settings is None else group_settings.frozen_until
        frozen_until = 0 if until is None else until.steps(batch_size, dataset_size)
        begins.append(frozen_until + section.warmup.steps(batch_size, dataset_size))
        if section.schedule == STABLE:
            size = RunSize(batch_size, dataset_size, max(total - frozen_until, 1))
            ends.append(total - decay_steps(section, size))
    return max(1, *begins), min(ends)


def _start_of(directory: RunDirectory) -> lineage.Input | None:
    """Returns the checkpoint from which the cooldown in a directory starts; None if it holds none."""
    try:
        record = lineage.read(directory.path / lineage.RECORD)
    except (OSError, ValueError) as error:
        raise RunError(f"{directory.path / lineage.RECORD}: cannot be read ({json_text.reason(error)}).") from error
    return next((one for one in (record.inputs if record else ()) if one.role == ROLE), None)


def _copy(run: RunDirectory, step: int, directory: RunDirectory) -> None:
    """Copies a checkpoint and what a resume compares to the directory of a cooldown, on the primary.

    The record of lineage comes first: it says that the directory is that of a cooldown. The config comes last.

    Raises:
        CheckpointError: the run has removed the checkpoint.
        RunError: the directory cannot be written.
    """
    if directory.exists():  # another process has copied it since the check
        return
    folder = run.checkpoints / str(step)
    try:
        with read_lock(folder):
            lineage.update_run(directory, [input_of(run, step, ROLE)])
            found = frozen.find(folder)
            directory.checkpoints.mkdir(exist_ok=True)
            for name in (*([] if found is None else [found.folder]), str(step)):
                _copy_folder(run.checkpoints / name, directory.checkpoints / name)
    except FileNotFoundError as error:
        raise CheckpointError(f"{run}: the checkpoint of step {step} has just been removed. Choose another.") from error
    except OSError as error:
        raise cannot_write(directory.path, error) from error
    results = read_results(run.checkpoints).get(step, {})
    directory.lease.replace_text(directory.checkpoints / RESULTS, json_text.dumps({step: results}, indent=1) + "\n")
    for file, copy in ((run.data, directory.data), (run.optimizer, directory.optimizer)):
        if file.exists():
            directory.lease.replace_text(copy, read_text(file))
    directory.write_config_text(run.read_config_text())


def _copy_folder(source: Path, target: Path) -> None:
    """Copies the folder of a checkpoint with hard links, as its files never change, or with its bytes elsewhere.

    The manifest is a file of its own: readers lock it.
    """
    unfinished = target.with_name(target.name + SAVING)
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, unfinished, copy_function=_link_or_copy)
    unfinished.rename(target)


def _link_or_copy(source: str, target: str) -> None:
    if os.path.basename(source) != MANIFEST:
        with contextlib.suppress(OSError):
            os.link(source, target, follow_symlinks=False)
            return
    shutil.copy2(source, target)
