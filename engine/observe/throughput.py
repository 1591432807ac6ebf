"""Rates of a run: examples per second, step time, time waiting for data, FLOP/s, and their share of the peak.

Rates are measured between arrivals, the moments at which a result is known to be complete on the device. Time that the
loop spends on evaluations and hooks is subtracted by the caller and is in no rate.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engine.data.stages import NO_TIMES, STAGES, Times


@dataclass(frozen=True)
class _Arrival:
    step: int
    time_s: float
    wait_s: float
    times: Times


class Throughput:
    """Computes rates between arrivals. Not thread-safe."""

    def __init__(
        self,
        batch_size: int,
        flops_per_step: Callable[[bool], float | None] = lambda wait: None,
        hardware_flops_per_step: float | None = None,
        peak_flops: float | None = None,
    ):
        """
        Args:
            batch_size: examples per step, over all devices.
            flops_per_step: returns the model FLOPs per step, over all devices; None leaves out FLOP/s. Called when a
                rate is computed, with whether to wait until they are counted.
            hardware_flops_per_step: FLOPs that a step executes, over all devices; None leaves out HFU.
            peak_flops: peak FLOP/s of all devices for the data type of the computation; None leaves out MFU and HFU.
        """
        self._batch_size = batch_size
        self._flops_per_step = flops_per_step
        self._hardware_flops_per_step = hardware_flops_per_step
        self._peak_flops = peak_flops
        self._first: _Arrival | None = None  # first arrival of the attempt
        self._begin: _Arrival | None = None  # start of the current interval
        self._latest: _Arrival | None = None
        self._values: dict[str, float] = {}

    def arrived(self, step: int, time_s: float, wait_s: float, times: Times = NO_TIMES) -> None:
        """Records an arrival; the first one starts the measurement.

        Args:
            step: completed updates whose result has arrived.
            time_s: monotonic time of the arrival, minus the paused time so far.
            wait_s: total seconds so far that the training loop has waited for data.
            times: total seconds so far of each stage of reading, added up over the readers.
        """
        self._latest = _Arrival(step, time_s, wait_s, times)
        self._first = self._first or self._latest
        self._begin = self._begin or self._latest

    def restart(self) -> None:
        """Discards all arrivals, after a rollback to an earlier step."""
        self._first = self._begin = self._latest = None

    def values(self) -> dict[str, float]:
        """Returns the rates since the last call and starts the next interval.

        Without a new arrival (several rows in one dispatch) the last rates are returned again. Before the second
        arrival the result is empty. Waits until the model FLOPs are counted.

        Returns:
            `examples_per_s`, `step_time_s`, `data_wait` (fraction of the time, 0 to 1), `data_decode_s` and the like
            (seconds of each stage of reading for a step, added up over the readers), and, if known, `flop_per_s`, and
            `mfu` and `hfu` (model and hardware FLOP/s as fractions of the peak).
        """
        if rates := self._rates(self._begin, wait=True):
            self._begin, self._values = self._latest, rates
        return dict(self._values)

    def total(self) -> dict[str, float]:
        """Returns the same rates over the whole attempt, from the first arrival to the latest; does not wait."""
        return self._rates(self._first, wait=False)

    def _rates(self, begin: _Arrival | None, wait: bool) -> dict[str, float]:
        end = self._latest
        if begin is None or end is None or end.step == begin.step or end.time_s <= begin.time_s:
            return {}
        steps, seconds = end.step - begin.step, end.time_s - begin.time_s
        rates = {
            "examples_per_s": steps * self._batch_size / seconds,
            "step_time_s": seconds / steps,
            "data_wait": (end.wait_s - begin.wait_s) / seconds,
        }
        for name, before, after in zip(STAGES, begin.times, end.times, strict=True):
            if after > before:
                rates[f"data_{name}_s"] = (after - before) / steps
        per_s, peak = steps / seconds, self._peak_flops
        if (flops := self._flops_per_step(wait)) is not None:
            rates["flop_per_s"] = flops * per_s
            if peak is not None:
                rates["mfu"] = flops * per_s / peak
        if self._hardware_flops_per_step is not None and peak is not None:
            rates["hfu"] = self._hardware_flops_per_step * per_s / peak
        return rates
