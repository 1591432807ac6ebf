"""Records what `convoy plan` predicts for the mesh and the settings of a run, and what the run measures: `plan.json`.

The primary predicts once in a run, in a thread, when an attempt has trained for a minute (`loop/observers.py`). To
predict is to trace the loss several times, which takes seconds for a large model. After a minute it is a few percent of
the run at most, it does not delay the first step, and short runs leave it out. At the end of a run, all hosts would
wait for it, and runs that are preempted or killed would have no record. A resume takes the prediction from the file.
"""

import dataclasses
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.base import json_text
from engine.base.errors import ConvoyError, RunError
from engine.base.formatting import seconds_text, size_text
from engine.base.json_text import now
from engine.base.user_errors import describe
from engine.cluster.shutdown import RunThread
from engine.run.directory import RunDirectory
from engine.run.log import logger

WAIT_S = 60.0
"""Seconds that the end of a run waits for the prediction, which the last minute may have begun."""
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the cost model of a plan says of a run.

    Attributes:
        candidate: the mesh and the settings as text: "data=8, remat=full, float32".
        settings: config field -> value, of the mesh and the settings.
        rows: rows of the global batch.
        machine: the devices, their rates, and where the rates are from (`planning/machine.py`).
        seconds: part -> seconds of a step.
        memory: part -> bytes of a device.
        problem: why there is no prediction, a sentence; "" if there is one.
    """

    candidate: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: int = 0
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, float] = dataclasses.field(default_factory=dict)
    problem: str = ""

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def bytes(self) -> float:
        """Bytes of a device."""
        return sum(self.memory.values())

    @property
    def margin(self) -> float:
        """Stated relative error of the time."""
        return self.machine.get("margin", 0.0)

    def has_answer_for(self, other: "Predicted") -> bool:
        """Whether this is the prediction for the settings and the machine of `other`."""
        mine, theirs = ((x.candidate, x.settings, x.rows, x.machine) for x in (self, other))
        return not self.problem and json_text.dumps(mine) == json_text.dumps(theirs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What an attempt measured.

    Attributes:
        step_s: median of the mean step time in the rows of metrics, without compilation, evaluations and hooks.
        data_wait: median share of this time in which the loop waited for data.
        seconds: time of all measured steps.
        bytes: memory that the compiled step needs on a device, by XLA's analysis; None if it is unknown.
        peak_bytes: highest peak of a device of process 0 so far; None on a platform that does not report it.
        attempt: number of the attempt.
        time: time of the measurement, ISO text in UTC.
    """

    step_s: float
    data_wait: float
    seconds: float
    bytes: int | None
    peak_bytes: int | None
    attempt: int
    time: str


@dataclasses.dataclass(frozen=True)
class PlanFile:
    """The content of the file."""

    predicted: Predicted
    measured: Measured

    @property
    def time_error(self) -> float | None:
        """Predicted time divided by the measured one, minus 1; None without a prediction."""
        return None if self.predicted.problem else self.predicted.step_s / self.measured.step_s - 1

    @property
    def memory_error(self) -> float | None:
        """The same of the memory; None also if the memory of the compiled step is unknown."""
        if self.predicted.problem or not self.measured.bytes:
            return None
        return self.predicted.bytes / self.measured.bytes - 1

    def numbers(self) -> dict[str, float]:
        """Returns the numbers that are shown, by name in the file."""
        predicted, measured = self.predicted, self.measured
        found = {f"predicted.seconds.{name}": value for name, value in predicted.seconds.items()}
        found |= {f"predicted.memory.{name}": value for name, value in predicted.memory.items()}
        found |= {"predicted.machine.margin": predicted.margin, "measured.step_s": measured.step_s}
        return found | {f"measured.{x}": y for x in ("bytes", "peak_bytes") if (y := getattr(measured, x)) is not None}

    def __str__(self) -> str:
        predicted, measured = self.predicted, self.measured
        took = f"measured {seconds_text(measured.step_s)} a step"
        if self.time_error is None:
            return f"plan: {took}, not predicted: {predicted.problem}"
        text = (
            f"plan: predicted {seconds_text(predicted.step_s)} a step +- {predicted.margin:.0%}, {took} "
            f"(error {self.time_error:+.0%})"
        )
        if self.memory_error is not None and measured.bytes:
            text += (
                f"; predicted {size_text(predicted.bytes)} of a device, compiled {size_text(measured.bytes)} "
                f"(error {self.memory_error:+.0%})"
            )
        return text + (f", peak {size_text(measured.peak_bytes)}" if measured.peak_bytes else "")


type Predict = Callable[[Predicted | None], Predicted]
"""Returns the prediction for a run; the argument is that of an earlier attempt, which is returned if it still holds."""


