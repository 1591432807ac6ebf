"""Reports one attempt to the terminal, the log and `status.json`, and prints its summary at the end.

In a run of several processes only the primary reports; the others keep their summary and show warnings.
"""

import dataclasses
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from engine.base.errors import EngineEnd, RunError
from engine.base.user_errors import describe, has_traceback
from engine.cluster import group, output, shutdown, tracebacks, verdict
from engine.cluster.exit_status import ExitStatus, status_of
from engine.observe.progress import Progress
from engine.observe.summary import Summary, summary_text
from engine.observe.writer import metrics_of
from engine.run import status
from engine.run.directory import RunDirectory
from engine.run.lease import LeaseLost
from engine.run.log import RunLog, logger
from engine.run.status import Status
from engine.storage.mounts import shown

_STATUS_S = 1.0  # shortest time between status writes for rows: a write waits for the disk, and delays the next rows


class Reporter:
    """Reports one attempt from start to end. A context manager; its exit reports how the attempt ended.

    Args:
        directory: the run directory.
        name: name of the config.
        mode: progress mode, `log.progress`.
        kept: whether the directory is kept after the run.
        trial: whether the run only tries the config.
    """

    def __init__(self, directory: RunDirectory, name: str, mode: str, *, kept: bool = True, trial: bool = False):
        self._directory, self._mode, self._kept, self._trial = directory, mode, kept, trial
        self._reports = group.is_primary()
        self._log = RunLog(directory.log) if self._reports else None
        self._progress: Progress | None = None
        self._status = Status(state="starting", attempt=directory.attempt)
        if self._reports and directory.status.exists():
            before = status.read(directory.status)
            self._status = dataclasses.replace(self._status, metrics=before.metrics, total_steps=before.total_steps)
        self._write_at = 0.0  # monotonic time of the earliest next status write for a row
        self._summarise: Callable[[], Summary] = lambda: Summary(
            state="starting", name=name, directory=directory, step=0, total_steps=0
        )
        self._forced = self._warned = False
        self._update_status()
        verdict.record_status_path(directory.status)
        shutdown.add_exit_callback(self._report_forced_exit)

    def start(self, total_steps: int, first_step: int, summarise: Callable[[], Summary]) -> None:
        """Starts to show progress.

        Args:
            total_steps: last step of the run.
            first_step: step at which this attempt starts.
            summarise: returns the summary so far; may be called at any time.
        """
        self._summarise = summarise
        if self._progress is not None:
            self._progress.close()
        self._progress = Progress(self._mode, total_steps, first_step) if self._reports else None
        self._update_status(step=first_step, total_steps=total_steps)
        for text in self._directory.messages:
            self.message(text)

    def row(self, row: dict[str, float]) -> None:
        """Reports a row of training metrics. Called in the thread of the writer."""
        if self._progress is not None:
            self._progress.update(int(row["step"]), row)
        metrics = {**self._status.metrics, **metrics_of(row)}
        self._status = dataclasses.replace(self._status, state="training", step=int(row["step"]), metrics=metrics)
        if time.monotonic() >= self._write_at:
            self._update_status()

    def phase(self, name: str) -> None:
        """Reports the phase that starts, "training" or "evaluating". Called in the thread of the writer."""
        if self._progress is not None:
            self._progress.phase(name)
        self._update_status(state=name)

    def slowest(self, text: str) -> None:
        """Reports which process slows down the run; "" if none. Called in the thread of the writer."""
        self._update_status(slowest=text)

    def message(self, text: str) -> None:
        """Reports a sentence for the user; before `start` it is only logged."""
        if self._progress is not None:
            self._progress.message(shown(text))
        else:
            logger.info(text)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.close()
        shutdown.remove_exit_callback(self._report_forced_exit)
        code = status_of(error)
        state = "interrupted" if code == ExitStatus.INTERRUPTED else "failed" if error else "done"
        state = error.state if isinstance(error, EngineEnd) else state
        if error is not None:
            self._keep_traceback(error)
        last = self._summarise()
        reason = last.reason if error is None else _reason(error)
        metrics = {**self._status.metrics, **last.metrics}  # a finished run that is started again has no new metrics
        self.summary = dataclasses.replace(
            last, state=state, reason=reason, metrics=metrics, kept=self._kept, trial=self._trial
        )
        try:
            self._update_status(state=state, reason=reason, exit_code=code, step=self.summary.step, metrics=metrics)
            if self._progress is not None and self._mode != "none":
                self._progress.result(summary_text(self.summary))
        finally:
            if self._log is not None:
                output.drain()  # the log then states what is missing on the screen
                self._log.close()

    def _keep_traceback(self, error: BaseException) -> None:
        """Writes the traceback of an error to the log; in a process without a log, to a file of its own."""
        text = tracebacks.traceback_text(error)
        if self._log is not None and has_traceback(error):
            logger.error("%s\n%s", _reason(error), text)
            file = self._directory.log if self._log.is_complete and self._kept else None
        elif self._log is None and tracebacks.is_unexpected(error):
            name = f"attempt-{self._directory.attempt}-process-{group.index()}-error.txt"
            file = tracebacks.write(self._directory.stacks / name, text)
        else:
            return
        if file is not None:
            tracebacks.set_file(error, file)

    def _report_forced_exit(self, error: BaseException) -> None:
        """Writes the final status when a thread ends this process because the main thread is stuck."""
        code = status_of(error)
        state = "interrupted" if code == ExitStatus.INTERRUPTED else "failed"
        state = error.state if isinstance(error, EngineEnd) else state
        self._update_status(state=state, reason=_reason(error), exit_code=code)
        self._forced = True

    def _update_status(self, **changes: Any) -> None:
        """Changes the status in memory and on disk."""
        if self._forced:
            return
        self._status = dataclasses.replace(self._status, **changes)
        if self._reports:
            try:
                status.write(self._directory.status, self._status, self._directory.lease)
            except LeaseLost:  # the status belongs to another job now; the training loop raises this error itself
                if changes.get("state") == "done":
                    raise
            except RunError as error:  # a full disk is an error before the start and at the end, but not in between
                if self._progress is None or changes.get("state") == "done":
                    raise
                if not self._warned:
                    self._warned = True
                    logger.warning("%s", error)
        self._write_at = time.monotonic() + _STATUS_S


def _reason(error: BaseException) -> str:
    """Returns why an attempt ended, for its status: the text of an error of the engine, else a description."""
    return shown(str(error) if isinstance(error, EngineEnd) else describe(error))
