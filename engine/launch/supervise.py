"""Restarts the processes of a run until it is done; `resilience/supervisor.py` decides about each restart.

To kill a process on purpose (in a test, or as an operator), first append a line with its pid to the file that the
environment variable KILLS names. An announced kill does not count as a crash loop and does not increase the wait.
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
from engine.launch.local import ProcessExit
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
    """Runs a training command again and again until the run is done or a restart is pointless.

    SIGTERM and SIGINT are forwarded to the processes, which save and stop; after that there is no restart.

    Args:
        command: a program and its arguments, such as `[sys.executable, "-m", "engine.main", "train", ...]`.
        run: the directory of the run.
        processes, devices: as for `local.run`.
        restarts: maximum number of restarts; None: no limit.
        first_wait_s: seconds before the first restart.

    Returns:
        The exit code of the last attempt; 43 after a crash loop; 42 or 130 after a signal.

    Raises:
        ConfigError: a number below 1.
    """
    os.environ.setdefault(TOKEN, uuid.uuid4().hex)  # with it, an attempt may take over the lease of an earlier attempt
    supervisor = Supervisor(_latest_checkpoint(run), max_restarts=restarts, first_wait_s=first_wait_s)
    commands = _AttemptCommands(command, run)
    kills = AnnouncedKills(Path(os.environ[KILLS]) if os.environ.get(KILLS) else None)
    with Signals() as signals:
        while True:
            exits = local.run(commands.next(), processes=processes, devices=devices, signals=signals)
            _record_death(run, exits)
            local.report(exits, prefixed=processes is not None)
            if signals.received:
                return _code_after_signal(exits[0].code, signals.received)
            failure = _failure(exits, _latest_checkpoint(run), from_outside=kills.include(exits))
            decision = supervisor.after(failure)
            if isinstance(decision, Stop):
                _report_stop(run, decision)
                return decision.code
            _report(run, _restart_text(decision, failure, exits[0], len(exits) > 1))
            signals.wait(decision.wait_s)
            if signals.received:
                return _code_after_signal(ExitStatus.RETRY, signals.received)


def _failure(exits: Sequence[ProcessExit], checkpoint: int | None, from_outside: bool) -> Failure:
    """Describes an attempt by its first failure; `checkpoint` is the newest step that is saved."""
    first = exits[0]
    signature = first.signature or ("" if first.text else kill_signature(first.code))
    step = first.step if first.step is not None else checkpoint or 0
    return Failure(first.code, signature, step, checkpoint, from_outside)


def _record_death(run: RunDirectory, exits: Sequence[ProcessExit]) -> None:
    """Adds to the goodput ledger what killed processes could not write; steps are those of the primary."""
    steps = next((ended.step for ended in exits if ended.index == 0), None)
    record_death(run.goodput, [ended.pid for ended in exits], steps)


def _latest_checkpoint(run: RunDirectory) -> int | None:
    return CheckpointStore(run.checkpoints).latest()


def _code_after_signal(code: int, received: Sequence[int]) -> int:
    """Returns the exit code after a signal: the code of the process if that is final, else the code of the signal."""
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
    """Prints a sentence and adds it to the log of the run, which no process of the run has open now."""
    print(f"convoy supervise: {text}", file=sys.stderr, flush=True)
    if run.path.is_dir():
        with contextlib.suppress(RunError), RunLog(run.log):
            logger.info("convoy supervise: %s", text)


def _report_stop(run: RunDirectory, stop: Stop) -> None:
    """Prints why there is no restart. A crash loop is also written to the status of the run."""
    if not stop.reason:
        return
    _report(run, stop.reason)
    if stop.code == ExitStatus.STOP and run.status.exists():
        last = status.read(run.status)
        status.write(run.status, dataclasses.replace(last, state="failed", reason=stop.reason, exit_code=stop.code))


class _AttemptCommands:
    """The command of each attempt. `--fresh` is removed once an earlier run was moved aside, or if there is none."""

    def __init__(self, words: Sequence[str], run: RunDirectory):
        self._words, self._run = list(words), run
        self._before = run.moved_aside() if run.is_used() else None

    def next(self) -> list[str]:
        """Returns the command of the next attempt."""
        if self._before is None or self._run.moved_aside() != self._before:
            self._words = [word for word in self._words if word != FRESH]
        return self._words


class AnnouncedKills:
    """The kills that were announced since the last check. Each line counts once, since the system reuses pids.

    Args:
        file: the file to which pids are appended; None if no kills are announced.
    """

    def __init__(self, file: Path | None):
        self._file = file
        self._seen = len(self._lines())

    def include(self, exits: Sequence[ProcessExit]) -> bool:
        """Whether a kill of a process of this attempt was announced since the last call."""
        new = self._lines()[self._seen :]
        self._seen += len(new)
        return any(str(ended.pid) in new for ended in exits)

    def _lines(self) -> list[str]:
        return self._file.read_text().split() if self._file is not None and self._file.exists() else []
