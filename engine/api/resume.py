"""Checks of a resume: compares the stored config and datasets of a run with the new ones.

Each check runs on the primary; its result or error is sent to every process. Before the first checkpoint every change
is allowed. `config/identity.py` lists the identity fields.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from engine.base.duration import UNKNOWN_LENGTH, Duration
from engine.base.errors import ConfigError, DataError, RunError
from engine.base.files import read_text
from engine.base.json_text import reason
from engine.checkpoint.store import CheckpointStore
from engine.cluster import group
from engine.cluster.consistency_check import check_consistency
from engine.config.schedules import followers
from engine.config.schema import Config, Train
from engine.config.target import INSTANCE, user_targets
from engine.config.text import from_text
from engine.data import dataset_summary
from engine.data.adapt import follows_run
from engine.data.source import BaseSource
from engine.run.directory import RunDirectory


def newest_checkpoint(directory: RunDirectory) -> int | None:
    """Returns the step of the newest checkpoint of a run; None if there is nothing to resume from."""
    return CheckpointStore(directory.checkpoints).latest() if directory.exists() else None


@dataclasses.dataclass(frozen=True)
class Accepted:
    """Changes that the user accepts: `--accept-schedule-change`, `--accept-data-change` (also of its weights)."""

    schedule: bool = False
    data: bool = False


def check_config(config: Config, directory: RunDirectory, accepted: Accepted) -> list[str]:
    """Returns the names of the evaluations whose data section has changed.

    Raises:
        ConfigError: an identity field differs (of the weights of the data: and that is not accepted), the run would
            end before its newest checkpoint, or the learning-rate schedule changes and that is not accepted.
    """
    return group.run_on_primary(lambda: _check_config(config, directory, accepted), "the check of the earlier config")


def _check_config(config: Config, directory: RunDirectory, accepted: Accepted) -> list[str]:
    newest = newest_checkpoint(directory)
    if newest is None:
        return []
    from engine.config.identity import CACHES, WEIGHTS, identity_differences, schedule_change

    old = from_text(directory.read_config_text(), str(directory.config))
    differences = identity_differences(old, config)
    weights = bool(differences) and not identity_differences(old, config, CACHES + WEIGHTS)
    if differences and not (weights and accepted.data):
        accept = (
            "To continue at the same position with the new weights, add --accept-data-change. To plan a change, give "
            "weights by time: {'0 steps': ..., '5000 steps': ...}. Otherwise: "
        )
        raise ConfigError(
            f"{directory} holds a run of another config:\n  " + "\n  ".join(differences) + f"\n{accept * weights}"
            f"Resume with its stored config (--config={directory}), use another --workdir (with its weights: "
            f"--config.init.checkpoint={directory}), or start a new run with --fresh (the old run is moved aside)."
        )
    size = stored_size(directory)
    if size and not (accepted.data and config.train.total.unit == "epochs"):
        _refuse_total_before_checkpoint(config.train, size, directory)
    change = schedule_change(old, config, newest, size)
    if change and not accepted.schedule:
        raise ConfigError(f"{directory}: {change} To resume with it, add --accept-schedule-change.")
    kept = old.evaluations.keys() & config.evaluations.keys()
    return [name for name in sorted(kept) if old.evaluations[name].data != config.evaluations[name].data]


def changed_batch_sizes(config: Config, directory: RunDirectory) -> list[str]:
    """Returns the names of the evaluations whose `batch_size` has changed, for a Task that compares rows of a batch."""

    def changed() -> list[str]:
        if newest_checkpoint(directory) is None:
            return []
        old = from_text(directory.read_config_text(), str(directory.config))
        kept = sorted(old.evaluations.keys() & config.evaluations.keys())
        sizes = (
            {name: run.evaluations[name].batch_size or run.train.global_batch_size for name in kept}
            for run in (old, config)
        )
        before, after = sizes
        return [name for name in kept if before[name] != after[name]]

    return group.run_on_primary(changed, "the check of the earlier batch sizes")


def check_total_reaches_checkpoint(train: Train, dataset_size: int, directory: RunDirectory) -> None:
    """Checks that the run does not end before its newest checkpoint, for a dataset that is open.

    `check_config` has checked it before with the stored size of the dataset, unless that may change.

    Raises:
        ConfigError: `train.total` is below the step of that checkpoint.
    """
    group.run_on_primary(
        lambda: _refuse_total_before_checkpoint(train, dataset_size, directory), "the check of train.total"
    )


def check_readers_of_total(
    readers: Sequence[str], source: BaseSource, total: Duration, directory: RunDirectory, accepted: Accepted
) -> None:
    """Checks that a changed `train.total` does not change the training of a Task or a dataset that depends on it.

    Args:
        readers: names of the code that reads `context.total_steps`.
        source: the training data, whose weights may change at percentages of the run.
        total: `train.total` of the resume.
        directory: the run directory, whose stored config is still that of the attempt before.
        accepted: changes that the user accepts.

    Raises:
        ConfigError: it does, and that is not accepted.
    """
    changed = []
    if readers:
        changed.append(f"context.total_steps, which {' and '.join(readers)} read{'s' * (len(readers) == 1)}")
    if follows_run(source):
        changed.append("the times in percent of the run at which the weights of data change")
    if changed and not accepted.schedule:
        what = ", and ".join(changed)
        group.run_on_primary(lambda: _refuse_changed_total(what, total, directory), "the check of total_steps")


def _refuse_changed_total(what: str, total: Duration, directory: RunDirectory) -> None:
    if newest_checkpoint(directory) is None:
        return
    old = from_text(directory.read_config_text(), str(directory.config)).train.total
    if old != total:
        raise ConfigError(
            f"{directory}: train.total: {old} -> {total} changes {what}. To resume with it, add "
            "--accept-schedule-change."
        )


def _refuse_total_before_checkpoint(train: Train, dataset_size: int, directory: RunDirectory) -> None:
    newest, total = newest_checkpoint(directory), _steps_of_run(train, dataset_size)
    if newest is None or total >= newest:
        return
    stored = from_text(directory.read_config_text(), str(directory.config))
    path = shlex.quote(str(directory))
    command, stored_total = f"convoy train --config={path} --workdir={path}", _steps_of_run(stored.train, dataset_size)
    if stored_total < newest:  # an earlier version of the engine stored the config before this check
        flag = " --accept-schedule-change" if followers(stored.optimizer) else ""
        command += f' --config.train.total="{newest} steps"{flag}'
    advice = f"Resume with {command}, or start a new run with --fresh"
    if any(section.target == INSTANCE for section in user_targets(stored).values()):  # no command can build it
        advice = "Write such a train.total, or start a new run with fresh=True"
    found = f"{train.total}" + ("" if train.total.unit == "steps" else f", which is {total} steps")
    raise ConfigError(
        f"train.total: found {found}, but {directory} has a checkpoint of step {newest}. Allowed: {newest} steps or "
        f"more. {advice} (the old run is moved aside)."
    )


def _steps_of_run(train: Train, dataset_size: int) -> int:
    return train.total.steps(train.global_batch_size, dataset_size)


def stored_size(directory: RunDirectory) -> int:
    """Returns the number of training examples that the run stored; 0 if it stored none."""
    size = dataset_summary.read(directory.data).get("data", {}).get("examples", "")
    if size == dataset_summary.UNKNOWN_SIZE:
        return UNKNOWN_LENGTH
    return int(size) if size.isdecimal() else 0


def stored_roles(directory: RunDirectory) -> str | None:
    """Returns the roles of the parameters, as text for `build_program`: None if there is nothing to resume.

    It is "" if the run has stored none: they do not matter, or an earlier version started it. Every process calls this.

    Raises:
        RunError: the file is damaged.
    """

    def read() -> str | None:
        if newest_checkpoint(directory) is None:
            return None
        if not directory.optimizer.exists():
            return ""
        from engine.training.roles import Roles

        try:
            text = read_text(directory.optimizer)
            Roles.from_text(text)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{directory.optimizer} is damaged ({reason(error)}). It has the roles of the parameters. "
                "Restore it from a backup, or start a new run with --fresh (the old run is moved aside)."
            ) from error
        return text

    return group.run_on_primary(read, "the stored roles of the parameters")


def summarize_datasets(sources: Mapping[str, BaseSource]) -> dict[str, dataset_summary.Summary]:
    """Returns the summary of each dataset of a run, by config section.

    Raises:
        InconsistentProcesses: the datasets of the processes differ.
    """
    summaries: dict[str, dataset_summary.Summary] = {
        where: dataset_summary.summarize(found) for where, found in sources.items()
    }
    check_consistency(
        {f"{where}: {name}": text for where, found in summaries.items() for name, text in found.items()}, "data"
    )
    return summaries


def check_data(
    summaries: Mapping[str, dataset_summary.Summary], directory: RunDirectory, accepted: Accepted
) -> tuple[list[str], list[str]]:
    """Returns the names of the evaluations whose data has changed since the start of the run, and messages.

    Raises:
        DataError: the training data has changed, and that is not accepted.
    """
    evaluations, messages = group.run_on_primary(
        lambda: _check_data(summaries, directory, accepted.data), "the check of the dataset"
    )
    return evaluations, messages


def _check_data(
    summaries: Mapping[str, dataset_summary.Summary], directory: RunDirectory, accept: bool
) -> tuple[list[str], list[str]]:
    before = {} if newest_checkpoint(directory) is None else dataset_summary.read(directory.data)
    if not before:
        return [], []
    differences = dataset_summary.changes(before.get("data", summaries["data"]), summaries["data"], "data")
    if differences and not accept:
        raise DataError(
            f"{directory} holds a run on another dataset:\n  " + "\n  ".join(differences) + "\n"
            "Use the original dataset, continue at the same position of the new one with --accept-data-change, use "
            "another --workdir, or start a new run with --fresh (the old run is moved aside)."
        )
    messages = [f"the dataset has changed (--accept-data-change): {text}" for text in differences]
    evaluations = []
    for where in sorted((before.keys() & summaries.keys()) - {"data"}):
        if lines := dataset_summary.changes(before[where], summaries[where], where):
            name = where.removeprefix("evaluations.").removesuffix(".data")
            evaluations.append(name)
            messages.append(f"the dataset of {name} has changed, so its earlier results are dropped: {lines[0]}")
    return evaluations, messages
