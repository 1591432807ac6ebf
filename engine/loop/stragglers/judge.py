"""Decides which process slows down the run, and why, from the reports of all processes.

All processes have the same step time, because each step waits for the slowest. So the judge compares what each process
does by itself: the waits for data, the work of the host, CPU time that it does not get, and the duration of the probe.
A process is named if it loses time against the median of the others in most of the latest windows.
"""

import statistics
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

WINDOWS: Final = 10  # latest windows that count
NAMED: Final = 9  # a process with so many windows with a small loss is named, if its loss over all windows is not small
CLEARED: Final = 3  # with so few windows with a small loss, it is not named any more
REASON: Final = 5  # a cause of so many windows with a small loss may be the reason that is named
LONG: Final = 80  # latest windows in which a small loss counts
LONG_NAMED: Final = 64  # a process with so many of the LONG windows with a small loss is named
SMALL: Final = 0.5  # a small loss, as a share of the least loss
LEAST_S: Final = 5e-4  # shorter excess per step is noise of the host, or the writing of the primary
SWITCH: Final = 2.0  # another process is named if it loses so many times more

THROTTLED, RUN_DELAY, DATA, HOOKS, HOST, DEVICE = "throttled", "run delay", "data", "hooks", "host", "device"
# Cause -> the least loss that counts, as a share of the time. Run delays and probes differ most between equals.
LEAST_LOSS: Final = {THROTTLED: 0.2, RUN_DELAY: 0.5, DATA: 0.2, HOOKS: 0.2, HOST: 0.2, DEVICE: 0.6}
CPU_CAUSES: Final = (THROTTLED, RUN_DELAY)  # they explain the other causes, so they are named first


class Report(NamedTuple):
    """What a process has measured since the start of the loop; sums, except for the last two."""

    host: str
    time_s: float
    steps: int
    data_s: float  # waits for data
    made_s: float  # time in which the readers, working in parallel, have made the batches
    late_steps: int  # steps with such a wait
    hooks_s: float
    host_s: float  # time from the arrival of a result to the next dispatch, without waits for data and hooks
    cpu_s: float
    delay_s: float  # ready to run, but without a core; summed over the threads
    throttled_s: float  # stopped by a CPU limit; summed over the cores
    probes: int
    probe_s: float  # median duration of the probes since the previous report
    device: int  # the slowest device in the latest of them


class ReportWindow(NamedTuple):
    """What a process measured between two reports."""

    steps: int
    step_s: float
    late_steps: int
    made_s: float
    """Seconds per step in which the readers have made the batches."""
    values: Mapping[str, float | None]
    """Cause -> seconds per step, or a share of the time, or seconds of a probe; None: not measured."""


class Slowest(NamedTuple):
    """The process that slows down the run."""

    process: int
    host: str
    cause: str
    text: str
    """A sentence without the period."""

    @property
    def name(self) -> str:
        """The process and its host."""
        return f"process {self.process} (host {self.host})"


def window(before: Report, after: Report) -> ReportWindow:
    """Returns what happened between two reports of a process; `after` has more steps."""
    steps, seconds = after.steps - before.steps, max(1e-6, after.time_s - before.time_s)
    cpu_s, delay_s = after.cpu_s - before.cpu_s, after.delay_s - before.delay_s
    throttled_s = after.throttled_s - before.throttled_s
    values = {
        THROTTLED: _share(throttled_s, cpu_s, seconds),
        RUN_DELAY: _share(delay_s, cpu_s, seconds),
        DATA: (after.data_s - before.data_s) / steps,
        HOOKS: (after.hooks_s - before.hooks_s) / steps,
        HOST: (after.host_s - before.host_s) / steps,
        DEVICE: after.probe_s if after.probes > before.probes else None,
    }
    made_s = (after.made_s - before.made_s) / steps
    return ReportWindow(steps, seconds / steps, after.late_steps - before.late_steps, made_s, values)


def _share(lost_s: float, cpu_s: float, seconds: float) -> float:
    """Returns the lost share of the time in which threads were ready to run; 0 if the loss is short."""
    return min(0.999, lost_s / (lost_s + cpu_s)) if lost_s >= 0.1 * seconds else 0.0


