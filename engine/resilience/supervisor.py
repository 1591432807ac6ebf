"""Decides whether a run that ended is restarted, and after what wait, from how each attempt ended.

Three failures of one signature at about one step, without a newer checkpoint between them, are a crash loop: a restart
would repeat it. An announced kill (`launch/supervise.py`) comes from outside and says nothing about the run.
"""

from dataclasses import dataclass

from engine.cluster.exit_status import KILLED, ExitStatus, describe, is_retried
from engine.resilience import timeouts

SAME_FAILURES = 3  # of one signature, that make a crash loop
STEPS_AHEAD = 2  # of the loop before the device, so that one fault may appear up to so many steps later


@dataclass(frozen=True)
class Failure:
    """How an attempt ended before its run did."""

    code: int  # of the job, as a shell reports it
    cause: str  # signature of the error or signal, "" where others brought the failure about
    step: int  # the last one that it had reached
    checkpoint: int | None  # the newest one by then
    from_outside: bool = False  # whether it was an announced kill


@dataclass(frozen=True)
class Restart:
    """Start the same command again."""

    number: int  # of this restart, from 1
    wait_s: float  # seconds to wait before it


@dataclass(frozen=True)
class Stop:
    """End with this code; `reason` is a sentence, "" where the attempt itself has reported why."""

    code: int
    reason: str = ""


class Supervisor:
    """Decides about one run, one attempt after the other.

    Args:
        checkpoint: the newest one before the first attempt; None: there is none.
        most: the most restarts; None for no limit.
        first_wait_s: before a restart; it doubles with each one without progress, up to timeouts.LONGEST_RESTART_S.
    """

    def __init__(
        self, checkpoint: int | None, *, most: int | None = None, first_wait_s: float = timeouts.FIRST_RESTART_S
    ):
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
        return Restart(self._restarts, min(timeouts.LONGEST_RESTART_S, self._first_wait_s * 2.0 ** min(doublings, 30)))

    def _is_loop(self, failure: Failure) -> bool:
        same = [
            other
            for other in self._failures
            if failure.cause and other.cause == failure.cause and abs(other.step - failure.step) <= STEPS_AHEAD
        ]
        return len(same) >= SAME_FAILURES

    def _loop_text(self, failure: Failure) -> str:
        newest = "none was saved" if self._checkpoint is None else f"the newest is that of step {self._checkpoint}"
        return (
            f"{SAME_FAILURES} attempts ended alike at step {failure.step}: {failure.cause}; no new checkpoint came "
            f"between them ({newest}). Starting again would repeat it. Find out what happens there, then start "
            "the same command again."
        )


def kill_signature(code: int) -> str:
    """Returns the signature of a killed process; "" for SIGTERM, which comes from outside only."""
    return describe(code) if code in KILLED and code != ExitStatus.SIGTERM else ""
