"""What a resume may change: the rules that compare a run's stored config and datasets with the new ones.

Each check runs on the primary, and its result or its error reaches every process. A run without a checkpoint may
change in every way. The identity fields are listed in `config/identity.py`.
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
    """The changes that the user accepts: `--accept-schedule-change`, `--accept-data-change`."""

    schedule: bool = False
    data: bool = False


def check_config(config: Config, directory: RunDirectory, accepted: Accepted) -> list[str]:
    """Returns the names of the evaluations whose data section changed.

    Raises:
        ConfigError: an identity field differs, or the schedule changes and that is not accepted.
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
            f"Go on with its own config (--config={directory}), name another --workdir (with its weights by "
            f"--config.init.checkpoint={directory}), or start anew with --fresh (the old run is moved aside)."
        )
    change = schedule_change(old, config)
    if change and not accept:
        raise ConfigError(f"{directory}: {change} To go on with it, add --accept-schedule-change.")
    kept = old.evaluations.keys() & config.evaluations.keys()
    return [name for name in sorted(kept) if old.evaluations[name].data != config.evaluations[name].data]


def dataset_facts(source: Source, evaluation_sources: Mapping[str, Source]) -> dict[str, dataset_summary.Summary]:
    """Returns what identifies the datasets of a run, by the section that names them.

    Raises:
        InconsistentProcesses: processes see other datasets.
    """
    facts: dict[str, dataset_summary.Summary] = {"data": dataset_summary.summarize(source)}
    facts |= {
        f"evaluations.{name}.data": dataset_summary.summarize(found) for name, found in evaluation_sources.items()
    }
    check_consistency(
        {f"{where}: {name}": text for where, found in facts.items() for name, text in found.items()}, "data"
    )
    return facts


def check_data(
    facts: Mapping[str, dataset_summary.Summary], directory: RunDirectory, accepted: Accepted
) -> tuple[list[str], list[str]]:
    """Returns the names of the evaluations whose data changed since the run began, and sentences for the user.

    Raises:
        DataError: the training data changed, and that is not accepted.
    """
    evaluations, messages = group.run_on_primary(
        lambda: _check_data(facts, directory, accepted.data), "the check of the dataset"
    )
    return evaluations, messages


def _check_data(
    facts: Mapping[str, dataset_summary.Summary], directory: RunDirectory, accept: bool
) -> tuple[list[str], list[str]]:
    before = dataset_summary.read(directory.data) if has_checkpoint(directory) else {}
    if not before:
        return [], []
    differences = dataset_summary.changes(before.get("data", facts["data"]), facts["data"], "data")
    if differences and not accept:
        raise DataError(
            f"{directory} holds a run on another dataset:\n  " + "\n  ".join(differences) + "\n"
            "Give it the data that it began with, add --accept-data-change to go on with this one from the same place "
            "in its order, name another --workdir, or start anew with --fresh (the old run is moved aside)."
        )
    messages = [f"the dataset has changed, which is accepted: {text}" for text in differences]
    evaluations = []
    for where in sorted((before.keys() & facts.keys()) - {"data"}):
        if lines := dataset_summary.changes(before[where], facts[where], where):
            name = where.removeprefix("evaluations.").removesuffix(".data")
            evaluations.append(name)
            messages.append(f"{name} is another dataset than before, so its earlier results are dropped: {lines[0]}")
    return evaluations, messages
