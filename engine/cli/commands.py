"""The commands that read a run: evaluate, predict, checkpoints, goodput, plan --runs; and what all commands share."""

import argparse
import contextlib
import datetime
import gc
import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError, RunError
from engine.cluster import cluster_detection, group, processes
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import lost_peers_reported

if TYPE_CHECKING:
    from engine.metrics.results import Result


@contextlib.contextmanager
def fast_import() -> Iterator[None]:
    """Pauses garbage collection, which takes 15 % of the time to import the engine; imported objects are permanent."""
    if "engine.api.train" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # later collections skip the imported objects
        gc.enable()


def join(args: argparse.Namespace) -> None:
    """Joins the other processes, if any, and prints the index of this process."""
    found = detection(args)
    if found.process.count > 1 or found.process.detected_by_jax or found.notes:
        print(found, *(f"warning: {note}" for note in found.notes), sep="\n", file=sys.stderr, flush=True)
    processes.initialize(found.process)


def detection(args: argparse.Namespace) -> cluster_detection.Detection:
    """Returns how the processes of this command were found."""
    return cluster_detection.detect({name: getattr(args, name) for name in cluster_detection.FLAGS}, os.environ)


def no_overrides(overrides: list[str], verb: str) -> None:
    """Raises ConfigError for overrides of a command that takes none."""
    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: convoy {verb} reads the run's own config and takes no overrides.")


def evaluate(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy evaluate`."""
    if args.follow and args.step:
        raise ConfigError("--follow evaluates every checkpoint. Remove --step.")
    if args.timeout and not args.follow:
        raise ConfigError("--timeout limits how long --follow waits. Add --follow.")
    join(args)
    with fast_import():
        from engine.api import follow, inference
        from engine.metrics.results import result_text

    printed = False

    def show(results: "dict[str, Result]") -> None:
        nonlocal printed
        if group.is_primary():
            texts = {name: text for name, value in results.items() if (text := result_text(value))}
            lines = [f"{name}:{text if text.startswith('\n') else f' {text}'}" for name, text in texts.items()]
            print("\n".join([*[""] * printed, *lines]), flush=True)
        printed = True

    with lost_peers_reported():
        if args.follow:
            follow.follow(args.run, overrides=overrides, timeout=args.timeout, on_results=show, on_message=say)
        else:
            steps = args.step or [None]
            inference.evaluate_steps(args.run, steps, overrides=overrides, on_results=show, on_message=say)
    return ExitStatus.DONE


def predict(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy predict`."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ConfigError(f"--batch-size = {args.batch_size}: allowed is a whole number from 1.")
    if args.figures < 0:
        raise ConfigError(f"--figures = {args.figures}: allowed is a whole number from 0.")
    join(args)
    with fast_import():
        from engine.api import inference
    from engine.observe.progress import CountProgress

    with lost_peers_reported(), CountProgress("predicting", "examples", shown=group.is_primary()) as progress:
        inference.predict(
            args.run,
            evaluation=args.evaluation,
            step=args.step,
            batch_size=args.batch_size,
            overrides=overrides,
            out=args.out,
            overwrite=args.overwrite,
            figures=args.figures,
            on_progress=progress.update,
        )
    if group.is_primary():
        print(f"wrote predictions of {progress.done} examples to {args.out}")
    return ExitStatus.DONE


def checkpoints(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy checkpoints`."""
    from engine.api import inference
    from engine.checkpoint.integrity import DamagedCheckpoints
    from engine.checkpoint.manifest import DamagedCheckpoint, shorten

    no_overrides(overrides, "checkpoints")
    if args.action == "verify":
        return _verify(args.run)
    _warn_of_missing_end(args.run)
    if args.export:
        names = inference.export(args.run, args.export, step=args.step)
        print(f"wrote {len(names)} arrays to {args.export}")
        return ExitStatus.DONE
    saved, damaged, newer = inference.SavedRun(args.run), 0, None
    infos = saved.checkpoints()
    for info in infos:
        if isinstance(info.error, DamagedCheckpoint):
            print(f"step {info.step:>8}  DAMAGED  {shorten(info.error.problems)}")
            damaged += 1
            continue
        if info.error is not None:
            print(f"step {info.step:>8}  newer    saved by a newer version of Convoy")
            newer = info.error
            continue
        results = "  ".join(f"{name} {value:.6g}" for name, value in info.results.items())
        known = not math.isnan(info.time)
        when = datetime.datetime.fromtimestamp(info.time).isoformat(" ", "seconds") if known else "time unknown"
        print(f"step {info.step:>8}  {info.bytes / 2**20:>9.1f} MiB  {when}  {results}".rstrip())
    if str(saved.code):
        print(f"code: {saved.code}")
    if damaged:
        raise DamagedCheckpoints(
            f"{saved.directory}: {damaged} of {len(infos)} checkpoints are damaged. Use another step, or copy the "
            "files of the step from a backup."
        )
    if newer is not None:
        raise newer
    return ExitStatus.DONE


def _verify(run: str) -> int:
    from engine.checkpoint.integrity import verify_all
    from engine.run.directory import RunDirectory

    directory = RunDirectory(run)
    directory.read_config_text()  # raises RunError if this is not a run
    verify_all(directory.checkpoints, print, lambda text: print(text, file=sys.stderr, flush=True))
    return ExitStatus.DONE


def goodput(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy goodput`."""
    from engine.api.saved_run import goodput as goodput_text

    no_overrides(overrides, "goodput")
    _warn_of_missing_end(args.run)
    print(goodput_text(args.run))
    return ExitStatus.DONE


def plans(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy plan --runs`."""
    from engine.planning.record_table import plans as plans_text

    if overrides or args.config is not None or args.hardware != "local" or args.compile or args.calibrate:
        raise ConfigError("--runs prints what earlier runs recorded. Remove the other arguments.")
    print(plans_text(args.runs))
    return ExitStatus.DONE


def _warn_of_missing_end(run: str) -> None:
    """Prints a sentence if the last attempt of a run was killed, so that its status is out of date."""
    from engine.checkpoint.bucket_copy import readable
    from engine.run import status
    from engine.run.directory import RunDirectory

    directory = RunDirectory(readable(run))
    with contextlib.suppress(RunError):  # the verb itself reports a run that cannot be read
        if text := status.missing_end(directory.status):
            print(f"{directory}: {text}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Prints a sentence for the user, in the primary."""
    if group.is_primary():
        print(text, file=sys.stderr, flush=True)
