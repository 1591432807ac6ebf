"""`convoy checkpoints`: lists, verifies or exports the checkpoints of a run."""

import argparse
import datetime
import math
import sys
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster.exit_status import ExitStatus

if TYPE_CHECKING:
    from engine.checkpoint.store import StepInfo

CARD_FLAGS = ("intended_use", "limits", "group", "no_card")
PATIENCE_S = 3.0  # intervals that take longer show their progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy checkpoints`."""
    parser.add_argument(
        "action", nargs="?", choices=["verify"], metavar="verify", help="read every file and compare it with its hash"
    )
    parser.add_argument("run", help="run directory")
    parser.add_argument(
        "--export",
        metavar="FILE",
        help="write the weights as safetensors, the averaged weights if there are any; and FILE.MODEL_CARD.md",
    )
    parser.add_argument("--step", help="for --export: a step, latest or best")
    card = parser.add_argument_group("model card of --export")
    card.add_argument("--intended-use", metavar="FILE", help="text of the team: for what the model may be used")
    card.add_argument("--limits", metavar="FILE", help="text of the team: what is known to be wrong with it")
    card.add_argument(
        "--group", metavar="TAG", help="intervals over groups of examples with the same value of this tag"
    )
    card.add_argument("--no-card", action="store_true", help="write no model card")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy checkpoints`."""
    common.refuse_overrides(overrides, "checkpoints")
    if flags := [flag for flag in CARD_FLAGS if getattr(args, flag)]:
        names = ", ".join(f"--{flag.replace('_', '-')}" for flag in flags)
        if not args.export or (args.no_card and len(flags) > 1):
            raise ConfigError(f"{names}: concern the model card of an export. Add --export=FILE, without --no-card.")
    if args.action == "verify":
        _verify(args.run)
    elif args.export:
        _export(args)
    else:
        _list(args.run)
    return ExitStatus.DONE


def _verify(run: str) -> None:
    from engine.checkpoint.integrity import verify_all
    from engine.run.directory import RunDirectory

    directory = RunDirectory(run)
    directory.read_config_text()  # raises RunError if this is not a run
    verify_all(directory.checkpoints, print, lambda text: print(text, file=sys.stderr, flush=True))


def _export(args: argparse.Namespace) -> None:
    from pathlib import Path

    from engine.api.inference import export
    from engine.observe.progress import CountProgress

    common.warn_of_missing_end(args.run)
    if args.no_card:
        names = export(args.run, args.export, step=args.step)
        print(f"wrote {len(names)} arrays to {args.export}")
        return
    from engine.api.saved_run import SavedRun
    from engine.checkpoint.bucket_copy import readable
    from engine.lineage import card, card_results

    file = Path(args.export)
    card.check_replaceable(file)
    team = card.TeamText(
        card.read_team_text(args.intended_use, "--intended-use"), card.read_team_text(args.limits, "--limits")
    )
    step = args.step
    if args.group:
        step = SavedRun(args.run).choose(step)
        card_results.check_group(readable(args.run), step, args.group)
    names = export(args.run, file, step=step)
    print(f"wrote {len(names)} arrays to {args.export}")
    with CountProgress("resampling", "parts", delay_s=PATIENCE_S) as progress:
        path = card.write_card(file, team, args.group or "", readable(args.run), progress.update)
    print(f"model card: {path}")


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
