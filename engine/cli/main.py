"""The command line: runs one verb, and turns errors into messages and exit codes.

Heavy libraries are imported only by the verbs that need them, so that `convoy --help` answers at once.
"""

from engine.cli.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()  # before the imports below, which the restarted program would repeat

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from engine.base.errors import ConfigError, ConvoyError
from engine.cli import commands, data
from engine.cli.arguments import make_parser, parse, split_overrides
from engine.cluster import group, output, processes, shutdown, signal_thread, verdict
from engine.cluster.exit_status import ExitStatus, status_of
from engine.cluster.kv_store import CoordinationError
from engine.cluster.peer_failure import LostPeer, lost_peers_reported
from engine.storage import background
from engine.storage.mounts import local_text, unmount

if TYPE_CHECKING:
    from engine.config import Config
    from engine.run.directory import RunDirectory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. Every error is printed as a sentence (`cluster/tracebacks.py`).

    The code is 0 only if the verb has returned, whatever the user's code raises or passes to `sys.exit`. If the process
    fails alone while its peers wait for it, it exits immediately instead of returning.
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
        elif not isinstance(error, KeyboardInterrupt) or verdict.is_launched() or background.hanging():
            verdict.report(error)
        code = status_of(error)
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
    commands.join(args)
    with commands.fast_import():
        from engine.api import train as entry
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


def _load(reference: str, overrides: Sequence[str]) -> "Config":
    """Loads the config of a file, a module or a run directory, which may be in a bucket."""
    from engine.config import load

    return load(local_text(reference), overrides)


def _doctor(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.launch import doctor

    commands.no_overrides(overrides, "doctor")
    detection = commands.detection(args)
    for line in doctor.before_joining(detection):
        print(line, flush=True)
    processes.initialize(detection.process, timeout_s=args.timeout)
    for line in doctor.after_joining():
        print(line, flush=True)
    return ExitStatus.DONE


def _launch(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.cli import launch
    from engine.launch import local

    if args.where != "local":
        _check_no_overrides_before_command(overrides)
        if args.where == "slurm" and args.container_image is None:
            _check_command(args.command)
        return launch.run(args)
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
    return [sys.executable, "-m", "engine.cli.main", *args.command]


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
    from engine.api import train as entry

    wanted = {"devices": args.devices, "collectives": not args.no_collectives, "hardware": args.hardware}
    for text in entry.explain_parts(config, **wanted):
        print(text, flush=True)
    return ExitStatus.DONE


def _plan(args: argparse.Namespace, overrides: list[str]) -> int:
    if args.runs is not None:
        return commands.plans(args, overrides)
    if args.config is None:
        raise ConfigError("convoy plan: no config. Add --config=CONFIG, or --runs DIR for the errors of earlier plans.")
    config = _load(args.config, overrides)
    from engine.planning import plan

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    for text in plan.plan_parts(
        config, args.hardware, compiles=args.compile, calibrates=args.calibrate, on_progress=progress
    ):
        print(text, flush=True)
    return ExitStatus.DONE


def _compile(args: argparse.Namespace, overrides: list[str]) -> int:
    config = _load(args.config, overrides)
    if args.hardware is not None and args.out is None:
        raise ConfigError(
            f"--hardware={args.hardware}: where are the programs to be written? Add --out=DIR, a folder that the job "
            "will read, and train with --config.cache.programs=DIR."
        )
    commands.join(args)
    from engine.api.compile import precompile_for

    with lost_peers_reported():
        for line in precompile_for(config, args.hardware, args.out, commands.say):
            if group.is_primary():
                print(line, flush=True)
    return ExitStatus.DONE


_VERBS = {
    "doctor": _doctor,
    "train": _train,
    "evaluate": commands.evaluate,
    "predict": commands.predict,
    "config": _config,
    "explain": _explain,
    "plan": _plan,
    "compile": _compile,
    "checkpoints": commands.checkpoints,
    "goodput": commands.goodput,
    "data": data.data,
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


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """The command `convoy`: may restart once with huge pages (`cli/huge_pages.py`), runs a verb and exits.

    If a thread is blocked on storage, the process exits without Python's cleanup, which would wait for that thread.
    """
    output.guard()
    restart_with_huge_pages()
    verdict.begin()
    _treat_hangup_as_sigterm()
    code = main(argv)
    hanging = background.hanging()  # an unmount would wait for the thread too
    if not hanging:
        unmount()
    if code == ExitStatus.DONE:
        verdict.done()
    if hanging:
        shutdown.exit_now(code)
    shutdown.exit_soon(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
