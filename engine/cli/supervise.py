"""`convoy supervise`: trains, and restarts after failures until the run is done."""

import argparse
import json
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster import parent

if TYPE_CHECKING:
    from engine.launch.supervise import RunAttempt
    from engine.run.directory import RunDirectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy supervise`."""
    parser.usage = "convoy supervise [options] -- train ..."
    parser.add_argument("--processes", type=int, help="number of processes on this machine (default: one)")
    common.add_devices_flag(parser)
    parser.add_argument("--restarts", type=int, help="maximum number of restarts (default: no limit)")


def run(args: argparse.Namespace, overrides: list[str], run_attempt: "RunAttempt | None" = None) -> int:
    """Runs `convoy supervise`, or `convoy launch WHERE --restarts N`.

    Args:
        args, overrides: as for any verb.
        run_attempt: as for `supervise`.
    """
    from engine.launch.supervise import supervise

    words = common.command_words(args, overrides, f"convoy {args.verb}", "train")
    train, train_overrides = args.parse_command()
    if train.fast_dev_run:
        raise ConfigError("--fast-dev-run: cannot be combined with restarts. Remove it, or run convoy train alone.")
    return supervise(
        words,
        run_directory(train, train_overrides),
        processes=args.processes,
        devices=getattr(args, "devices_per_process", None),
        restarts=args.restarts,
        run_attempt=run_attempt,
    )


def run_directory(train: argparse.Namespace, overrides: list[str]) -> "RunDirectory":
    """Returns the directory of the run that a command `convoy train` starts or resumes. Raises ConvoyError."""
    from engine.run.directory import RunDirectory, cooldown_workdir, default_workdir, split_step

    if train.workdir:
        return RunDirectory(train.workdir)
    if train.cooldown:
        return RunDirectory(cooldown_workdir(*split_step(train.cooldown)))
    return RunDirectory(default_workdir(*_name_and_task(train.config, overrides)))


def _name_and_task(reference: str, overrides: list[str]) -> tuple[str, str]:
    """Returns the name and the Task of a config. A child loads it: a config that ends its process must not end with 0.

    Raises:
        ConfigError: the config is wrong, or it ends its process.
    """

    def load() -> str:
        config = common.load_config(reference, overrides)
        return json.dumps([config.name, config.task.target])

    try:
        found = parent.call_in_child(load)
    except parent.ChildRaised:
        found = load()  # raises the same error in this process
    if found is None:
        raise ConfigError(
            f"{reference}: the process that loads this config was ended by it, or by a module that it imports: a call "
            "of os._exit, of exit of C, or a fault. Remove the call, then start the same command again."
        )
    name, task = json.loads(found)
    return name, task
