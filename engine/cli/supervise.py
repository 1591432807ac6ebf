"""`convoy supervise`: trains, and restarts after failures until the run is done."""

import argparse

from engine.base.errors import ConfigError
from engine.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy supervise`."""
    parser.usage = "convoy supervise [options] -- train ..."
    parser.add_argument("--processes", type=int, help="number of processes on this machine (default: one)")
    common.add_devices_flag(parser)
    parser.add_argument("--restarts", type=int, help="maximum number of restarts (default: no limit)")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy supervise`, or `convoy launch local --restarts N`."""
    from engine.launch.supervise import supervise
    from engine.run.directory import RunDirectory, default_workdir

    words = common.command_words(args, overrides, f"convoy {args.verb}", "train")
    train, train_overrides = args.parse_command()
    if train.fast_dev_run:
        raise ConfigError("--fast-dev-run: cannot be combined with restarts. Remove it, or run convoy train alone.")
    config = common.load_config(train.config, train_overrides)
    return supervise(
        words,
        RunDirectory(train.workdir or default_workdir(config.name, config.task.target)),
        processes=args.processes,
        devices=args.devices_per_process,
        restarts=args.restarts,
    )
