"""`convoy tune lr` and `convoy tune batch`: suggest a learning rate and a batch size from a short measurement."""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster import group, output
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import lost_peers_reported

if TYPE_CHECKING:
    from engine.tuning import BatchSizes, LearningRates

_LR = """
Trains short temporary runs whose learning rate grows exponentially, and suggests a tenth of the
learning rate at which the loss is lowest (Smith 2017, section 3.3). Exit code 1 if the loss never
falls or never rises again: the range has to be extended.

  convoy tune lr --config=configs.digits --from=1e-5 --to=10
"""
_BATCH = """
Measures the gradient noise scale (McCandlish et al. 2018) in the first steps of a config, or at
the checkpoints of a run, and says what larger and smaller batches cost. Exit code 1 if the noise
is too large to tell: more --batches are needed.

  convoy tune batch --config=configs.digits
  convoy tune batch --run=runs/digits --batches=64
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the parsers of the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, prog="convoy tune")
    raw = argparse.RawDescriptionHelpFormatter
    lr = actions.add_parser("lr", help="suggest a learning rate", description=_LR, formatter_class=raw)
    lr.add_argument("--from", type=float, default=1e-6, dest="low", help="lowest learning rate (default: 1e-6)")
    lr.add_argument("--to", type=float, default=1.0, dest="high", help="highest learning rate (default: 1)")
    lr.add_argument("--steps", type=int, default=100, metavar="N", help="steps of a test (default: 100)")
    lr.add_argument("--repeats", type=int, default=3, metavar="N", help="tests, each with another seed (default: 3)")
    batch = actions.add_parser("batch", help="suggest a batch size", description=_BATCH, formatter_class=raw)
    batch.add_argument("--run", metavar="RUN", help="measure the checkpoints of this run, instead of a config")
    batch.add_argument(
        "--step", type=int, action="append", default=[], metavar="N", help="a checkpoint of it; may be repeated"
    )
    batch.add_argument("--steps", type=int, default=200, metavar="N", help="steps to train (default: 200)")
    batch.add_argument("--points", type=int, default=4, metavar="N", help="steps at which to measure (default: 4)")
    batch.add_argument("--batches", type=int, default=32, metavar="N", help="batches of each (default: 32)")
    for action in (lr, batch):
        common.add_config_flag(action, required=action is lr)
        action.add_argument("--out", metavar="FOLDER", help="write curve.csv and curve.png here")
        action.add_argument("--json", action="store_true", help="print a JSON object")
        common.add_process_flags(action)
        action.set_defaults(parser=action)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy tune ACTION`."""
    return _tune_lr(args, overrides) if args.action == "lr" else _tune_batch(args, overrides)


def _tune_lr(args: argparse.Namespace, overrides: list[str]) -> int:
    config = common.load_config(args.config, overrides)
    common.join(args)
    with common.fast_import():
        from engine.tuning import learning_rate

    with lost_peers_reported():
        found = learning_rate(
            config,
            between=(args.low, args.high),
            steps=args.steps,
            repeats=args.repeats,
            on_test=lambda number, count: common.say(f"range test {number} of {count}"),
        )
    return _show(found, args)


def _tune_batch(args: argparse.Namespace, overrides: list[str]) -> int:
    if (args.config is None) == (args.run is None):
        raise ConfigError("tune batch: give either --config=CONFIG, or --run=RUN with checkpoints.")
    if args.run is not None:
        common.refuse_overrides(overrides, "tune batch --run")
    elif args.step:
        raise ConfigError("--step: names a checkpoint of --run=RUN. For a config, use --steps=N and --points=N.")
    common.join(args)
    with common.fast_import():
        from engine.tuning import batch_size, batch_size_of_run

    def on_step(step: int) -> None:
        common.say(f"measuring step {step}")

    with lost_peers_reported():
        if args.run is not None:
            found = batch_size_of_run(args.run, at=args.step, batches=args.batches, on_step=on_step)
        else:
            config = common.load_config(args.config, overrides)
            sizes = {"steps": args.steps, "points": args.points, "batches": args.batches}
            found = batch_size(config, **sizes, on_step=on_step)
    return _show(found, args)


def _show(found: "LearningRates | BatchSizes", args: argparse.Namespace) -> int:
    """Prints and writes a result, in the primary; returns the exit code."""
    from engine.base import json_text
    from engine.tuning import BatchSizes, show

    if group.is_primary():
        if isinstance(found, BatchSizes):
            for warning in found.warnings:
                common.say(f"warning: {warning}")
        if args.json:
            print(json_text.dumps(show.to_json(found)))
        elif isinstance(found, BatchSizes):
            print(show.batch_sizes_text(found))
        else:
            encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
            color = output.is_terminal(sys.stdout) and "NO_COLOR" not in os.environ
            width = min(100, shutil.get_terminal_size((80, 24)).columns)
            several = len(found.curves) > 1 and not color  # dots of two curves look alike without colour
            ascii_only = "utf" not in encoding or several
            print(show.learning_rates_text(found, width, color=color, ascii_only=ascii_only))
        if args.out:
            names = show.write_files(found, Path(args.out))
            common.say(f"wrote {' and '.join(names)} to {args.out}")
    if found.problem:
        common.say(f"tune {args.action}: no suggestion: {found.problem}.")
        return ExitStatus.USER_ERROR
    return ExitStatus.DONE
