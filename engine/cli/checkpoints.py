"""`convoy checkpoints`: lists or verifies the checkpoints of a run."""

import argparse
import datetime
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base.deprecation import warn_deprecated
from engine.cli import common, export
from engine.cluster.exit_status import ExitStatus

if TYPE_CHECKING:
    from engine.checkpoint.store import StepInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy checkpoints`."""
    parser.add_argument(
        "action", nargs="?", choices=["verify"], metavar="verify", help="read every file and compare it with its hash"
    )
    parser.add_argument("run", help="run directory")
    parser.add_argument("--export", metavar="FILE", help="deprecated: convoy export RUN --out=FILE")
    export.add_flags(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy checkpoints`."""
    common.refuse_overrides(overrides, "checkpoints")
    export.check_flags(args, is_export=bool(args.export))
    if args.action == "verify":
        _verify(args.run)
    elif args.export:
        warn_deprecated("convoy checkpoints --export", f"convoy export {args.run} --out={args.export}", removed="0.4.0")
        export.write(args, Path(args.export))
    else:
        _list(args.run)
    return ExitStatus.DONE


def _verify(run: str) -> None:
    from engine.checkpoint.integrity import verify_all
    from engine.run.directory import RunDirectory

    directory = RunDirectory(run)
    directory.read_config_text()  # raises RunError if this is not a run
    verify_all(directory.checkpoints, print, lambda text: print(text, file=sys.stderr, flush=True))


def _list(run: str) -> None:
    from engine.api.saved_run import SavedRun
    from engine.checkpoint import frozen
    from engine.checkpoint.integrity import DamagedCheckpoints
    from engine.checkpoint.manifest import DamagedCheckpoint, size_of

    common.warn_of_missing_end(run)
    saved = SavedRun(run)
    infos = saved.checkpoints()
    for info in infos:
        print(_line(info))
    for folder in frozen.folders(saved.directory.checkpoints):
        size = size_of(folder, copied=True)[0] / 2**20
        print(f"{folder.name:>13}  {size:>9.1f} MiB  parameters that no step changes, which the steps need")
    if str(saved.code):
        print(f"code: {saved.code}")
    damaged = [info for info in infos if isinstance(info.error, DamagedCheckpoint)]
    if damaged:
        raise DamagedCheckpoints(
            f"{saved.directory}: {len(damaged)} of {len(infos)} checkpoints are damaged. Use another step, or copy the "
            "files of the step from a backup."
        )
    for info in reversed(infos):
        if info.error is not None:
            raise info.error


def _line(info: "StepInfo") -> str:
    """Returns the line of a checkpoint in the list."""
    from engine.checkpoint.manifest import DamagedCheckpoint, shorten

    if isinstance(info.error, DamagedCheckpoint):
        return f"step {info.step:>8}  DAMAGED  {shorten(info.error.problems)}"
    if info.error is not None:
        return f"step {info.step:>8}  newer    saved by a newer version of Convoy"
    results = "  ".join(f"{name} {value:.6g}" for name, value in info.results.items())
    known = not math.isnan(info.time)
    when = datetime.datetime.fromtimestamp(info.time).isoformat(" ", "seconds") if known else "time unknown"
    return f"step {info.step:>8}  {info.bytes / 2**20:>9.1f} MiB  {when}  {results}".rstrip()
