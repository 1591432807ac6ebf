"""Writes metrics to `metrics.jsonl` and TensorBoard files in a thread, so that the training loop does not wait.

A row is one line, `{"step": int, "attempt": int, "time": unix seconds, "loss": 0.5, ...}`. Lines are only appended:
after a resume, the last line of a step and metric is valid. Opening the file removes a last line that a crash left
incomplete. If the disk is full, one warning is logged and lines are kept in memory; the run does not end.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from engine.base import json_text
from engine.base.errors import EngineEnd, FieldError, RunError
from engine.cluster import group
from engine.cluster.exit_status import ExitStatus
from engine.cluster.shutdown import RunThread
from engine.config.schema import Config
from engine.metrics.results import json_values
from engine.observe.tensorboard import MEASURED as MEASURED
from engine.observe.tensorboard import ROW_KEYS, EventFiles, hyperparameters
from engine.run.directory import RunDirectory
from engine.run.jsonl import open_for_append
from engine.run.lease import ALWAYS_GRANTED, Lease
from engine.run.log import logger

type Row = Mapping[str, Any]
"""Name -> number, or a result of an evaluation (`engine/metrics/results.py`)."""
type Block = Callable[[], Sequence[Row] | None]


class Tracker(Protocol):
    """Passes the rows of one attempt on to a tracker of experiments. No method may wait for it, except `join`."""

    def open(self, directory: RunDirectory) -> None:
        """Starts, before the first row; the directory holds the config and the earlier rows of the run."""

    def add(self, row: Row) -> None:
        """Receives a row before its line is written to `metrics.jsonl`. Called in the thread of the writer."""

    def end(self, error: BaseException | None) -> None:
        """Starts the end, after the last row; `error` ended the attempt."""

    def join(self, deadline: float) -> None:
        """Waits for the end until a monotonic time, and reports what was lost."""


_MAX_QUEUED = 1024  # blocks in the queue; with more, `push` waits, so that memory is bounded and no row is lost
_MAX_UNWRITTEN = 64 << 20  # bytes of lines that wait for the disk; more end the run
_DONE_S = 30.0  # longest wait for trackers at the end of a run; the first start of a package may take some seconds
_FAILED_S = 10.0  # the same after an error
_STOPPED_S = 3.0  # the same if the run was asked to stop, and may have only seconds to end
_METHODS = ("open", "add", "end", "join")  # of a tracker
_GATHER_S = 0.1  # blocks are run together: a single block would take the GIL, and the CPU caches, from a step


def metrics_of(row: Row) -> dict[str, Any]:
    """Returns the metrics of a row, without ROW_KEYS."""
    return {name: value for name, value in row.items() if name not in ROW_KEYS}


class MetricWriter:
    """Runs blocks in the order in which they were pushed, and writes the rows that they return. A context manager."""

    def __init__(
        self,
        path_jsonl: Path | None,
        tensorboard_dir: Path | None,
        lease: Lease = ALWAYS_GRANTED,
        figures: Path | None = None,
        hyperparameters: Callable[[], Mapping[str, Any]] = dict,
        trackers: Sequence[Tracker] = (),
    ):
        """
        Args:
            path_jsonl: the file to append to; created if it does not exist. None writes no file: in a run of several
                processes each process builds the rows, and the primary writes them.
            tensorboard_dir: folder of the event files; None writes none.
            lease: checked before each block, and again before its rows are written, since a block may take long. Once
                the lease is lost, `push` raises LeaseLost and nothing is written.
            figures: folder of the images that have a file name; None writes none.
            hyperparameters: returns the settings of the run for the event files.
            trackers: also receive the rows.

        Raises:
            RunError: the file cannot be opened for writing.
        """
        self._path, self._lease, self._figures, self._trackers = path_jsonl, lease, figures, trackers
        self._error: BaseException | None = None
        self._raised = False  # whether the error was raised
        self._closed = False
        self._file: int | None = None
        self._unwritten = b""  # lines that are not in the file yet
        self._warned = False  # whether the warning about the disk was logged
        if path_jsonl is not None:
            with _errors_as_run_error(path_jsonl):
                self._file = open_for_append(path_jsonl)
        self._events = None if tensorboard_dir is None else EventFiles(Path(tensorboard_dir), hyperparameters)
        self._queue: queue.SimpleQueue[Block | threading.Event | None] = queue.SimpleQueue()
        self._hurry = threading.Event()  # set while a caller waits for the files
        self._thread = RunThread(self._run, "convoy-writer")
        self._thread.start()

    def push(self, block: Block) -> None:
        """Queues a block for the thread; takes microseconds.

        A block may return None if it only does some work outside the training loop, in order with the rows.

        Raises:
            RunError: the rows of an earlier block could not be written, or the writer is closed.
            Exception: the error that an earlier block raised, unchanged.
        """
        self._raise_error()
        if self._closed:
            raise RunError(f"{self._path or 'metrics'}: the writer is closed. Push before close().")
        if self._queue.qsize() >= _MAX_QUEUED:
            self.flush()
        self._queue.put(block)

    def sync(self) -> None:
        """Requests an fsync of everything that was pushed so far; does not wait."""
        self.push(self._fsync)
        self._hurry.set()

    def flush(self) -> None:
        """Waits until everything that was pushed is in the files; raises like `push`."""
        if not self._closed:
            written = threading.Event()
            self._queue.put(written)
            self._hurry.set()
            written.wait()
        self._raise_error()

    def close(self) -> None:
        """Writes everything in the queue and ends the thread; raises like `push`, but no error twice."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._hurry.set()
            self._thread.join()
        if not self._raised:
            self._raise_error()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with suppress(*(() if error is None else (RunError,))):  # the error of the training loop is more informative
            self.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            self._raised = True
            raise self._error

    def _run(self) -> None:
        """The thread. After an error it discards blocks, so that `push` never waits for a full queue."""
        while (item := self._next()) is not None:
            if isinstance(item, threading.Event):
                self._attempt(self._flush_events)
                item.set()
            elif self._error is None:
                self._attempt(self._write, item)
        self._attempt(self._write_remaining)
        self._attempt(self._close_files)

    def _next(self) -> Block | threading.Event | None:
        """Returns the next item. After an idle time, waits for more blocks to arrive, unless a caller is waiting."""
        with suppress(queue.Empty):
            return self._queue.get_nowait()
        self._hurry.clear()
        item = self._queue.get()
        if callable(item) and self._queue.empty():
            self._hurry.wait(_GATHER_S)
        return item

    def _attempt(self, function: Callable, *arguments) -> None:
        try:
            function(*arguments)
        except BaseException as error:  # `push` raises every kind in the training loop
            self._error = self._error or error

    def _write(self, block: Block) -> None:
        self._lease.check()
        rows = block()
        if not rows:
            return
        self._lease.check()
        for tracker in self._trackers:
            for row in rows:
                tracker.add(row)
        if self._path is not None:
            self._unwritten += "".join(json_text.dumps(json_values(row)) + "\n" for row in rows).encode()
            self._write_lines(self._path)
        self._write_events(lambda events: events.add(rows))
        if self._figures is not None:
            for row in rows:
                if any("/" in name for name in row):  # such as the results of evaluations, which may be figures
                    self._write_figures(self._figures, row)

    def _write_figures(self, folder: Path, row: Row) -> None:
        from engine.observe.figure_files import write_figures

        try:
            write_figures(folder, row, row["step"])
        except OSError as error:
            self._warn(folder.parent, error, "Figures and other files of evaluations are missing there")

    def _write_lines(self, path: Path) -> None:
        """Writes the lines that are not in the file yet, as far as the disk has space."""
        try:
            while self._unwritten and self._file is not None:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        except OSError as error:
            if len(self._unwritten) > _MAX_UNWRITTEN:
                raise _write_error(path, error.strerror or str(error)) from error
            self._warn(path, error, "They are kept in memory")

    def _fsync(self) -> None:
        if self._file is not None and self._path is not None:
            self._write_lines(self._path)
            try:
                os.fsync(self._file)
            except OSError as error:
                self._warn(self._path, error, "They may be lost if this machine fails")

    def _write_events(self, function: Callable[[EventFiles], None]) -> None:
        if self._events is not None:
            try:
                function(self._events)
            except OSError as error:
                with suppress(OSError):
                    self._events.close()  # the next event starts another file
                self._warn(self._events.directory, error, "They are in metrics.jsonl, but missing in TensorBoard")

    def _warn(self, path: Path, error: OSError, consequence: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                f"{path}: metrics cannot be written ({error.strerror or error}). {consequence}; training continues. "
                "Free disk space there."
            )

    def _flush_events(self) -> None:
        self._lease.check()
        self._write_events(EventFiles.flush)

    def _write_remaining(self) -> None:
        self._flush_events()
        if self._path is not None:
            self._write_lines(self._path)
            if self._unwritten:
                raise _write_error(self._path, f"{self._unwritten.count(10)} lines are lost")

    def _close_files(self) -> None:
        self._write_events(EventFiles.close)
        if self._file is not None:
            os.close(self._file)


