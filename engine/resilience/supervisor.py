"""Whether a run that ended is started again, and after what wait.

Owns: these decisions, made from how each attempt ended. Does not own: the processes (`launch/supervise.py`), what exit
codes mean (`cluster/exit_status.py`), or what an error is known by (`cluster/failure_signature.py`).

Terms. *Progress*: a checkpoint newer than the newest one before. *Cause*: what an error or a signal is known by when it
comes again; what others brought about has none. *Crash loop*: failures of one cause at one step without progress
between them. *From outside*: a kill that was announced (`launch/supervise.py`); it says nothing about the run.
"""

from dataclasses import dataclass

from engine.cluster.exit_status import KILLED, ExitStatus, describe, is_retried

ALIKE = 3  # failures of one kind that make a crash loop
AHEAD = 2  # steps: the loop is so far ahead of the device at most, so that one fault may show itself a little later
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class Failure:
    """How an attempt ended before its run did."""

    code: int  # of the job, as a shell tells it
    cause: str  # "" where it has none of its own
    step: int  # that it had reached
    checkpoint: int | None  # the newest one by then
    from_outside: bool = False  # whether whoever killed it said so


@dataclass(frozen=True)
class Restart:
    """Start the same command again."""

    number: int  # of this restart, from 1
    wait_s: float  # seconds to wait before


@dataclass(frozen=True)
class Stop:
    """End with this code; `reason` is a sentence, "" where the attempt itself has told why."""

    code: int
    reason: str = ""


class Supervisor:
    """Decides about one run, attempt after attempt.

    Args:
        checkpoint: the newest one before the first attempt; None: there is none.
        most: restarts at most; None: as many as it takes.
        first_wait_s: before a restart; it doubles with each one without progress, up to LONGEST_WAIT_S.
    """

    def __init__(self, checkpoint: int | None, *, most: int | None = None, first_wait_s: float = FIRST_WAIT_S):
        self._checkpoint, self._most, self._first_wait_s = checkpoint, most, first_wait_s
        self._restarts = 0
        self._failures: list[Failure] = []  # without progress between them, and not from outside

    def after(self, failure: Failure) -> Restart | Stop:
        """Returns what to do after an attempt that ended so; a code of 0 stops too."""
        if not is_retried(failure.code):
            return Stop(failure.code)
        if failure.checkpoint is not None and (self._checkpoint is None or failure.checkpoint > self._checkpoint):
            self._checkpoint, self._failures = failure.checkpoint, []
        if not failure.from_outside:
            self._failures.append(failure)
            if self._is_loop(failure):
                return Stop(ExitStatus.STOP, self._loop_text(failure))
        if self._restarts == self._most:
            return Stop(failure.code, f"the restarts allowed ({self._most}) are used up.")
        self._restarts += 1
        doublings = max(0, len(self._failures) - 1)
        return Restart(self._restarts, min(LONGEST_WAIT_S, self._first_wait_s * 2.0 ** min(doublings, 30)))

    def _is_loop(self, failure: Failure) -> bool:
        alike = [
            other
            for other in self._failures
            if failure.cause and other.cause == failure.cause and abs(other.step - failure.step) <= AHEAD
        ]
        return len(alike) >= ALIKE

    def _loop_text(self, failure: Failure) -> str:
        newest = "none was saved" if self._checkpoint is None else f"the newest is that of step {self._checkpoint}"
        return (
            f"{ALIKE} attempts ended alike at step {failure.step}: {failure.cause}; no new checkpoint came between "
            f"them ({newest}). Starting again would repeat it. Find out what happens there, then start the same "
            "command again."
        )


def kill_signature(code: int) -> str:
    """Returns the signature of a killed process; "" for SIGTERM, which comes from outside only."""
    return describe(code) if code in KILLED and code != ExitStatus.SIGTERM else ""
