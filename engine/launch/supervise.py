"""One run to its end, however many attempts that takes: its processes are started again when they end before it does.

Owns: what is found out about an attempt that ended, the line that tells of it, the waits, the run's token. Does not
own: the decisions (`resilience/supervisor.py`), the processes of an attempt (`local.py`), what was lost
(`run/goodput.py`).

Terms. *Announced kill*: whoever kills a process for reasons of their own (a test, an operator) first adds its pid, on a
line, to the file that the variable KILLS names. Such a kill counts for no crash loop and lengthens no wait.
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
from engine.cluster import exit_codes
from engine.config.errors import RunError
from engine.launch import local
from engine.launch.local import End
from engine.launch.signals import Signals
from engine.resilience.supervisor import FIRST_WAIT_S, Failure, Restart, Stop, Supervisor, cause_of_a_kill
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
    first_wait_s: float = FIRST_WAIT_S,
) -> int:
    """Runs a command that trains until the run is done, or until starting it again makes no sense.

    SIGTERM and SIGINT go on to the processes, which save; then nothing is started again.

    Args:
        command: a program and its arguments, as `[sys.executable, "-m", "engine.main", "train", ...]`.
        run: its directory.
        processes, devices: as for `local.run`.
        restarts: at most so many; None: as many as it takes.
        first_wait_s: seconds before the first restart.

    Returns:
        The exit code of the last attempt; 43 after a crash loop; 42 or 130 when asked to stop.

    Raises:
        ConfigError: a number below 1.
    """
    os.environ.setdefault(TOKEN, uuid.uuid4().hex)  # each attempt may take over the run's lease from the one before
    supervisor = Supervisor(_newest(run), most=restarts, first_wait_s=first_wait_s)
    words, kills = _Words(command, run), Announced(Path(os.environ[KILLS]) if os.environ.get(KILLS) else None)
    with Signals() as signals:
        while True:
            ends = local.run(words.next(), processes=processes, devices=devices, signals=signals)
            _tell_the_ledger(run, ends)
            local.tell(ends, numbered=processes is not None)
            if signals.received:
                return _asked_to_stop(ends[0].code, signals.received)
            failure = _failure(ends, _newest(run), from_outside=kills.any_of(ends))
            decision = supervisor.after(failure)
            if isinstance(decision, Stop):
                _tell_the_end(run, decision)
                return decision.code
            _say(run, _restart_text(decision, failure, ends[0], len(ends) > 1))
            signals.wait(decision.wait_s)
            if signals.received:
                return _asked_to_stop(exit_codes.RETRY, signals.received)


def _failure(ends: Sequence[End], newest: int | None, from_outside: bool) -> Failure:
    """What the first failure of an attempt says about it."""
    first = ends[0]
    cause = first.cause or ("" if first.text else cause_of_a_kill(first.code))
    step = first.step if first.step is not None else newest or 0
    return Failure(first.code, cause, step, newest, from_outside)


def _tell_the_ledger(run: RunDirectory, ends: Sequence[End]) -> None:
    """Notes the time that a killed process could not; that of the first process counts."""
    record_death(run.goodput, [end.pid for end in ends], next((end.step for end in ends if end.index == 0), None))


def _newest(run: RunDirectory) -> int | None:
    return CheckpointStore(run.checkpoints, read_only=True).latest()


def _asked_to_stop(code: int, received: Sequence[int]) -> int:
    """The exit code after a signal: what a process decided for itself stays, else the signal says it."""
    if code in (exit_codes.DONE, exit_codes.USER_ERROR, exit_codes.STOP):
        return code
    return exit_codes.INTERRUPTED if signal.SIGINT in received else exit_codes.RETRY


def _restart_text(restart: Restart, failure: Failure, first: End, numbered: bool) -> str:
    which = f" of process {first.index}" if numbered else ""
    why = failure.cause or exit_codes.describe(failure.code)
    if failure.code == 128 + signal.SIGKILL and not failure.from_outside:
        why = first.why
    if first.text:
        why = first.text.splitlines()[-1]
    outside = ", from outside" if failure.from_outside else ""
    goes_on = "the beginning" if failure.checkpoint is None else f"step {failure.checkpoint}"
    return (
        f"ended at step {failure.step} with {failure.code}{which}{outside} ({why}). "
        f"Restart {restart.number} in {restart.wait_s:g} s, from {goes_on}."
    )


def _say(run: RunDirectory, text: str) -> None:
    """Shows a sentence, and adds it to the run's log, which no process of the run writes now."""
    print(f"convoy supervise: {text}", file=sys.stderr, flush=True)
    if run.path.is_dir():
        with contextlib.suppress(RunError), RunLog(run.log):
            logger.info("convoy supervise: %s", text)


def _tell_the_end(run: RunDirectory, stop: Stop) -> None:
    """Shows why nothing is started again; a crash loop is also how the run ended, which its status says."""
    if not stop.reason:
        return
    _say(run, stop.reason)
    if stop.code == exit_codes.STOP and run.status.exists():
        last = status.read(run.status)
        status.write(run.status, dataclasses.replace(last, state="failed", reason=stop.reason, exit_code=stop.code))


class _Words:
    """The words of each attempt: an earlier run is moved aside once, and not at each restart."""

    def __init__(self, words: Sequence[str], run: RunDirectory):
        self._words, self._run = list(words), run
        self._before = run.moved_aside() if run.is_used() else None

    def next(self) -> list[str]:
        """The words of the next attempt."""
        if self._before is None or self._run.moved_aside() != self._before:
            self._words = [word for word in self._words if word != FRESH]
        return self._words


class Announced:
    """The kills that were announced since the last look; a pid counts once, since it is given out again.

    Args:
        file: to which they are added; None: nobody announces any.
    """

    def __init__(self, file: Path | None):
        self._file = file
        self._seen = len(self._lines())

    def any_of(self, ends: Sequence[End]) -> bool:
        """Whether a process of this attempt was among them."""
        new = self._lines()[self._seen :]
        self._seen += len(new)
        return any(str(end.pid) in new for end in ends)

    def _lines(self) -> list[str]:
        return self._file.read_text().split() if self._file is not None and self._file.exists() else []
