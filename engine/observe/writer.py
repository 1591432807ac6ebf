"""Metrics of a run as `metrics.jsonl` and TensorBoard files, written by a thread so that the loop never waits.

A row is one line, `{"step": int, "attempt": int, "time": unix seconds, "loss": 0.5, ...}`. Lines are only added: after
a resume at step s, the last line of each step and name counts. Opening the file removes a last line that a crash cut
off. A disk that refuses lines does not end the run: one warning is logged, and the lines wait in memory.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from engine.cluster import group
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import RunError
from engine.run import json_text
from engine.run.directory import RunDirectory
from engine.run.jsonl import open_for_append
from engine.run.lease import ALWAYS_GRANTED, Lease
from engine.run.log import logger

type Row = Mapping[str, float]
type Block = Callable[[], Sequence[Row] | None]

ROW_KEYS = ("step", "attempt", "batch", "time")  # of every row; the rest are metrics
_WAITING = 1024  # blocks; beyond them push waits, so that memory stays bounded and no row is lost
_KEPT = 64 << 20  # bytes of lines that wait for a disk; more end the run
_GATHER_S = 0.1  # blocks wait for others: one that comes alone takes Python's lock, and the caches, from a step
_FLUSH_S = 5.0  # between two flushes of the event file, each of which waits for the disk


def metrics_of(row: Row) -> dict[str, float]:
    """Returns what a row holds beside ROW_KEYS."""
    return {name: value for name, value in row.items() if name not in ROW_KEYS}


class MetricWriter:
    """Writes blocks of rows in the order in which they were pushed. A context manager."""

    def __init__(self, path_jsonl: Path | None, tensorboard_dir: Path | None, lease: Lease = ALWAYS_GRANTED):
        """
        Args:
            path_jsonl: the file that lines are added to; made when it is not there. None writes none: in a run of
                several processes each makes the rows, and the first one writes them.
            tensorboard_dir: folder of the event files; None writes none.
            lease: checked before each block runs, and again before its rows are written: to make them may take long.
                `push` raises LeaseLost once it is lost, and nothing is written then.

        Raises:
            RunError: the file cannot be opened for writing.
        """
        self._path, self._lease = path_jsonl, lease
        self._error: BaseException | None = None
        self._raised = False  # whether the error was raised
        self._closed = False
        self._file: int | None = None
        self._left = b""  # lines that are not in the file yet
        self._warned = False  # that the disk refuses something
        if path_jsonl is not None:
            with _naming(path_jsonl):
                self._file = open_for_append(path_jsonl)
        self._events = None if tensorboard_dir is None else _Events(Path(tensorboard_dir))
        self._queue: queue.SimpleQueue[Block | threading.Event | None] = queue.SimpleQueue()
        self._hurry = threading.Event()  # somebody waits for the files
        self._thread = threading.Thread(target=self._run, name="convoy-writer", daemon=True)
        self._thread.start()

    def push(self, block: Block) -> None:
        """Hands a block to the thread; a few microseconds.

        A block may return None: it then only does something off the loop, in order with the rows.

        Raises:
            RunError: an earlier block could not be written, or the writer is closed.
            Exception: what an earlier block raised, as it was.
        """
        self._raise_error()
        if self._closed:
            raise RunError(f"{self._path or 'metrics'}: the writer is closed. Push before close().")
        if self._queue.qsize() >= _WAITING:
            self.flush()
        self._queue.put(block)

    def sync(self) -> None:
        """Has what was pushed so far put on the disk, where it outlives the machine; waits for nothing."""
        self.push(self._sync)
        self._hurry.set()

    def flush(self) -> None:
        """Waits until everything that was pushed is in the files; raises as `push`."""
        if not self._closed:
            written = threading.Event()
            self._queue.put(written)
            self._hurry.set()
            written.wait()
        self._raise_error()

    def close(self) -> None:
        """Writes what waits and ends the thread; raises as `push`, but only an error that was not raised before."""
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
        with suppress(*(() if error is None else (RunError,))):  # the loop's own error says more
            self.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            self._raised = True
            raise self._error

    def _run(self) -> None:
        """The thread: after an error it only takes blocks off the queue, so that push never waits for nothing."""
        while (item := self._next()) is not None:
            if isinstance(item, threading.Event):
                self._attempt(self._flush_events)
                item.set()
            elif self._error is None:
                self._attempt(self._write, item)
        self._attempt(self._write_the_rest)
        self._attempt(self._close_files)

    def _next(self) -> Block | threading.Event | None:
        """What comes next; where nothing does yet, the thread lets some come together, unless somebody waits."""
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
        except BaseException as error:  # every kind reaches the loop: this thread has no one else to tell
            self._error = self._error or error

    def _write(self, block: Block) -> None:
        self._lease.check()
        rows = block()
        if not rows:
            return
        self._lease.check()
        if self._path is not None:
            self._left += "".join(json_text.dumps(row) + "\n" for row in rows).encode()
            self._write_left(self._path)
        self._write_events(lambda events: events.add(rows))

    def _write_left(self, path: Path) -> None:
        """Writes the lines that are not in the file yet, as far as the disk takes them."""
        try:
            while self._left and self._file is not None:
                self._left = self._left[os.write(self._file, self._left) :]
        except OSError as error:
            if len(self._left) > _KEPT:
                raise _refused(path, error.strerror or str(error)) from error
            self._warn(path, error, "They wait in memory")

    def _sync(self) -> None:
        if self._file is not None and self._path is not None:
            self._write_left(self._path)
            try:
                os.fsync(self._file)
            except OSError as error:
                self._warn(self._path, error, "They may be lost with this machine")

    def _write_events(self, function: Callable[["_Events"], None]) -> None:
        if self._events is not None:
            try:
                function(self._events)
            except OSError as error:
                with suppress(OSError):
                    self._events.close()  # the next event begins another file
                self._warn(self._events.directory, error, "They are lost to TensorBoard, and lie in metrics.jsonl")

    def _warn(self, path: Path, error: OSError, what: str) -> None:
        if not self._warned:
            self._warned = True
            words = error.strerror or error
            logger.warning(f"{path}: metrics cannot be written ({words}). {what}; training goes on. Free space there.")

    def _flush_events(self) -> None:
        self._lease.check()
        self._write_events(_Events.flush)

    def _write_the_rest(self) -> None:
        self._flush_events()
        if self._path is not None:
            self._write_left(self._path)
            if self._left:
                raise _refused(self._path, f"{self._left.count(10)} lines are lost")

    def _close_files(self) -> None:
        self._write_events(_Events.close)
        if self._file is not None:
            os.close(self._file)


def open_writer(directory: RunDirectory, tensorboard: bool) -> MetricWriter:
    """Returns the writer of a run's metric files; in a process that is not the primary it writes nothing."""
    if not group.is_primary():
        return MetricWriter(None, None)
    return MetricWriter(directory.metrics, directory.tensorboard if tensorboard else None, directory.lease)


