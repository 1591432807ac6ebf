"""`convoy train`: trains a config, or resumes its run."""

import argparse
from typing import Any

from engine.base.errors import ConfigError
from engine.base.host import check_virtual_memory
from engine.cli import common
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import lost_peers_reported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy train`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help=common.CONFIG_HELP)
    source.add_argument(
        "--cooldown", metavar="RUN[@STEP]", help="decay from a checkpoint of this run, in a new run; with its config"
    )
    parser.add_argument(
        "--cooldown-steps", metavar="LENGTH", help="its length, '500 steps' or 0.2 of the new run (default: the run's)"
    )
    parser.add_argument("--workdir", help="run directory, a folder or s3://BUCKET/PATH (default: runs/<name>)")
    parser.add_argument("--fresh", action="store_true", help="start a new run; an existing run is moved aside")
    parser.add_argument("--verbose", action="store_true", help="show more: each save, all results, all rates")
    parser.add_argument("--fast-dev-run", action="store_true", help="train, save and evaluate for two small steps")
    parser.add_argument(
        "--accept-schedule-change",
        action="store_true",
        help="resume although train.total changes the learning rates, context.total_steps, or weights of the data",
    )
    parser.add_argument(
        "--accept-data-change", action="store_true", help="resume although the training data has changed"
    )
    common.add_process_flags(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy train`."""
    verbose = ["log.verbose=true"] if args.verbose else []
    _check_cooldown(args)
    config = None if args.config is None else common.load_config(args.config, [*overrides, *verbose])
    check_virtual_memory()  # before JAX is imported, whose libraries may not fit either
    common.join(args)
    with common.fast_import():
        from engine.api.train import train
    from engine.run.goodput import process_start

    settings: dict[str, Any] = dict(
        workdir=args.workdir,
        fresh=args.fresh,
        accept_schedule_change=args.accept_schedule_change,
        accept_data_change=args.accept_data_change,
        began=process_start(),
    )
    with lost_peers_reported():
        if config is None:
            from engine.api.cooldown import cooldown

            changes = [*overrides, *verbose]
            cooldown(args.cooldown, steps=args.cooldown_steps, overrides=changes, on_message=common.say, **settings)
        else:
            train(config, fast_dev_run=args.fast_dev_run, **settings)
    return ExitStatus.DONE


def _check_cooldown(args: argparse.Namespace) -> None:
    """Raises ConfigError for flags that do not belong together."""
    if args.cooldown is None and args.cooldown_steps is not None:
        raise ConfigError("--cooldown-steps: is the length of a cooldown. Name the run: --cooldown=RUN@STEP.")
    if args.cooldown is not None and args.fast_dev_run:
        raise ConfigError("--fast-dev-run: a cooldown trains to its end. Leave out --fast-dev-run.")
