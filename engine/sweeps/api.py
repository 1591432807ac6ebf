"""`engine.sweep`: searches settings of a config, or arguments of a function."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack
from zlib import crc32

import ml_collections

from engine.base.errors import ConfigError, did_you_mean
from engine.config.schema import Config
from engine.config.text import to_text
from engine.config.validation import validate
from engine.run.atomic import write_text
from engine.storage.mounts import local_text
from engine.sweeps.folder import SweepFolder, open_folder
from engine.sweeps.local import LocalWorkers
from engine.sweeps.machine import shares
from engine.sweeps.objective import Objective
from engine.sweeps.space import Space
from engine.sweeps.sweep import Search, SweepResult, run_function, run_search

BASE = "base-{:08x}.txt"
"""File of the base config in the folder of a sweep, if it was given as an object; the number is that of its text."""


def say(text: str) -> None:
    """Prints a sentence for the user."""
    print(text, file=sys.stderr, flush=True)


class SearchOptions(TypedDict, total=False):
    """The options of `engine.sweep`, each with its default.

    Attributes:
        trials: number of trials; None: 20, or every point of a grid.
        metric: "evaluation/metric" of the config; "": `checkpoint.best`.
        mode: "max", "min", or "auto": as the name of the metric says. A function needs one of the first two.
        sampler: "tpe", the default, "random", "grid", "qmc", "cmaes" or "gp".
        prune: "halving" or "median": ends bad trials early, at evaluations; "": ends none.
        rung: first step at which a trial may be pruned; 0: that of the first evaluation.
        factor: with "halving", one trial in so many continues, for so many times as many steps; 3.
        seeds: runs of each trial, with different seeds; trials are ranked by their mean; 1. Bad trials end with the
            first.
        budget: of each run: "2000 steps", "5 epochs", "10 minutes" or "1e15 flops"; "": `train.total`.
        seed: seed of the search; 0.
        storage: URL of a database for Optuna; "": a journal in the folder.
    """

    trials: int | None
    metric: str
    mode: str
    sampler: str
    prune: str
    rung: int
    factor: int
    seeds: int
    budget: str
    seed: int
    storage: str


def sweep(
    target: str | Path | Config | ml_collections.ConfigDict | Objective,
    space: Mapping[str, Any] | str,
    *,
    workdir: str | Path | None = None,
    overrides: Sequence[str] = (),
    parallel: int | None = None,
    devices_per_trial: int | None = None,
    on_message: Callable[[str], None] = say,
    **options: Unpack[SearchOptions],
) -> SweepResult:
    """Searches with Optuna, and returns the best trial. The same call continues a sweep that was stopped or killed.

    Each trial of a config is an ordinary run in `<workdir>/trials`, in processes of its own. An objective is called in
    this process, one trial after the other; it may train with `engine.train(config, workdir=trial.folder)`.

    Args:
        target: a config, as for `engine.train`; or a function that takes a `sweeps.Trial` and returns its value.
        space: setting, or argument of the function -> domain of `engine.sweeps` or its text; or a file or a module with
            `get_space()`.
        workdir: the folder of the sweep; None: sweeps/<name of the config>.
        overrides: overrides of the config, each "train.total=2 epochs".
        parallel: runs at a time; None: one per GPU or TPU chip, or per core while the memory suffices.
        devices_per_trial: GPUs or TPU chips of a run; None: an equal share.
        on_message: called with sentences for the user.
        options: `engine.sweeps.SearchOptions`: trials, metric, mode, sampler, prune, seeds, budget and others.

    Raises:
        ConfigError: an argument is not valid, or the folder holds a sweep with another definition.
        SweepStopped: a signal has stopped the sweep; its `exit_code` says which.
    """
    if unknown := sorted({*options} - {*SearchOptions.__annotations__}):
        near = did_you_mean(unknown[0], SearchOptions.__annotations__)
        allowed = ", ".join(SearchOptions.__annotations__)
        raise ConfigError(f"{unknown[0]}: unknown option of engine.sweep.{near} Options: {allowed}.")
    if callable(target):
        unused = {"overrides": overrides, "parallel": parallel, "devices_per_trial": devices_per_trial}
        return _sweep_function(target, space, workdir, options, unused, on_message)
    found = Space.parse(space, {}) if isinstance(space, str) else Space.of(space)
    reference, folder = _reference(target, workdir)
    search = Search(reference=reference, space=found, overrides=overrides, **options)
    folder = folder or SweepFolder(Path("sweeps") / search.config().name)

    def workers(folder: SweepFolder) -> LocalWorkers:
        return LocalWorkers(shares(parallel, devices_per_trial), folder.logs)

    return run_search(search, folder, workers, on_message)


def _reference(
    target: str | Path | Config | ml_collections.ConfigDict, workdir: str | Path | None
) -> tuple[str, SweepFolder | None]:
    """Returns what `--config` names, and the folder of the sweep if it is known already. An object becomes a file."""
    folder = None if workdir is None else open_folder(workdir)
    if isinstance(target, str | Path):
        return local_text(str(target)), folder
    config = target if isinstance(target, Config) else validate(target)
    if not config.name:
        raise ConfigError("name: is empty. Give the config a name, or pass workdir=... .")
    folder = folder or SweepFolder(Path("sweeps") / config.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    text = to_text(config)
    file = folder.path / BASE.format(crc32(text.encode()))  # so that the definition of a changed config is refused
    write_text(file, text)
    return str(file), folder


def _sweep_function(
    objective: Objective,
    space: Mapping[str, Any] | str,
    workdir: str | Path | None,
    options: SearchOptions,
    unused: Mapping[str, Any],
    on_message: Callable[[str], None],
) -> SweepResult:
    unused = {**unused, "metric": options.get("metric"), "budget": options.get("budget")}
    if given := [name for name, value in unused.items() if value]:
        raise ConfigError(f"{given[0]}: has no meaning for a function. Leave it out.")
    if options.get("mode") not in ("max", "min"):
        raise ConfigError(f"mode={options.get('mode', 'auto')!r}: a function needs 'max' or 'min'.")
    if options.get("seeds", 1) != 1:
        raise ConfigError("seeds: a function is called once for each trial. Average over seeds in it.")
    if isinstance(space, str):
        raise ConfigError(f"space={space!r}: a function needs a dict: argument -> domain.")
    if workdir is None:
        raise ConfigError("workdir: is missing. Name the folder of the sweep, such as workdir='sweeps/mine'.")
    found = Space.of(space, of_config=False)
    folder = open_folder(workdir)
    definition = Search(reference="", space=found, **options).define_function(folder)
    return run_function(objective, found, folder, definition, on_message)
