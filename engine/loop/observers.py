"""Observers of a run: objects of extension packages that receive its rows of training metrics.

The core does not import an extension. An observer is named by the dotted path of a function, which is imported once an
attempt has trained for LEAST_S, so that short runs do not pay for it.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

LEAST_S = 60.0
"""Seconds of steps after which an attempt is observed."""


class Observer(Protocol):
    """Watches one attempt of a run, on the primary."""

    def rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Receives rows of training metrics. The first call has all rows so far. Called in the thread of the writer."""
        ...

    def close(self, wait: bool) -> None:
        """Ends the observation; `wait` is False for a run that may have only seconds to end."""
        ...


type MakeObserver[Trainer] = Callable[[Trainer], Observer]
"""Returns the observer of an attempt from its trainer."""


class LateObserver[Trainer]:
    """Creates an observer after LEAST_S of steps and passes rows to it.

    Args:
        path: dotted path of a `MakeObserver`.
        trainer: the trainer of the attempt.
    """

    def __init__(self, path: str, trainer: Trainer):
        self._path, self._trainer = path, trainer
        self._rows: list[Mapping[str, float]] = []
        self._seconds, self._last = 0.0, 0
        self._observer: Observer | None = None

    def row(self, row: Mapping[str, float]) -> None:
        """Receives a row of training metrics. Called in the thread of the writer."""
        if self._observer is not None:
            self._observer.rows([row])
            return
        self._rows.append(row)
        step, step_s = int(row["step"]), row.get("step_time_s")
        if step_s is not None:  # the first row has no rates
            self._seconds += step_s * max(0, step - self._last)  # after a rollback, steps are repeated
        self._last = step
        if step_s is not None and self._seconds >= LEAST_S:
            make: MakeObserver[Trainer] = pkgutil.resolve_name(self._path)
            self._observer = make(self._trainer)
            self._observer.rows(self._rows)
            self._rows = []

    def close(self, wait: bool) -> None:
        """Ends the observation, as `Observer.close` does."""
        if self._observer is not None:
            self._observer.close(wait)
