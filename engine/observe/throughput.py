"""Rates of a run: examples and steps per second, time lost to data, FLOP/s and their share of the peak (MFU).

Rates are taken between arrivals, the moments at which a result is known to be complete on the device. Time that the
loop spends on something else (evaluations, hooks) is paused time and counts in no rate.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class _Arrival:
    step: int
    time_s: float
    wait_s: float


class Throughput:
    """Rates between arrivals. It only computes; one thread at a time calls it."""

    def __init__(self, batch_size: int, flops_per_step: float | None = None, peak_flops: float | None = None):
        """
        Args:
            batch_size: examples of one step, over all devices.
            flops_per_step: FLOPs of one step, over all devices; None leaves FLOP/s out.
            peak_flops: FLOP/s of all devices together, for the dtype that is computed in; None leaves MFU out.
        """
        self._batch_size = batch_size
        self._flops_per_step = flops_per_step
        self._peak_flops = peak_flops
        self._first: _Arrival | None = None  # of the attempt
        self._begin: _Arrival | None = None  # of the interval
        self._latest: _Arrival | None = None
        self._values: dict[str, float] = {}

    def arrived(self, step: int, time_s: float, wait_s: float) -> None:
        """Takes note of a result; the first one starts the clock.

        Args:
            step: completed updates whose result has arrived.
            time_s: monotonic clock at the arrival, less what was paused until then.
            wait_s: seconds that the loop has waited for host data until then.
        """
        self._latest = _Arrival(step, time_s, wait_s)
        self._first = self._first or self._latest
        self._begin = self._begin or self._latest

    def restart(self) -> None:
        """Begins anew: the run goes on from an earlier step, and time up to here counts in no rate."""
        self._first = self._begin = self._latest = None

    def values(self) -> dict[str, float]:
        """Returns the rates since the last call and begins the next interval.

        Without a new arrival (several rows in one dispatch) the last rates are returned again, and nothing before
        there are two arrivals.

        Returns:
            `examples_per_s`, `step_time_s`, `data_wait` (fraction of the time, 0 to 1), and where known `flop_per_s`
            and `mfu` (fraction of the peak).
        """
        if rates := self._rates(self._begin):
            self._begin, self._values = self._latest, rates
        return dict(self._values)

    def total(self) -> dict[str, float]:
        """Returns the same rates over the whole attempt, from its first arrival to its latest."""
        return self._rates(self._first)

    def _rates(self, begin: _Arrival | None) -> dict[str, float]:
        end = self._latest
        if begin is None or end is None or end.step == begin.step or end.time_s <= begin.time_s:
            return {}
        steps, seconds = end.step - begin.step, end.time_s - begin.time_s
        rates = {
            "examples_per_s": steps * self._batch_size / seconds,
            "step_time_s": seconds / steps,
            "data_wait": (end.wait_s - begin.wait_s) / seconds,
        }
        if self._flops_per_step is not None:
            rates["flop_per_s"] = self._flops_per_step * steps / seconds
            if self._peak_flops is not None:
                rates["mfu"] = rates["flop_per_s"] / self._peak_flops
        return rates