def losses(cause: str, windows: Mapping[int, ReportWindow]) -> dict[int, float]:
    """Returns by process the share of its time that it loses against the median of the others.

    Processes in which the cause was not measured are left out.
    """
    values, found = _measured(cause, windows), {}
    for process, (excess, median) in excesses(values).items():
        if cause in CPU_CAUSES:  # without the lost share, the time is 1 - share: compare the slowdowns
            found[process] = excess / (1 - median)
        elif cause == DEVICE:
            found[process] = excess / values[process] if values[process] else 0.0
        else:
            found[process] = excess / windows[process].step_s if excess >= LEAST_S else 0.0
    if cause == DATA:
        # Where data limits all processes, one waits, and the others wait for it, although it is hardly slower.
        for process, (excess, _) in excesses({process: w.made_s for process, w in windows.items()}).items():
            found[process] = min(found[process], max(0.0, excess) / windows[process].step_s)
    return found


def excesses(values: Mapping[int, float]) -> dict[int, tuple[float, float]]:
    """Returns for each value its excess over the median of the other values, and that median."""
    if len(values) < 2:
        return {process: (0.0, value) for process, value in values.items()}
    order = sorted(values, key=values.__getitem__)
    ranked = [values[process] for process in order]
    low, high = (len(values) - 2) // 2, (len(values) - 1) // 2  # the middle of the others, whose ranks shift by one
    found = {}
    for rank, process in enumerate(order):
        median = (ranked[low + (rank <= low)] + ranked[high + (rank <= high)]) / 2
        found[process] = (values[process] - median, median)
    return found