class _Events:
    """TensorBoard's copy of the rows: every number under its name, at its step.

    Rows wait for the next flush, before which nobody could read them: many in one go cost a tenth of what each costs
    that comes alone between two steps. tensorboardX is given one event at a time on this thread: its own queue runs
    through a pipe, and loses the error of a full disk.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._writer = None
        self._rows: list[Row] = []
        self._flush_at = time.monotonic() + _FLUSH_S  # the import in `flush` takes 0.1 s, which no first step waits for

    def add(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        if time.monotonic() > self._flush_at:
            self.flush()

    def flush(self) -> None:
        rows, self._rows = self._rows, []
        self._flush_at = time.monotonic() + _FLUSH_S
        if not rows:
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue], made at import
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        if self._writer is None:
            self.directory.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(self.directory / "events"), f".{os.getpid()}")
        for row in rows:
            values = [Summary.Value(tag=name, simple_value=number) for name, number in _numbers(row)]
            self._writer.write_event(
                Event(summary=Summary(value=values), step=row["step"], wall_time=row.get("time", time.time()))
            )
        self._writer.flush()

    def close(self) -> None:
        """Ends the file, without what waits."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        is_number = isinstance(value, int | float) or getattr(value, "ndim", None) == 0
        if is_number and not isinstance(value, bool) and name not in ROW_KEYS:
            yield name, float(value)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error


def _refused(path: Path, words: str) -> RunError:
    error = RunError(
        f"{path}: metrics cannot be written ({words}). "
        "Free space there, then start the same command again: it goes on from the last checkpoint."
    )
    error.exit_code = ExitStatus.RETRY
    return error
