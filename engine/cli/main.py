"""The command line: runs one verb, and turns errors into messages and exit codes.

`verbs.py` lists the verbs. They import heavy libraries only when they run, so that `convoy --help` answers at once.
"""

import sys

if __name__ == "__main__":
    from engine.cli.entry import end_on_interrupt

    end_on_interrupt()  # before the imports below

from engine.cli.huge_pages import computes, restart_with_huge_pages

if __name__ == "__main__" and computes(sys.argv[1:]):
    restart_with_huge_pages()  # before the imports below, which the restarted program would repeat

from engine.base.host import collect_rarely, oom_kills

if __name__ == "__main__":
    collect_rarely()

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from typing import NoReturn

from engine.base.errors import ConfigError, EngineEnd
from engine.cli.arguments import make_parser, parse, split_overrides
from engine.cli.verbs import VERBS, Verb
from engine.cluster import group, output, processes, shutdown, signal_thread, verdict
from engine.cluster.exit_status import ExitStatus, status_of
from engine.cluster.kv_store import CoordinationError
from engine.cluster.peer_failure import LostPeer
from engine.storage import background
from engine.storage.mounts import unmount


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. Every error is printed as a sentence (`cluster/tracebacks.py`).

    The code is 0 only if the verb has returned, whatever the user's code raises or passes to `sys.exit`. If the process
    fails alone while its peers wait for it, it exits immediately instead of returning.
    """
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # by `entry.py`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _enter_directory()
        code = _run(list(sys.argv[1:] if argv is None else argv))
        processes.leave()
    except BaseException as error:  # also SystemExit of the user's code
        if isinstance(error, EngineEnd) and error.everywhere:
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
    """Parses the words and runs the verb; the words after `--` are a command to launch.

    Raises:
        OutputError: a result that is only printed, such as a table or help, was not written.
    """
    end = words.index("--") if "--" in words else len(words)
    rest, overrides = split_overrides(words[:end])
    args = _parse(rest, words[end:])
    prints_result = args is None or _prints_result(args)
    if not prints_result:
        output.drop_unread_results()
    code = ExitStatus.DONE if args is None else VERBS[args.verb].module.run(args, overrides)
    if prints_result and code == ExitStatus.DONE:
        output.check()
    return code


def _prints_result(args: argparse.Namespace) -> bool:
    """Whether standard output has the result of this command, also where launched processes print it."""
    here = getattr(args, "prints_result", VERBS[args.verb].prints_result)
    launched = args.command[:1] if getattr(args, "command", None) else []
    return here or any(VERBS[name].prints_result for name in launched if name in VERBS)


def _parse(words: list[str], after: list[str]) -> argparse.Namespace | None:
    """Returns the parsed arguments; None after help was printed, because it was asked for or there is no verb."""
    try:
        args = parse(words, after)
    except SystemExit:  # argparse raises it after --help
        return None
    if args.verb is None:
        make_parser([])[0].print_help()
        return None
    return args


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


def _continue_in_child(words: list[str]) -> None:
    """Lets a parent wait for this process if it has no launcher and the verb runs the user's code.

    That code may end the process with any exit code, or crash it; the parent tells that and corrects the status.
    """
    verb = VERBS.get(words[0]) if words else None
    prints_help = verb is not None and verb.add_help and not {"-h", "--help"}.isdisjoint(words)
    if verb is not None and verb.runs_user_code and not prints_help and not verdict.is_launched():
        if not verb.prints_result:
            output.drop_unread_results()
        from engine.cluster import parent  # loads the C library

        verdict.share()
        kills = oom_kills()
        parent.continue_in_child(lambda pid, code: _report_end(pid, code, kills, verb), verdict.pass_on)


def _report_end(pid: int, code: int, oom_kills_before: int, verb: Verb) -> int:
    """Tells how a child has ended, unless it has done so itself; returns the exit code of this process."""
    begun = bool(verdict.shared_status()[0])
    if code == ExitStatus.INTERRUPTED and not begun:
        return code  # Ctrl-C in its first moments (`entry.py`): there is nothing to tell
    if not verdict.is_intended(code):
        from engine.launch.postmortem import report_unexplained

        code = report_unexplained(pid, code, code == ExitStatus.SIGKILL and oom_kills() > oom_kills_before)
    elif verb.prints_result and code == ExitStatus.DONE:
        try:
            output.check()  # the child has only written its result to this process
        except output.OutputError as error:
            verdict.report(error)
            code = status_of(error)
    output.drain()  # what the reader then still has not read counts as missing
    if texts := output.unreported():
        from engine.launch.postmortem import note_shared_output

        note_shared_output(texts)
    return code


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """The command `convoy`: may restart once with huge pages (`cli/huge_pages.py`), runs a verb and exits.

    If a thread is blocked on storage, the process exits without Python's cleanup, which would wait for that thread.
    """
    from engine.cli.entry import end_on_interrupt

    words = list(sys.argv[1:] if argv is None else argv)
    output.guard()
    if computes(words):
        restart_with_huge_pages()
    end_on_interrupt()  # for a program of the user that calls this function: the restart has blocked Ctrl-C
    collect_rarely()
    _continue_in_child(words)
    verdict.begin()
    _treat_hangup_as_sigterm()
    code = main(words)
    hanging = background.hanging()  # an unmount would wait for the thread too
    unread = not output.finish()  # Python's cleanup would wait for the reader
    if not hanging:
        unmount()
    if code == ExitStatus.DONE:
        verdict.done()
    if hanging or unread:
        shutdown.exit_now(code)
    shutdown.exit_soon(code)
    verdict.intend(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