class Judge:
    """Judges the reports of all processes. Its time per window grows with n log n for n processes.

    Args:
        count: number of processes.
        cpu_devices: whether the devices are CPUs. A lack of CPU time then slows down the step itself. Otherwise it
            counts only together with late data, slow hooks or a slow host.
    """

    def __init__(self, count: int, cpu_devices: bool):
        self._count, self._cpu_devices = count, cpu_devices
        self._reports: deque[Mapping[int, Report]] = deque(maxlen=WINDOWS + 1)  # by process
        self._votes: dict[tuple[int, str], int] = {}  # process and cause -> a bit per window: 1 for a small loss
        self.slowest: Slowest | None = None
        """The process that slows down the run."""
        self.lost_s: dict[tuple[str, str], float] = {}
        """Estimated seconds that the run has lost so far, by the name of the process and the cause."""

    def update(self, reports: Mapping[int, Report]) -> None:
        """Receives the latest report of each process. A window ends once every process has new steps."""
        before = self._reports[-1] if self._reports else {}
        if len(reports) < self._count or any(reports[p].steps <= last.steps for p, last in before.items()):
            return
        self._reports.append(reports)
        if not before:
            return
        windows = _windows(before, reports)
        self._vote(windows)
        self._choose()
        if (slowest := self.slowest) is not None:
            loss, w = losses(slowest.cause, windows).get(slowest.process, 0.0), windows[slowest.process]
            key = (slowest.name, slowest.cause)
            self.lost_s[key] = self.lost_s.get(key, 0.0) + max(0.0, loss) * w.step_s * w.steps

    def _vote(self, windows: Mapping[int, ReportWindow]) -> None:
        found = {cause: losses(cause, windows) for cause in LEAST_LOSS}
        for cause, by_process in found.items():
            for process, loss in by_process.items():
                if cause in CPU_CAUSES and not self._cpu_devices:
                    own = [found[c].get(process, 0.0) >= SMALL * LEAST_LOSS[c] for c in (DATA, HOOKS, HOST)]
                    loss = loss if any(own) else 0.0
                votes = self._votes.pop((process, cause), 0) << 1 | (loss >= SMALL * LEAST_LOSS[cause])
                if votes := votes & (1 << LONG) - 1:
                    self._votes[process, cause] = votes

    def _recent(self, process: int, cause: str, windows: int = WINDOWS) -> int:
        """Returns in how many of the latest windows a process had a small loss by a cause."""
        return (self._votes.get((process, cause), 0) & (1 << windows) - 1).bit_count()

    def _choose(self) -> None:
        """Sets `slowest`. A named process stays named until its loss is over, or another one loses much more."""
        current = self.slowest
        if current is not None and max(self._recent(current.process, cause) for cause in LEAST_LOSS) <= CLEARED:
            current = self.slowest = None
        suspects = [key for key in self._votes if self._recent(*key) >= NAMED or self._recent(*key, LONG) >= LONG_NAMED]
        if not suspects:
            return
        windows = self._latest_windows()
        found = {cause: losses(cause, windows) for cause in LEAST_LOSS}

        def loss(process: int, cause: str) -> float:
            return found[cause].get(process, 0.0) if self._recent(process, cause) >= REASON else 0.0

        candidates = set()
        for process, cause in suspects:
            small = self._recent(process, cause, LONG) >= LONG_NAMED
            if loss(process, cause) >= LEAST_LOSS[cause] * (SMALL if small else 1.0):
                candidates.add(process)
        if not candidates:
            return
        total = {p: max(loss(p, cause) for cause in LEAST_LOSS) for p in candidates}
        process = max(sorted(candidates), key=total.__getitem__)
        if current is not None and total[process] < SWITCH * max(loss(current.process, cause) for cause in LEAST_LOSS):
            process = current.process
        by_cause = {cause: loss(process, cause) for cause in LEAST_LOSS}
        cause = next((cause for cause in CPU_CAUSES if by_cause[cause] > 0), max(by_cause, key=by_cause.__getitem__))
        if current is None or process != current.process or self._replaces(process, cause, current.cause):
            named = Slowest(process, self._reports[-1][process].host, cause, "")
            self.slowest = named._replace(text=f"{named.name} is the slowest: {self._text(process, cause, windows)}")

    def _latest_windows(self) -> dict[int, ReportWindow]:
        """Returns the latest WINDOWS as one window."""
        found = _windows(self._reports[0], self._reports[-1])
        for process, w in found.items():
            probes = {report.probes: report.probe_s for r in self._reports if (report := r[process]).probes}
            if w.values[DEVICE] is not None:
                found[process] = w._replace(values={**w.values, DEVICE: statistics.median(probes.values())})
        return found

    def _replaces(self, process: int, cause: str, former: str) -> bool:
        """Whether to name this cause instead of the former one, because that is over, or this one explains it."""
        if self._recent(process, former) <= CLEARED:
            return cause != former
        explains = cause in CPU_CAUSES and former not in CPU_CAUSES
        return explains and self._recent(process, cause) >= NAMED

    def _text(self, process: int, cause: str, windows: Mapping[int, ReportWindow]) -> str:
        own, values = windows[process], _measured(cause, windows)
        value, (excess, others) = values.get(process, 0.0), excesses(values).get(process, (0.0, 0.0))
        more_ms, late_ms = _milliseconds(excess), _milliseconds(excess * own.steps / max(1, own.late_steps))
        device = self._reports[-1][process].device
        return {
            THROTTLED: f"its CPU limit throttles it {value:.0%} of the time (the others {others:.0%})",
            RUN_DELAY: f"other programs take its cores: run delay {value:.0%} (the others {others:.0%})",
            DATA: f"its data arrives {late_ms} late in {own.late_steps} of {own.steps} steps",
            HOOKS: f"its hooks take {more_ms} longer per step",
            HOST: f"its host takes {more_ms} longer per step, from a result to the next dispatch",
            DEVICE: f"device {device} takes {value / others if others else 1:.2g} times the median in a probe",
        }[cause]


def _windows(before: Mapping[int, Report], after: Mapping[int, Report]) -> dict[int, ReportWindow]:
    return {process: window(before[process], report) for process, report in after.items()}


def _measured(cause: str, windows: Mapping[int, ReportWindow]) -> dict[int, float]:
    return {process: value for process, w in windows.items() if (value := w.values[cause]) is not None}


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.1 else f"{1e3 * seconds:.0f} ms"
