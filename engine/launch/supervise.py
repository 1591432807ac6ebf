"""Starts a training command again after each failure; `launch/supervisor.py` decides whether and when.

A *kill* can be *announced*: before a test or an operator kills a process, they append its pid to the file whose path is
in the environment variable `CONVOY_KILLED_FROM_OUTSIDE`. Announced kills do not count towards a crash loop and do not
lengthen the wait before a restart.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.base.errors import RunError
from engine.checkpoint.store import CheckpointStore
from engine.cluster import output
from engine.cluster.exit_status import ExitStatus, describe
from engine.launch import local
from engine.launch.local import ProcessExit
from engine.launch.signals import Signals
from engine.launch.supervisor import Exit, Failure, Restart, Supervisor, kill_signature
from engine.launch.timeouts import FIRST_RESTART_S
from engine.run import status
from engine.run.directory import RunDirectory
from engine.run.goodput import record_death
from engine.run.log import RunLog, logger
from engine.run.owner import TOKEN

KILLS = "CONVOY_KILLED_FROM_OUTSIDE"  # environment variable: path of the file of announced kills
FRESH = "--fresh"

type RunAttempt = Callable[[Sequence[str], Signals], list[ProcessExit]]


def supervise(
    command: Sequence[str],
    run: RunDirectory,
    *,
    processes: int | None = None,
    devices: int | None = None,
    restarts: int | None = None,
    first_wait_s: float = FIRST_RESTART_S,
    run_attempt: RunAttempt | None = None,
) -> int:
    """Runs a training command, and again after each failure, until the run is done or a restart is pointless.

    SIGTERM and SIGINT are forwarded to the processes, which save and stop. After such a signal there is no restart.

    Args:
        command: a program and its arguments, such as `[sys.executable, "-m", "engine.cli.main", "train", ...]`.
        run: the directory of the run.
        processes, devices: as for `local.run`.
        restarts: maximum number of restarts; None for no limit.
        first_wait_s: seconds before the first restart. The wait doubles while restarts make no progress.
        run_attempt: runs the command once, instead of `local.run`, and returns how its processes ended, failures first.

    Returns:
        The exit code of the last attempt; 43 after a crash loop. After a signal: 0, 1 or 43 if the last attempt ended
        with it, else 130 (SIGINT) or 42 (SIGTERM).

    Raises:
        ConfigError: `processes` or `devices` is below 1.
    """
    os.environ.setdefault(TOKEN, uuid.uuid4().hex)  # lets an attempt take over the lease of an earlier attempt
    supervisor = Supervisor(_latest_checkpoint(run), max_restarts=restarts, first_wait_s=first_wait_s)
    commands = _AttemptCommands(command, run)
    kills = AnnouncedKills(Path(os.environ[KILLS]) if os.environ.get(KILLS) else None)
    if run_attempt is None:
        run_attempt = functools.partial(_run_here, processes, devices)
    with Signals() as signals:
        while True:
            exits = run_attempt(commands.next(), signals)
            _record_death(run, exits)
            local.report(exits, prefixed=processes is not None)
            if signals.received:
                return _code_after_signal(exits[0].code, signals.received)
            failure = _failure(exits, _latest_checkpoint(run), from_outside=kills.include(exits))
            decision = supervisor.after(failure)
            if isinstance(decision, Exit):
                _report_stop(run, decision, exits[0])
                return decision.code
            _report(run, _restart_text(decision, failure, exits[0], len(exits) > 1))
            signals.wait(decision.wait_s)
            if signals.received:
                return _code_after_signal(ExitStatus.RETRY, signals.received)


def _run_here(
    processes: int | None, devices: int | None, command: Sequence[str], signals: Signals
) -> list[ProcessExit]:
    return local.run(command, processes=processes, devices=devices, signals=signals)


def _failure(exits: Sequence[ProcessExit], checkpoint: int | None, from_outside: bool) -> Failure:
    """Returns the failure of an attempt, which is that of the process that failed first.

    `checkpoint` is the newest durable step after the attempt.
    """
    first = exits[0]
    # A verdict without a signature has a cause outside of the process: no signature replaces it.
    signature = first.signature or ("" if first.text else kill_signature(first.code))
    step = first.step if first.step is not None else checkpoint or 0
    return Failure(first.code, signature, step, checkpoint, from_outside, first.out_of_memory)


def _record_death(run: RunDirectory, exits: Sequence[ProcessExit]) -> None:
    """Adds the time that a killed primary did not record to the goodput ledger."""
    step = next((ended.step for ended in exits if ended.index == 0), None)
    record_death(run.goodput, [ended.pid for ended in exits], step)


def _latest_checkpoint(run: RunDirectory) -> int | None:
    return CheckpointStore(run.checkpoints).latest()


def _code_after_signal(code: int, received: Sequence[int]) -> int:
    """Returns the exit code after a signal: `code` if it rules out a restart, else the code for the signal."""
    if code in (ExitStatus.DONE, ExitStatus.USER_ERROR, ExitStatus.STOP):
        return code
    return ExitStatus.INTERRUPTED if signal.SIGINT in received else ExitStatus.RETRY


def _restart_text(restart: Restart, failure: Failure, first: ProcessExit, several: bool) -> str:
    process = f" of process {first.index}" if several else ""
    explanation = failure.signature or describe(failure.code)
    if failure.code == 128 + signal.SIGKILL and not failure.from_outside:
        explanation = first.explanation
    if first.text:
        explanation = first.text.splitlines()[-1]
    outside = ", from outside" if failure.from_outside else ""
    start = "the beginning" if failure.checkpoint is None else f"step {failure.checkpoint}"
    return (
        f"ended at step {failure.step} with {failure.code}{process}{outside} ({explanation}). "
        f"Restart {restart.number} in {restart.wait_s:g} s, from {start}."
    )


def _report(run: RunDirectory, text: str) -> None:
    """Prints a sentence and appends it to the log of the run. Called when all processes of the attempt have ended."""
    output.show(f"convoy supervise: {text}")
    if run.path.is_dir():
        with contextlib.suppress(RunError), RunLog(run.log):
            logger.info("convoy supervise: %s", text)


def _report_stop(run: RunDirectory, stop: Exit, last: ProcessExit) -> None:
    """Prints the reason of a stop, unless the attempt has done so; after a crash loop, sets the status to failed."""
    if stop.reason:
        _report(run, stop.reason)
    elif last.code and not last.text:
        _report(run, f"ended with {last.code}: {last.explanation}.")
    if stop.code == ExitStatus.STOP and run.status.exists():
        found = status.read(run.status)
        status.write(run.status, dataclasses.replace(found, state="failed", reason=stop.reason, exit_code=stop.code))


class _AttemptCommands:
    """The command of each attempt, without `--fresh` once it has had its effect, so that a restart resumes the run.

    The effect is that the earlier run was moved aside, or that an attempt took the place of a start that trained no
    step. Without an earlier run, `--fresh` is removed at once.
    """

    def __init__(self, words: Sequence[str], run: RunDirectory):
        self._words, self._run = list(words), run
        self._moved_before = run.moved_aside() if run.is_used() else None  # None: there is no earlier run
        self._replaces, self._before = run.is_untrained(), self._attempt()

    def next(self) -> list[str]:
        """Returns the command of the next attempt."""
        if self._moved_before is None or self._run.moved_aside() != self._moved_before or self._has_replaced():
            self._words = [word for word in self._words if word != FRESH]
        return self._words

    def _has_replaced(self) -> bool:
        return self._replaces and self._attempt() not in (None, self._before)

    def _attempt(self) -> tuple[str, int, str] | None:
        """What tells the newest attempt from others; None if there is none, or its status cannot be read."""
        try:
            found = status.read(self._run.status) if self._run.status.exists() else None
        except RunError:
            return None
        return (found.host, found.pid, found.started) if found else None


class AnnouncedKills:
    """Reads the announced kills. Each line is used for one attempt only, because the system reuses pids.

    Args:
        file: the file to which pids are appended; None if no kills are announced.
    """

    def __init__(self, file: Path | None):
        self._file = file
        self._read = len(self._pids())  # number of pids that were read

    def include(self, exits: Sequence[ProcessExit]) -> bool:
        """Returns whether the kill of one of these processes was announced since the last call."""
        new = self._pids()[self._read :]
        self._read += len(new)
        return any(str(ended.pid) in new for ended in exits)

    def _pids(self) -> list[str]:
        return self._file.read_text().split() if self._file is not None and self._file.exists() else []
