"""Decides whether and when to restart a run, from how its attempts ended.

Three failures with the same signature at about the same step, without a newer checkpoint between them, are a crash
loop: a restart would repeat it. Two are enough if the kernel killed a process for lack of memory. An announced kill
(`launch/supervise.py`) comes from outside and does not count.
"""

from dataclasses import dataclass

from engine.base.host import ADVICE, host_memory
from engine.cluster.exit_status import KILLED, ExitStatus, describe, is_retried
from engine.launch import timeouts

SAME_FAILURES = 3  # failures with the same signature that make a crash loop
SAME_OOM_KILLS = 2  # the same for kills for lack of memory, which depend less on chance and disturb the whole machine
STEPS_AHEAD = 2  # the loop runs so many steps ahead of the device, so the step of the same fault may differ by as many


@dataclass(frozen=True)
class Failure:
    """How an attempt ended without completing the run."""

    code: int  # exit code of the job, as a shell reports it
    signature: str  # signature of the error or signal, "" if a peer or a scheduler caused the failure
    step: int  # last step that it reached
    checkpoint: int | None  # newest checkpoint at that time
    from_outside: bool = False  # whether it was an announced kill
    out_of_memory: bool = False  # whether the kernel killed a process for lack of memory


@dataclass(frozen=True)
class Restart:
    """Decision to start the same command again."""

    number: int  # number of this restart, from 1
    wait_s: float  # seconds to wait before it


@dataclass(frozen=True)
class Exit:
    """Decision to exit with this code; `reason` is a sentence, "" if the attempt itself has reported it."""

    code: int
    reason: str = ""


class Supervisor:
    """Decides after each attempt of one run.

    Args:
        checkpoint: newest checkpoint before the first attempt; None if there is none.
        max_restarts: maximum number of restarts; None for no limit.
        first_wait_s: wait before a restart; it doubles with each restart without progress, up to
            `timeouts.LONGEST_RESTART_S`.
    """

    def __init__(
        self, checkpoint: int | None, *, max_restarts: int | None = None, first_wait_s: float = timeouts.FIRST_RESTART_S
    ):
        self._checkpoint, self._max_restarts, self._first_wait_s = checkpoint, max_restarts, first_wait_s
        self._restarts = 0
        self._failures: list[Failure] = []  # failures since the last progress, without those from outside

    def after(self, failure: Failure) -> Restart | Exit:
        """Returns the decision after an attempt; exit code 0 stops too."""
        if not is_retried(failure.code):
            return Exit(failure.code)
        if failure.checkpoint is not None and (self._checkpoint is None or failure.checkpoint > self._checkpoint):
            self._checkpoint, self._failures = failure.checkpoint, []
        if not failure.from_outside:
            self._failures.append(failure)
            if self._is_loop(failure):
                return Exit(ExitStatus.STOP, self._loop_text(failure))
        if self._restarts == self._max_restarts:
            return Exit(failure.code, f"the maximum number of restarts ({self._max_restarts}) is reached.")
        self._restarts += 1
        doublings = max(0, len(self._failures) - 1)
        return Restart(self._restarts, min(timeouts.LONGEST_RESTART_S, self._first_wait_s * 2.0 ** min(doublings, 30)))

    def _is_loop(self, failure: Failure) -> bool:
        same = [
            other
            for other in self._failures
            if failure.signature
            and other.signature == failure.signature
            and abs(other.step - failure.step) <= STEPS_AHEAD
        ]
        kills = [other for other in same if other.out_of_memory]
        return len(same) >= SAME_FAILURES or (failure.out_of_memory and len(kills) >= SAME_OOM_KILLS)

    def _loop_text(self, failure: Failure) -> str:
        newest = "none was saved" if self._checkpoint is None else f"the newest is that of step {self._checkpoint}"
        between = f"no new checkpoint was saved between them ({newest}). A restart would repeat the failure."
        if failure.out_of_memory:
            limit = host_memory()
            return (
                f"{SAME_OOM_KILLS} attempts failed identically at step {failure.step}: the kernel killed a process for "
                f"lack of memory{f', of which there are {limit}' if limit else ''}; {between} Use {ADVICE}, or a "
                "machine with more memory, then start the same command again."
            )
        return (
            f"{SAME_FAILURES} attempts failed identically at step {failure.step}: {failure.signature}; {between} "
            "Fix its cause, then start the same command again."
        )


def kill_signature(code: int) -> str:
    """Returns the signature of a killed process; "" for SIGTERM, which only comes from outside."""
    return describe(code) if code in KILLED and code != ExitStatus.SIGTERM else ""