class PlanRecord:
    """Measures one attempt from its rows of metrics, predicts in a thread, and writes the file.

    A failure is a line in the log; it never ends the run.

    Args:
        predict: predicts; called once at most, in the thread.
        device_bytes: returns the memory that the compiled step needs on a device; None if it is unknown.
        directory: run directory.
        say: called with sentences for the user.
    """

    def __init__(
        self,
        predict: Predict,
        device_bytes: Callable[[], int | None],
        directory: RunDirectory,
        say: Callable[[str], None],
    ):
        self._predict, self._device_bytes, self._directory, self._say = predict, device_bytes, directory, say
        self._lock = threading.Lock()  # guards the fields below: rows arrive while the thread writes
        self._steps: list[tuple[float, float]] = []  # row -> mean time of a step, share of waiting for data
        self._seconds, self._peak_gib, self._last = 0.0, 0.0, 0
        self._predicted: Predicted | None = None
        self._abandoned = False
        # No daemon: the exit of Python would stop such a thread inside JAX, which crashes the process.
        self._thread = RunThread(self._run, "plan", daemon=False, otherwise="plan.json has no prediction.")

    def rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Adds rows of training metrics, and starts the prediction. Called in the thread of the writer."""
        with self._lock:
            for row in rows:
                step, step_s = int(row["step"]), row.get("step_time_s")
                if step_s is not None:  # the first row has no rates
                    self._steps.append((step_s, row.get("data_wait", 0.0)))
                    self._seconds += step_s * max(0, step - self._last)  # after a rollback, steps are repeated
                self._last, self._peak_gib = step, row.get("device_peak_gib", 0.0)
        if self._thread.ident is None:
            self._thread.start()

    def close(self, wait: bool) -> None:
        """Writes and reports the final measurement, if the prediction is known.

        Args:
            wait: wait for the prediction, for WAIT_S at most; False for a run that may have only seconds to end.
        """
        if self._thread.ident is None:
            return
        if wait:
            self._thread.join(WAIT_S)
        self._abandoned = self._thread.is_alive()
        if not self._abandoned and (plan := self._write()) is not None:
            self._say(str(plan))

    def _run(self) -> None:
        try:
            found = self._earlier()
            self._predicted = self._predict(None if found is None else found.predicted)
        except (Exception, SystemExit) as error:  # the author's code may raise anything; the run then has no prediction
            self._predicted = Predicted(problem=describe(error))
        if not self._abandoned:
            self._write()  # now: the run may be killed

    def _earlier(self) -> PlanFile | None:
        """Returns what an earlier attempt has stored; None also for a damaged file, which this attempt replaces."""
        try:
            return read(self._directory.plan)
        except RunError as error:
            logger.warning("%s", error)
            return None

    def _write(self) -> PlanFile | None:
        """Writes what is known so far; returns it, or None if it cannot be written."""
        assert self._predicted is not None
        with self._lock:
            times, waits = zip(*self._steps, strict=True)
            seconds, peak_gib = self._seconds, self._peak_gib
        measured = Measured(
            step_s=statistics.median(times),
            data_wait=statistics.median(waits),
            seconds=seconds,
            bytes=self._compiled_bytes(),
            peak_bytes=round(peak_gib * GIB) or None,
            attempt=self._directory.attempt,
            time=now(),
        )
        plan = PlanFile(self._predicted, measured)
        try:
            self._directory.lease.replace_text(self._directory.plan, to_text(plan))
        except ConvoyError as error:  # a full disk, or another job has taken over
            logger.warning("%s", error)
            return None
        return plan

    def _compiled_bytes(self) -> int | None:
        try:
            return self._device_bytes()
        except Exception:  # a compiler without this analysis
            return None


def to_text(plan: PlanFile) -> str:
    """Returns the content of the file as text. It has the totals as well."""
    predicted = {"step_s": plan.predicted.step_s, "bytes": plan.predicted.bytes, **dataclasses.asdict(plan.predicted)}
    return json_text.dumps({"predicted": predicted, "measured": dataclasses.asdict(plan.measured)}, indent=1) + "\n"


def read(path: Path) -> PlanFile | None:
    """Returns the content of a file; None if it is missing.

    Raises:
        RunError: it is damaged.
    """
    try:
        parts = json_text.read(path, {"predicted": _PREDICTED, "measured": _MEASURED})
        plan = PlanFile(Predicted(**parts["predicted"]), Measured(**parts["measured"]))
        for name, value in plan.numbers().items():
            if not 0 <= value < _LARGEST or (name == "measured.step_s" and not value):  # also NaN
                raise json_text.Damaged(f"{name}: found {value:g}, expected a positive number below {_LARGEST:g}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: is damaged ({json_text.reason(error)}), so what was predicted and measured is unknown. Remove "
            "this file: the next attempt that trains for a minute writes it again."
        ) from error
    return plan


_LARGEST = 1e18
_PREDICTED = {
    "candidate?": str, "settings?": {str: object}, "rows?": int, "seconds?": {str: float}, "memory?": {str: float},
    "machine?": {"margin?": float, "text?": str, "source?": str, str: object}, "problem?": str,
}  # fmt: skip
_MEASURED = {
    "step_s": float, "data_wait": float, "seconds": float, "bytes": int | None, "peak_bytes": int | None,
    "attempt": int, "time": str,
}  # fmt: skip
