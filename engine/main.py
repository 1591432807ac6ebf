"""The command line: runs one verb, and turns errors into messages and exit codes.

Heavy libraries are imported only by the verbs that need them, so that `convoy --help` answers at once.
"""

from engine.tuning.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()  # before the imports below, which the restarted program would repeat

import argparse
import contextlib
import datetime
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from engine.arguments import make_parser, parse, split_overrides
from engine.cluster import cluster_detection, group, output, processes, shutdown, signal_thread, verdict
from engine.cluster.exit_status import ExitStatus, status_of
from engine.cluster.kv_store import CoordinationError
from engine.cluster.peer_failure import LostPeer, lost_peers_reported
from engine.config.errors import ConfigError, ConvoyError, RunError
from engine.mounts import local_text, unmount
from engine.run import storage

if TYPE_CHECKING:
    from engine.config import Config
    from engine.run.directory import RunDirectory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. Every error is printed as a sentence (`cluster/tracebacks.py`).

    The code is 0 only if the verb has returned, whatever the user's code raises or passes to `sys.exit`. In two cases
    the process exits immediately instead of returning: if it fails alone while its peers wait for it, and if a thread
    is blocked on storage, since Python's normal exit would wait for that thread.
    """
    try:
        _enter_directory()
        code = _run(list(sys.argv[1:] if argv is None else argv))
        processes.leave()
    except BaseException as error:  # also SystemExit of the user's code
        if isinstance(error, ConvoyError) and error.everywhere:
            verdict.report(error)
            _leave_after_failure()
        elif group.count() > 1:
            shutdown.end(error)
        elif not isinstance(error, KeyboardInterrupt) or verdict.is_launched() or storage.hanging():
            verdict.report(error)
        code = status_of(error)
    if storage.hanging():
        shutdown.exit_now(code)
    return code


def _enter_directory() -> None:
    """Makes configs and models in the user's current directory importable. Raises ConfigError if it was removed."""
    try:
        os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))  # `bazel run` starts programs in another directory
        current = os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the current directory cannot be used ({error.strerror}). Go to another directory, then start the same "
            "command again."
        ) from error
    if "" not in sys.path and current not in sys.path:
        sys.path.insert(0, current)


def _leave_after_failure() -> None:
    """Leaves the process group. Every process has failed, so a lost peer, even process 0, is no longer an error."""
    with contextlib.suppress(LostPeer, CoordinationError):
        processes.leave()


def _run(words: list[str]) -> int:
    """Parses the words and runs the verb; the words after `--` are a command to launch."""
    end = words.index("--") if "--" in words else len(words)
    rest, overrides = split_overrides(words[:end])
    try:
        args = parse(rest, words[end:])
    except SystemExit:  # of argparse, after --help
        return ExitStatus.DONE
    if args.verb is None:
        make_parser()[0].print_help()
        return ExitStatus.DONE
    code = _VERBS[args.verb](args, overrides)
    if args.verb not in _TRAINING:
        output.check()
    return code


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    config = _load(args.config, overrides)
    _join(args)
    with _fast_import():
        from engine import entry
    from engine.run.goodput import process_start

    with lost_peers_reported():
        entry.train(
            config,
            workdir=args.workdir,
            fresh=args.fresh,
            fast_dev_run=args.fast_dev_run,
            accept_schedule_change=args.accept_schedule_change,
            accept_data_change=args.accept_data_change,
            began=process_start(),
        )
    return ExitStatus.DONE


@contextlib.contextmanager
def _fast_import() -> Iterator[None]:
    """Pauses garbage collection, which takes 15 % of the time to import the engine; imported objects are permanent."""
    if "engine.entry" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # later collections skip the imported objects
        gc.enable()


def _evaluate(args: argparse.Namespace, overrides: list[str]) -> int:
    _join(args)
    with _fast_import():
        from engine import inference

    with lost_peers_reported():
        results = inference.evaluate(args.run, step=args.step, overrides=overrides)
    if group.is_primary():
        for name, value in results.items():
            print(f"{name}: {value:.6g}")
    return ExitStatus.DONE