@contextmanager
def open_writer(directory: RunDirectory, config: Config) -> Iterator[MetricWriter]:
    """Opens the writer of the metric files of a run; in processes other than the primary it writes nothing."""
    if not group.is_primary():
        with MetricWriter(None, None) as writer:
            yield writer
        return
    events = directory.tensorboard if config.log.tensorboard else None
    trackers = build_trackers(config) if config.log.trackers else ()
    with (
        _running(trackers, directory),
        MetricWriter(
            directory.metrics,
            events,
            directory.lease,
            directory.figures,
            lambda: hyperparameters(config),
            trackers,
        ) as writer,
    ):
        yield writer


def build_trackers(config: Config) -> list[Tracker]:
    """Returns the trackers of `log.trackers`. Raises ConfigError for a target that is none."""
    from engine.config.target import build

    found = {name: build(section, f"log.trackers.{name}") for name, section in config.log.trackers.items()}
    for name, tracker in found.items():
        if isinstance(tracker, type) or not all(callable(getattr(tracker, method, None)) for method in _METHODS):
            problem = f"{config.log.trackers[name].target} returned no tracker: its methods are {', '.join(_METHODS)}"
            advice = "Name one of engine.trackers, or a subclass of engine.trackers.tracker.Tracker."
            raise FieldError(f"log.trackers.{name}.target", problem, advice)
    return list(found.values())


@contextmanager
def _running(trackers: Sequence[Tracker], directory: RunDirectory) -> Iterator[None]:
    """Opens trackers and ends them, all at the same time."""
    error: BaseException | None = None
    opened: list[Tracker] = []
    try:
        for tracker in trackers:
            tracker.open(directory)
            opened.append(tracker)
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        for tracker in opened:
            tracker.end(error)
        stopped = isinstance(error, EngineEnd) and error.from_outside
        deadline = time.monotonic() + (_STOPPED_S if stopped else _DONE_S if error is None else _FAILED_S)
        for tracker in opened:
            tracker.join(deadline)


@contextmanager
def _errors_as_run_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _write_error(path, error.strerror or str(error)) from error


def _write_error(path: Path, reason: str) -> RunError:
    error = RunError(
        f"{path}: metrics cannot be written ({reason}). "
        "Free disk space there, then start the same command again: it resumes from the newest checkpoint."
    )
    error.exit_code = ExitStatus.RETRY
    return error
