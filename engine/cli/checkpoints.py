"""`convoy checkpoints`: lists, verifies or exports the checkpoints of a run."""

import argparse
import datetime
import math
import sys
from typing import TYPE_CHECKING

from engine.cli import common
from engine.cluster.exit_status import ExitStatus

if TYPE_CHECKING:
    from engine.checkpoint.store import StepInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy checkpoints`."""
    parser.add_argument(
        "action", nargs="?", choices=["verify"], metavar="verify", help="read every file and compare it with its hash"
    )
    parser.add_argument("run", help="run directory")
    parser.add_argument(
        "--export", metavar="FILE", help="write the weights as safetensors; the averaged weights if there are any"
    )
    parser.add_argument("--step", help="for --export: a step, latest or best")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy checkpoints`."""
    common.refuse_overrides(overrides, "checkpoints")
    if args.action == "verify":
        _verify(args.run)
    elif args.export:
        _export(args.run, args.export, args.step)
    else:
        _list(args.run)
    return ExitStatus.DONE


def _verify(run: str) -> None:
    from engine.checkpoint.integrity import verify_all
    from engine.run.directory import RunDirectory

    directory = RunDirectory(run)
    directory.read_config_text()  # raises RunError if this is not a run
    verify_all(directory.checkpoints, print, lambda text: print(text, file=sys.stderr, flush=True))


def _export(run: str, out: str, step: str | None) -> None:
    from engine.api.inference import export

    common.warn_of_missing_end(run)
    names = export(run, out, step=step)
    print(f"wrote {len(names)} arrays to {out}")


def _list(run: str) -> None:
    from engine.api.saved_run import SavedRun
    from engine.checkpoint.integrity import DamagedCheckpoints
    from engine.checkpoint.manifest import DamagedCheckpoint

    common.warn_of_missing_end(run)
    saved = SavedRun(run)
    infos = saved.checkpoints()
    for info in infos:
        print(_line(info))
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
