"""`convoy train`: trains a config, or resumes its run."""

import argparse

from engine.base.host import check_virtual_memory
from engine.cli import common
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import lost_peers_reported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy train`."""
    common.add_config_flag(parser)
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
    config = common.load_config(args.config, [*overrides, *verbose])
    check_virtual_memory()  # before JAX is imported, whose libraries may not fit either
    common.join(args)
    with common.fast_import():
        from engine.api.train import train
    from engine.run.goodput import process_start

    with lost_peers_reported():
        train(
            config,
            workdir=args.workdir,
            fresh=args.fresh,
            fast_dev_run=args.fast_dev_run,
            accept_schedule_change=args.accept_schedule_change,
            accept_data_change=args.accept_data_change,
            began=process_start(),
        )
    return ExitStatus.DONE
