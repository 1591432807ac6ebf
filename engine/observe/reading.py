"""Says in a sentence whether reading data slows down a run, which stage is the slowest, and what would help."""

from collections.abc import Mapping
from typing import NamedTuple

from engine.base.host import usable_cores
from engine.data.stages import STAGES

LEAST_WAIT = 0.01  # a smaller share of waiting needs no advice
BUSY = 0.7  # share of the time; readers that are less busy wait for the loop, so more of them would not help


class Reading(NamedTuple):
    """How the readers of a run have spent their time."""

    wait: float
    """Share of the time in which the loop waited for data."""
    seconds: Mapping[str, float]
    """Stage -> seconds, added up over the readers."""
    wall_s: float
    """Seconds in which the loop waited or ran steps."""
    readers: int
    """Number of threads or worker processes."""
    cores: int
    """Number of cores that the process may use."""

    @classmethod
    def of(cls, rates: Mapping[str, float], readers: int) -> "Reading":
        """Returns the reading of a run with these rates (`throughput.py`), on the cores of this process."""
        seconds = {name: rates.get(f"data_{name}_s", 0.0) for name in STAGES}
        return cls(rates["data_wait"], seconds, rates["step_time_s"], readers, usable_cores())

    def shares_text(self) -> str:
        """Returns the stages of the readers and their shares, the largest first; "" without times."""
        return ", ".join(f"{name} {share:.0%}" for name, share in self._shares())

    def _shares(self) -> list[tuple[str, float]]:
        own = {name: self.seconds.get(name, 0.0) for name in STAGES[:-1]}
        total = sum(own.values())
        shares = [(name, seconds / total) for name, seconds in own.items() if seconds > 0]
        return sorted(shares, key=lambda pair: -pair[1])

    def sentence(self) -> str:
        """Returns the slowest stage and advice; "" if the loop hardly waits for data or nothing was measured."""
        shares = self._shares()
        if self.wait < LEAST_WAIT or not shares or self.wall_s <= 0:
            return ""
        name, share = shares[0]
        busy = min(1.0, sum(self.seconds.get(name, 0.0) for name in STAGES[:-1]) / (self.readers * self.wall_s))
        return (
            f"waits for data {self.wait:.0%} of the time: {name} takes {share:.0%} of the readers' time; "
            f"{self._advice(name, busy)}"
        )

    def _advice(self, name: str, busy: float) -> str:
        if busy < BUSY:
            return f"the readers are busy {busy:.0%} of the time; a larger data.prefetch would help"
        if name == "read" and self.readers >= self.cores:
            return "more data.threads or faster storage would help"
        if self.readers < self.cores:
            return "more workers would help (data.workers)"
        # Threads that hold the GIL look busy, although they use one core together.
        return f"worker processes (data.workers=auto), a cheaper {name} or more cores than {self.cores} would help"
