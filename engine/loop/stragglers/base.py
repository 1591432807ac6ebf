"""What the loop reports while it looks for the process that slows down a run.

A run of a single process uses `Stragglers`, which measures nothing. That of several processes is in `monitor.py`.
"""

from typing import Protocol, Self


class FeedTimes(Protocol):
    """What a feed states of its times so far."""

    @property
    def wait_s(self) -> float:
        """Seconds that it has waited for data."""
        ...

    @property
    def made_s(self) -> float:
        """Seconds in which its readers have made the batches."""
        ...


class Stragglers:
    """Receives what the loop does. This one, of a run of a single process, measures nothing. A context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def begin(self, step: int) -> None:
        """Called when the loop starts at `step`, with a new feed."""

    def resume(self) -> None:
        """Called when the host begins its work for the next dispatch: after a dispatch, and after events."""

    def before_dispatch(self, step: int, count: int, feed: FeedTimes, arrived_at: float) -> None:
        """Called when the batches of a dispatch are ready.

        Args:
            step: first step of the dispatch.
            count: number of its steps.
            feed: gives the batches.
            arrived_at: monotonic time at which the latest result has arrived.
        """

    def report(self, step: int) -> None:
        """Reports a change of the slowest process, on the primary. Called by the loop, takes nanoseconds otherwise."""
