"""The judge names a process that is persistently slower, with its reason, and no process of equally noisy ones."""

import re

import numpy as np
import pytest

from engine.loop.stragglers import judge
from engine.loop.stragglers.judge import DATA, DEVICE, HOOKS, HOST, RUN_DELAY, THROTTLED, Judge, Report

STEP_S = 0.1
STEPS = 5  # per window


# Seconds per step of each cause and of the CPU; DEVICE: seconds of a probe.
TYPICAL = {"cpu": 0.02, DATA: 0.01, HOOKS: 0.004, HOST: 0.004, RUN_DELAY: 0.02, THROTTLED: 0.0, DEVICE: 2e-4}


class Series:
    """Simulates the reports of processes that do the same work with noise.

    Args:
        count: number of processes.
        seed: of the noise.
        noise: standard deviation of the logarithm of each time.
    """

    def __init__(self, count: int, seed: int = 0, noise: float = 0.3):
        self._rng, self._noise = np.random.default_rng(seed), noise
        self._sums = {name: np.zeros(count) for name in TYPICAL}
        self._time, self._steps, self._late = 0.0, 0, np.zeros(count, int)
        self._count = count
        self.made_s: float | None = None  # seconds in which the readers make a batch; None: the wait for it

    def next(self, slow: int = -1, cause: str = DATA, extra: float = 0.0) -> dict[int, Report]:
        """Returns the reports after one more window, in which one process takes `extra` seconds per step more."""
        times = {
            name: typical * self._rng.lognormal(0, self._noise, (STEPS, self._count))
            for name, typical in TYPICAL.items()
        }
        if slow >= 0:
            times[cause][:, slow] += extra
        for name in self._sums:
            self._sums[name] += times[name].sum(0)
        self._time += STEPS * (STEP_S + (extra if slow >= 0 and cause != DEVICE else 0.0))
        self._steps += STEPS
        self._late += (times[DATA] > 0.02).sum(0)
        sums = {name: total.tolist() for name, total in self._sums.items()}
        return {
            i: Report(
                f"host{i}",
                self._time,
                self._steps,
                sums[DATA][i],
                sums[DATA][i] if self.made_s is None else self.made_s * self._steps,
                int(self._late[i]),
                sums[HOOKS][i],
                sums[HOST][i],
                sums["cpu"][i],
                sums[RUN_DELAY][i],
                sums[THROTTLED][i],
                self._steps,
                float(times[DEVICE][:, i].min()),
                i,
            )
            for i in range(self._count)
        }


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("count", [2, 3, 4, 32])
def test_no_process_of_equally_noisy_ones_is_named(count, noise, seed=0):
    series, found = Series(count, seed, noise), Judge(count, cpu_devices=True)
    for _ in range(300):
        found.update(series.next())
        assert found.slowest is None


SLOW = [
    (DATA, 0.035, "its data arrives "),
    (HOOKS, 0.04, "its hooks take "),
    (HOST, 0.04, "its host takes "),
    (RUN_DELAY, 0.1, "other programs take its cores: run delay "),
    (THROTTLED, 0.05, "its CPU limit throttles it "),
    (DEVICE, 6e-4, "device 2 takes "),
]


@pytest.mark.parametrize(("cause", "extra", "text"), SLOW, ids=[cause for cause, _, _ in SLOW])
@pytest.mark.parametrize("count", [3, 100])
def test_a_slow_process_is_named_within_ten_windows_with_its_cause(count, cause, extra, text):
    series, found = Series(count, seed=1), Judge(count, cpu_devices=True)
    for _ in range(20):
        found.update(series.next())
    for _ in range(judge.WINDOWS):
        found.update(series.next(2, cause, extra))
    assert found.slowest is not None
    assert (found.slowest.process, found.slowest.host, found.slowest.cause) == (2, "host2", cause)
    assert found.slowest.text.startswith(f"process 2 (host host2) is the slowest: {text}")


@pytest.mark.parametrize(("extra", "lost"), [(0.04, r"\d\d(\.\d)? ms"), (1.4, r"1\d\d\d ms")])
def test_lost_time_is_printed_without_an_exponent(extra, lost):
    slowest = judged(Series(4, noise=0.01), Judge(4, cpu_devices=True), 12, cause=HOOKS, extra=extra).slowest
    assert slowest is not None
    assert re.fullmatch(rf".* its hooks take {lost} longer per step", slowest.text)


def judged(series: Series, found: Judge, windows: int, slow: int = 2, cause: str = DATA, extra: float = 0.0) -> Judge:
    for _ in range(windows):
        found.update(series.next(slow, cause, extra))
    return found


def test_small_loss_is_named_only_if_it_lasts():
    series, found = Series(8, noise=0.1), Judge(8, cpu_devices=True)
    assert judged(series, found, 40, extra=0.015).slowest is None
    slowest = judged(series, found, 40, extra=0.015).slowest
    assert slowest is not None
    assert (slowest.process, slowest.cause) == (2, DATA)


def test_named_process_stays_named_until_its_loss_is_over():
    series, found = Series(4, noise=0.1), Judge(4, cpu_devices=True)
    named = judged(series, found, 12, extra=0.05).slowest
    assert named is not None
    assert judged(series, found, 30, extra=0.018).slowest is named  # less than is needed to name it
    assert judged(series, found, 5).slowest is named
    assert judged(series, found, 5).slowest is None


def test_process_that_loses_much_more_takes_the_place_of_the_named_one():
    series, found = Series(5, noise=0.1), Judge(5, cpu_devices=True)
    named = []
    for extra in [0.0] * 12 + [0.2] * 12:
        series.next(1, DATA, 0.08)
        found.update(series.next(3, DATA, extra))
        named.append(found.slowest and found.slowest.process)
    assert [process for process in dict.fromkeys(named) if process is not None] == [1, 3]


def test_process_that_waits_for_data_is_not_named_if_all_readers_are_equally_slow():
    """One process is behind by a hair and waits for its data. The others wait for that process."""
    series, found = Series(3, noise=0.1), Judge(3, cpu_devices=True)
    series.made_s = 0.06
    assert judged(series, found, 100, extra=0.05).slowest is None


def test_lack_of_cpu_time_counts_on_accelerators_only_with_a_delay_of_the_loop():
    series, found = Series(3, noise=0.1), Judge(3, cpu_devices=False)
    assert judged(series, found, 100, cause=THROTTLED, extra=0.08).slowest is None
    for _ in range(12):
        series.next(2, HOST, 0.05)
        found.update(series.next(2, THROTTLED, 0.08))
    assert found.slowest is not None
    assert found.slowest.cause == THROTTLED


def test_lost_time_is_estimated_by_process_and_cause():
    series, found = Series(3, noise=0.1), Judge(3, cpu_devices=True)
    judged(series, found, 40, extra=0.1)
    (((name, cause), seconds),) = found.lost_s.items()
    assert (name, cause) == ("process 2 (host host2)", DATA)
    assert seconds == pytest.approx(30 * STEPS * 0.1, rel=0.1)


def test_processes_with_different_windows_are_judged_once_all_have_new_steps():
    series, found = Series(2, noise=0.1), Judge(2, cpu_devices=True)
    first = series.next()
    found.update({0: first[0]})
    found.update(first)
    later = series.next()
    for _ in range(50):
        found.update({0: later[0], 1: first[1]})
    assert found.slowest is None
