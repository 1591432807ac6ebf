"""Restarts the processes of a run until it is done; `resilience/supervisor.py` decides about each restart.

Whoever kills a process on purpose (a test, an operator) first appends its pid, on a line, to the file that the variable
KILLS names. Such an announced kill counts for no crash loop and lengthens no wait.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from engine.checkpoint.store import CheckpointStore
from engine.cluster.exit_status import ExitStatus, describe
from engine.config.errors import RunError
from engine.launch import local
from engine.launch.local import End
from engine.launch.signals import Signals
from engine.resilience.supervisor import Failure, Restart, Stop, Supervisor, kill_signature
from engine.resilience.timeouts import FIRST_RESTART_S
from engine.run import status
from engine.run.directory import RunDirectory
from engine.run.goodput import record_death
from engine.run.log import RunLog, logger
from engine.run.owner import TOKEN

KILLS = "CONVOY_KILLED_FROM_OUTSIDE"
FRESH = "--fresh"


def supervise(
    command: Sequence[str],
    run: RunDirectory,
    *,
    processes: int | None = None,
    devices: int | None = None,
    restarts: int | None = None,
    first_wait_s: float = FIRST_RESTART_S,
) -> int:
    """Runs a command that trains until the run is done, or until a restart makes no sense.

    SIGTERM and SIGINT are passed on to the processes, which save; after that nothing is restarted.

    Args:
        command: a program and its arguments, as `[sys.executable, "-m", "engine.main", "train", ...]`.
        run: its directory.
        processes, devices: as for `local.run`.
        restarts: the most restarts; None for no limit.
        first_wait_s: seconds before the first restart.

    Returns:
        The exit code of the last attempt; 43 after a crash loop; 42 or 130 when asked to stop.

    Raises:
        ConfigError: a number below 1.
    """
    os.environ.setdefault(TOKEN, uuid.uuid4().hex)  # an attempt may take over the lease of the one before
    supervisor = Supervisor(_newest(run), max_restarts=restarts, first_wait_s=first_wait_s)
    words, kills = _Words(command, run), AnnouncedKills(Path(os.environ[KILLS]) if os.environ.get(KILLS) else None)
    with Signals() as signals:
        while True:
            ends = local.run(words.next(), processes=processes, devices=devices, signals=signals)
            _record_death(run, ends)
            local.report(ends, numbered=processes is not None)
            if signals.received:
                return _asked_to_stop(ends[0].code, signals.received)
            failure = _failure(ends, _newest(run), from_outside=kills.include(ends))
            decision = supervisor.after(failure)
            if isinstance(decision, Stop):
                _report_stop(run, decision)
                return decision.code
            _say(run, _restart_text(decision, failure, ends[0], len(ends) > 1))
            signals.wait(decision.wait_s)
            if signals.received:
                return _asked_to_stop(ExitStatus.RETRY, signals.received)


def _failure(ends: Sequence[End], newest: int | None, from_outside: bool) -> Failure:
    """Describes an attempt by its first failure."""
    first = ends[0]
    signature = first.signature or ("" if first.text else kill_signature(first.code))
    step = first.step if first.step is not None else newest or 0
    return Failure(first.code, signature, step, newest, from_outside)


def _record_death(run: RunDirectory, ends: Sequence[End]) -> None:
    """Adds to the goodput ledger what killed processes could not; the steps of the primary count."""
    record_death(run.goodput, [end.pid for end in ends], next((end.step for end in ends if end.index == 0), None))


def _newest(run: RunDirectory) -> int | None:
    return CheckpointStore(run.checkpoints).latest()


def _asked_to_stop(code: int, received: Sequence[int]) -> int:
    """Returns the exit code after a signal: the process's own final code, else that of the signal."""
    if code in (ExitStatus.DONE, ExitStatus.USER_ERROR, ExitStatus.STOP):
        return code
    return ExitStatus.INTERRUPTED if signal.SIGINT in received else ExitStatus.RETRY


def _restart_text(restart: Restart, failure: Failure, first: End, numbered: bool) -> str:
    which = f" of process {first.index}" if numbered else ""
    why = failure.signature or describe(failure.code)
    if failure.code == 128 + signal.SIGKILL and not failure.from_outside:
        why = first.why
    if first.text:
        why = first.text.splitlines()[-1]
    outside = ", from outside" if failure.from_outside else ""
    start = "the beginning" if failure.checkpoint is None else f"step {failure.checkpoint}"
    return (
        f"ended at step {failure.step} with {failure.code}{which}{outside} ({why}). "
        f"Restart {restart.number} in {restart.wait_s:g} s, from {start}."
    )


def _say(run: RunDirectory, text: str) -> None:
    """Prints a sentence and adds it to the run's log, to which no process of the run writes now."""
    print(f"convoy supervise: {text}", file=sys.stderr, flush=True)
    if run.path.is_dir():
        with contextlib.suppress(RunError), RunLog(run.log):
            logger.info("convoy supervise: %s", text)


def _report_stop(run: RunDirectory, stop: Stop) -> None:
    """Prints why nothing is restarted. A crash loop is also written to the run's status."""
    if not stop.reason:
        return
    _say(run, stop.reason)
    if stop.code == ExitStatus.STOP and run.status.exists():
        last = status.read(run.status)
        status.write(run.status, dataclasses.replace(last, state="failed", reason=stop.reason, exit_code=stop.code))


class _Words:
    """The command line of each attempt: `--fresh` moves an earlier run aside once, not at each restart."""

    def __init__(self, words: Sequence[str], run: RunDirectory):
        self._words, self._run = list(words), run
        self._before = run.moved_aside() if run.is_used() else None

    def next(self) -> list[str]:
        """Returns the command line of the next attempt."""
        if self._before is None or self._run.moved_aside() != self._before:
            self._words = [word for word in self._words if word != FRESH]
        return self._words


class AnnouncedKills:
    """The kills that were announced since the last check. A pid counts once, since the system reuses it.

    Args:
        file: to which pids are appended; None: nobody announces any.
    """

    def __init__(self, file: Path | None):
        self._file = file
        self._seen = len(self._lines())

    def include(self, ends: Sequence[End]) -> bool:
        """Whether one of the new kills was of a process of this attempt."""
        new = self._lines()[self._seen :]
        self._seen += len(new)
        return any(str(end.pid) in new for end in ends)

    def _lines(self) -> list[str]:
        return self._file.read_text().split() if self._file is not None and self._file.exists() else []
