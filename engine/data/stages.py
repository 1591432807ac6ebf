"""Measures the time of the stages of reading: read, decode, transform, collate, transfer.

The reader starts a clock for each block of batches that a thread or worker process makes. The time of the block counts
as "read", except inside `with stage("decode"):` and the like. Stages may be nested: a moment counts for the innermost
one. Without a clock, as in another thread or in a notebook, `stage` measures nothing.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

STAGES = ("read", "decode", "transform", "collate", "transfer")
"""Stages in the order in which a batch passes through them. The last one is on the thread of the training loop."""

type Times = tuple[float, ...]
"""Seconds of each of the stages, in their order."""

NO_TIMES: Times = (0.0,) * len(STAGES)
_INDEX = {name: index for index, name in enumerate(STAGES)}


class _Clock(threading.local):
    """Clock of this thread: seconds by stage, the present stage (None: the clock stands still), and its begin."""

    def __init__(self) -> None:
        self.seconds = [0.0] * len(STAGES)
        self.stage: int | None = None
        self.since = 0.0

    def switch(self, stage: int | None) -> int | None:
        """Counts the time for another stage from now on; returns the stage before."""
        now, before = time.perf_counter(), self.stage
        if before is not None:
            self.seconds[before] += now - self.since
        self.stage, self.since = stage, now
        return before


_clock = _Clock()


class Stage:
    """Context manager that counts the time of its block for a stage; created by `stage`. May be nested."""

    __slots__ = ("_before", "_index")

    def __init__(self, index: int):
        self._index = index

    def __enter__(self) -> None:
        self._before = None if _clock.stage is None else _clock.switch(self._index)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            _clock.switch(self._before)


def stage(name: str) -> Stage:
    """Returns a context manager that counts the time of its block for a stage. It takes less than a microsecond.

        def __getitem__(self, index):
            data = self.files.read(index)
            with stage("decode"):
                return {"image": decode_jpeg(data)}

    Args:
        name: "read", "decode", "transform" or "collate".

    Raises:
        ValueError: the name is not one of `STAGES`.
    """
    index = _INDEX.get(name)
    if index is None:
        raise ValueError(f"stage({name!r}): allowed are {', '.join(STAGES)}.")
    return Stage(index)


class Recording:
    """Seconds by stage of the block of `recorded`; complete when the block ends."""

    times: Times = NO_TIMES


@contextmanager
def recorded() -> Iterator[Recording]:
    """Runs the clock of this thread in a block, from the stage "read" on."""
    recording = Recording()
    outer = _clock.switch(0)  # first, since the time until now belongs to the outer recording
    before, _clock.seconds = _clock.seconds, [0.0] * len(STAGES)
    try:
        yield recording
    finally:
        _clock.switch(outer)
        recording.times = tuple(_clock.seconds)
        _clock.seconds = before


def added(one: Sequence[float], two: Sequence[float]) -> Times:
    """Returns the sum of the times of two blocks."""
    return tuple([a + b for a, b in zip(one, two, strict=True)])