def _predict(args: argparse.Namespace, overrides: list[str]) -> int:
    if args.batch_size is not None and args.batch_size < 1:
        raise ConfigError(f"--batch-size = {args.batch_size}: allowed is a whole number from 1.")
    _join(args)
    with _fast_import():
        from engine import inference
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
            on_progress=progress.update,
        )
    if group.is_primary():
        print(f"wrote predictions of {progress.done} examples to {args.out}")
    return ExitStatus.DONE


def _load(reference: str, overrides: Sequence[str]) -> "Config":
    """Loads the config of a file, a module or a run directory, which may be in a bucket."""
    from engine.config import load

    return load(local_text(reference), overrides)


def _join(args: argparse.Namespace) -> None:
    """Joins the other processes, if any, and prints the index of this process."""
    detection = _detection(args)
    if detection.process.count > 1 or detection.process.detected_by_jax or detection.notes:
        print(detection, *(f"warning: {note}" for note in detection.notes), sep="\n", file=sys.stderr, flush=True)
    processes.initialize(detection.process)


def _detection(args: argparse.Namespace) -> cluster_detection.Detection:
    return cluster_detection.detect({name: getattr(args, name) for name in cluster_detection.FLAGS}, os.environ)


def _doctor(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine import doctor

    _no_overrides(overrides, "doctor")
    detection = _detection(args)
    for line in doctor.before_joining(detection):
        print(line, flush=True)
    processes.initialize(detection.process, timeout_s=args.timeout)
    for line in doctor.after_joining():
        print(line, flush=True)
    return ExitStatus.DONE


def _launch(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.launch import local, verbs

    if args.where != "local":
        _check_no_overrides_before_command(overrides)
        if args.where == "slurm" and args.container_image is None:
            _check_command(args.command)
        return verbs.run(args)
    if args.restarts:
        return _supervise(args, overrides)
    words = _command_words(args, overrides, f"convoy launch {args.where}", "a verb")
    return local.launch(words, processes=args.processes, devices=args.devices_per_process)


def _supervise(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.launch.supervise import supervise

    words = _command_words(args, overrides, f"convoy {args.verb}", "train")
    return supervise(
        words,
        _run_directory(args.command),
        processes=args.processes,
        devices=args.devices_per_process,
        restarts=args.restarts,
    )


def _command_words(args: argparse.Namespace, overrides: list[str], verb: str, expected: str) -> list[str]:
    """Returns the words that start the command after `--`; `expected` is "train", or "a verb" for any verb."""
    _check_no_overrides_before_command(overrides)
    found = args.command[0] if args.command else "nothing"
    fits = found == "train" if expected == "train" else found not in ("nothing", "launch", "supervise")
    if not fits:
        raise ConfigError(f"{verb}: found {found} after --. Write {expected}: {verb} ... -- train ...")
    return [sys.executable, "-m", "engine.main", *args.command]


def _check_command(command: list[str]) -> None:
    """Raises errors in a command now instead of after hours in a queue."""
    words, overrides = split_overrides(command)
    if (args := parse(words)).verb == "train":
        _load(args.config, overrides)


def _check_no_overrides_before_command(overrides: list[str]) -> None:
    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: belongs to the command. Write it after --.")


def _run_directory(command: list[str]) -> "RunDirectory":
    """Returns the run directory of a command `train ...`."""
    from engine.run.directory import RunDirectory, default_workdir

    words, overrides = split_overrides(command)
    args = parse(words)
    if args.fast_dev_run:
        raise ConfigError("--fast-dev-run: cannot be combined with restarts. Remove it, or run convoy train alone.")
    config = _load(args.config, overrides)
    return RunDirectory(args.workdir or default_workdir(config.name, config.task.target))


def _config(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.config import help_text, to_text

    if args.help or args.config is None:
        print(help_text())
        return ExitStatus.DONE
    print(to_text(_load(args.config, overrides)), end="")
    return ExitStatus.DONE


def _explain(args: argparse.Namespace, overrides: list[str]) -> int:
    config = _load(args.config, overrides)
    from engine import entry

    for text in entry.explain_parts(config, devices=args.devices, collectives=not args.no_collectives):
        print(text, flush=True)
    return ExitStatus.DONE


def _checkpoints(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine import inference

    _no_overrides(overrides, "checkpoints")
    if args.action == "verify":
        return _verify(args.run)
    _warn_of_missing_end(args.run)
    if args.export:
        names = inference.export(args.run, args.export, step=args.step)
        print(f"wrote {len(names)} arrays to {args.export}")
        return ExitStatus.DONE
    saved = inference.SavedRun(args.run)
    for info in saved.checkpoints():
        results = "  ".join(f"{name} {value:.6g}" for name, value in info.results.items())
        when = datetime.datetime.fromtimestamp(info.time).isoformat(" ", "seconds")
        print(f"step {info.step:>8}  {info.bytes / 2**20:>9.1f} MiB  {when}  {results}".rstrip())
    if str(saved.code):
        print(f"code: {saved.code}")
    return ExitStatus.DONE


def _verify(run: str) -> int:
    from engine.checkpoint.integrity import verify_all
    from engine.run.directory import RunDirectory

    directory = RunDirectory(run)
    directory.read_config_text()  # raises RunError if this is not a run
    verify_all(directory.checkpoints, print, lambda text: print(text, file=sys.stderr, flush=True))
    return ExitStatus.DONE


def _warn_of_missing_end(run: str) -> None:
    """Prints a sentence if the last attempt of a run was killed, so that its status is out of date."""
    from engine.run import status
    from engine.run.directory import RunDirectory

    directory = RunDirectory(run)
    with contextlib.suppress(RunError):  # the verb itself reports a run that cannot be read
        if text := status.missing_end(directory.status):
            print(f"{directory}: {text}", file=sys.stderr, flush=True)


def _goodput(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.saved_run import goodput

    _no_overrides(overrides, "goodput")
    _warn_of_missing_end(args.run)
    print(goodput(args.run))
    return ExitStatus.DONE


def _data(args: argparse.Namespace, overrides: list[str]) -> int:
    config = _load(args.config, overrides)
    from engine.data.array_record import write_array_record
    from engine.data.source import build_source

    count = write_array_record(build_source(config.data, "data"), args.out)
    print(
        f"wrote {count} examples to {args.out}. Read them with data.target=engine.data.array_record.ArrayRecordSource"
    )
    return ExitStatus.DONE


def _no_overrides(overrides: list[str], verb: str) -> None:
    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: convoy {verb} reads the run's own config and takes no overrides.")


_VERBS = {
    "doctor": _doctor,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "config": _config,
    "explain": _explain,
    "checkpoints": _checkpoints,
    "goodput": _goodput,
    "data": _data,
    "launch": _launch,
    "supervise": _supervise,
}
_TRAINING = ("train", "launch", "supervise")  # verbs whose result is on disk; the output of the others is the result


def _treat_hangup_as_sigterm() -> None:
    """Makes SIGHUP (a terminal that closes) stop a run like SIGTERM, with a save. `nohup` ignores SIGHUP, which stays.

    A closing terminal may send it more than once, so only the first counts: a second SIGTERM would end the save.
    """

    received = threading.Event()

    def stop(number: int) -> None:
        if not received.is_set():
            received.set()
            os.kill(os.getpid(), signal.SIGTERM)

    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, frame: None)
        signal_thread.watch((signal.SIGHUP,), stop)  # in a thread: also while the main thread compiles


def run() -> NoReturn:
    """The command `convoy`: may restart once with huge pages (`tuning/huge_pages.py`), runs a verb and exits."""
    output.guard()
    restart_with_huge_pages()
    verdict.begin()
    _treat_hangup_as_sigterm()
    code = main()
    unmount()
    if code == ExitStatus.DONE:
        verdict.done()
    shutdown.exit_soon(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
