"""Checks of a resume: compares the stored config and datasets of a run with the new ones.

Each check runs on the primary; its result or error is sent to every process. Before the first checkpoint every change
is allowed. `config/identity.py` lists the identity fields.
"""

import dataclasses
from collections.abc import Mapping

from engine.cluster import group
from engine.cluster.consistency_check import check_consistency
from engine.config.errors import ConfigError, DataError
from engine.config.identity import identity_differences, schedule_change
from engine.config.schema import Config
from engine.config.text import from_text
from engine.data import dataset_summary
from engine.data.source import Source
from engine.run.directory import RunDirectory
from engine.saved_run import has_checkpoint


@dataclasses.dataclass(frozen=True)
class Accepted:
    """Changes that the user accepts: `--accept-schedule-change`, `--accept-data-change`."""

    schedule: bool = False
    data: bool = False


def check_config(config: Config, directory: RunDirectory, accepted: Accepted) -> list[str]:
    """Returns the names of the evaluations whose data section has changed.

    Raises:
        ConfigError: an identity field differs, or the learning-rate schedule changes and that is not accepted.
    """
    return group.run_on_primary(
        lambda: _check_config(config, directory, accepted.schedule), "the check of the earlier config"
    )


def _check_config(config: Config, directory: RunDirectory, accept: bool) -> list[str]:
    if not has_checkpoint(directory):
        return []
    old = from_text(directory.read_config_text(), str(directory.config))
    if differences := identity_differences(old, config):
        raise ConfigError(
            f"{directory} holds a run of another config:\n  " + "\n  ".join(differences) + "\n"
            f"Resume with its stored config (--config={directory}), use another --workdir (with its weights: "
            f"--config.init.checkpoint={directory}), or start a new run with --fresh (the old run is moved aside)."
        )
    change = schedule_change(old, config)
    if change and not accept:
        raise ConfigError(f"{directory}: {change} To resume with it, add --accept-schedule-change.")
    kept = old.evaluations.keys() & config.evaluations.keys()
    return [name for name in sorted(kept) if old.evaluations[name].data != config.evaluations[name].data]


def summarize_datasets(source: Source, evaluation_sources: Mapping[str, Source]) -> dict[str, dataset_summary.Summary]:
    """Returns the summary of each dataset of a run, by config section.

    Raises:
        InconsistentProcesses: the datasets of the processes differ.
    """
    summaries: dict[str, dataset_summary.Summary] = {"data": dataset_summary.summarize(source)}
    summaries |= {
        f"evaluations.{name}.data": dataset_summary.summarize(found) for name, found in evaluation_sources.items()
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
    before = dataset_summary.read(directory.data) if has_checkpoint(directory) else {}
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
