"""Reports one attempt to the screen, the log and `status.json`, and ends with its summary.

In a run of several processes the primary reports; the others keep the summary and show warnings only.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from engine.cluster import group, shutdown, verdict
from engine.cluster.exit_status import ExitStatus, status_of
from engine.config.errors import ConvoyError, RunError
from engine.mounts import shown
from engine.observe.progress import Progress
from engine.observe.report import Summary, summary_text
from engine.observe.writer import metrics_of
from engine.run import status
from engine.run.directory import RunDirectory
from engine.run.lease import LeaseLost
from engine.run.log import RunLog, logger
from engine.run.status import Status

_STATUS_S = 1.0  # between two writes of the status for rows: each waits for the disk, and rows wait behind it


class Reporter:
    """Tells of one attempt from its start to its end. A context manager: its exit tells how the attempt ended.

    Args:
        directory: the run.
        name: of the config.
        mode: of the progress, `log.progress`.
        kept: whether the directory stays when the run is over.
    """

    def __init__(self, directory: RunDirectory, name: str, mode: str, *, kept: bool = True):
        self._directory, self._mode, self._kept = directory, mode, kept
        self._tells = group.is_primary()
        self._log = RunLog(directory.log) if self._tells else None
        self._progress: Progress | None = None
        before = status.read(directory.status).metrics if self._tells and directory.status.exists() else {}
        self._status = Status(state="starting", attempt=directory.attempt, metrics=before)
        self._write_at = 0.0  # monotonic seconds from which on a row writes it again
        self._summarise: Callable[[], Summary] = lambda: Summary(
            state="starting", name=name, directory=directory, step=0, total_steps=0
        )
        self._forced = self._warned = False
        self._tell()
        verdict.record_status_path(directory.status)
        shutdown.add_exit_callback(self._end_by_force)

    def start(self, total_steps: int, first_step: int, summarise: Callable[[], Summary]) -> None:
        """The work begins: shows progress from here on.

        Args:
            total_steps: of the run.
            first_step: the step from which this attempt goes on.
            summarise: returns what is reached so far, at any moment.
        """
        self._summarise = summarise
        self._progress = Progress(self._mode, total_steps, first_step) if self._tells else None
        self._tell(step=first_step, total_steps=total_steps)
        for text in self._directory.messages:
            self.message(text)

    def row(self, row: dict[str, float]) -> None:
        """A row of training metrics; called in the writer's thread."""
        if self._progress is not None:
            self._progress.update(int(row["step"]), row)
        metrics = {**self._status.metrics, **metrics_of(row)}
        self._status = dataclasses.replace(self._status, state="training", step=int(row["step"]), metrics=metrics)
        if time.monotonic() >= self._write_at:
            self._tell()

    def phase(self, name: str) -> None:
        """What is done from now on, "training" or "evaluating"; called in the writer's thread."""
        if self._progress is not None:
            self._progress.phase(name)
        self._tell(state=name)

    def message(self, text: str) -> None:
        """A sentence for the user; before the start it goes to the log only."""
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
        shutdown.remove_exit_callback(self._end_by_force)
        code = status_of(error)
        state = "interrupted" if code == ExitStatus.INTERRUPTED else "failed" if error else "done"
        state = error.state if isinstance(error, ConvoyError) else state
        reason = ""
        if error is not None:
            reason = shown(str(error) if isinstance(error, ConvoyError) else f"{type(error).__name__}: {error}")
        reached = self._summarise()
        metrics = {**self._status.metrics, **reached.metrics}  # a finished run that is started again trains nothing
        self.summary = dataclasses.replace(reached, state=state, reason=reason, metrics=metrics, kept=self._kept)
        self._tell(state=state, reason=reason, exit_code=code, step=self.summary.step, metrics=metrics)
        if self._progress is not None and self._mode != "none":
            print(summary_text(self.summary), file=sys.stderr, flush=True)
        if self._log is not None:
            self._log.close()

    def _end_by_force(self, error: BaseException) -> None:
        """A thread ends this process, since the main one is stuck; only the status says so."""
        code = status_of(error)
        state = "interrupted" if code == ExitStatus.INTERRUPTED else "failed"
        self._tell(state=state, reason=shown(str(error)), exit_code=code)
        self._forced = True

    def _tell(self, **changes: Any) -> None:
        """Changes the status, also on disk."""
        if self._forced:
            return
        self._status = dataclasses.replace(self._status, **changes)
        if self._tells:
            try:
                status.write(self._directory.status, self._status, self._directory.lease)
            except LeaseLost:  # it is another job's status now; the loop ends by this error itself
                pass
            except RunError as error:  # a full disk: before the start it is refused, later on the run goes on
                if self._progress is None:
                    raise
                if not self._warned:
                    self._warned = True
                    logger.warning("%s", error)
        self._write_at = time.monotonic() + _STATUS_S
