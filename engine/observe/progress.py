"""Progress on the terminal: a progress bar, or one line per logged step, and messages.

Everything is written to one stream, standard error by default, so that standard output contains only results. The
stream never waits for its reader (`cluster/output.py`).
"""

import io
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from engine.base import formatting
from engine.base.errors import ConfigError
from engine.cluster import output
from engine.data.stages import STAGES
from engine.observe.writer import metrics_of
from engine.run.log import logger

if TYPE_CHECKING:
    from engine.observe.notebook import NotebookBar

MODES = ("auto", "bar", "lines", "none")

# Order of the values in a line: the loss, metrics of the Task, metrics of the engine.
_FIRST = ("loss",)
_LAST = ("learning_rate", "grad_norm", "skipped", "examples_per_s", "data_wait", "mfu", "device_peak_gib")
# They follow from other values, hardly change, or are for `convoy goodput`.
_HIDDEN = ("step_time_s", "flop_per_s", "hfu", "host_rss_gib", *(f"data_{name}_s" for name in STAGES))
MIN_PACE_S = 2.0  # the time left is not shown earlier
LINES_S = 5.0  # between two lines of a count
_SMALL_WAIT = 0.05  # a smaller share of time spent waiting for data is not shown


class Progress:
    """Progress of one attempt. A context manager; thread-safe.

    Warnings of the logger "convoy" are shown in every mode.
    """

    def __init__(self, mode: str, total_steps: int, start_step: int = 0, stream: TextIO | None = None):
        """
        Args:
            mode: `bar`; `lines`, without colours or carriage returns; `none`, which only writes the log; `auto`: a bar
                on a terminal and in a notebook, lines otherwise.
            total_steps: the last step of the run.
            start_step: the step at which this attempt starts.
            stream: output stream; standard error by default.

        Raises:
            ConfigError: an unknown mode.
        """
        if mode not in MODES:
            raise ConfigError(f"log.progress: {mode!r} is unknown. Allowed: {', '.join(MODES)}.")
        stream = sys.stderr if stream is None else stream
        if stream is None:  # a process without streams, such as a program with windows
            stream, mode = io.StringIO(), "none"
        self._stream: TextIO = output.nonblocking(stream)
        if mode == "auto":
            mode = "bar" if _is_terminal(self._stream) or shows_html() else "lines"
        self._total = total_steps
        self._lines = mode == "lines"
        self._shown = mode != "none"
        self._first: tuple[int, float] | None = None  # step and monotonic time of the first update
        self._bar = _bar(total_steps, start_step, self._stream) if mode == "bar" else None
        self._warnings = _Warnings(self._print)
        logger.addHandler(self._warnings)

    def phase(self, name: str) -> None:
        """Shows the phase in the bar: compiling, evaluating, ... The next update sets it back to training."""
        if self._bar is not None:
            self._bar.phase(name)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a logged step: moves the bar or prints a line.

        Args:
            step: completed updates.
            values: a row of metrics. The bar shows `loss` and `examples_per_s`, a line the text of `row_text`.
        """
        line = f"step {formatting.progress(step, self._total)}  {row_text(values)}{self._left(step)}"
        logger.info(line)
        if self._bar is not None:
            self._bar.update(step, values)
        elif self._lines:
            self._print(line)

    def message(self, text: str) -> None:
        """Prints a separate line, above the bar: the result of an evaluation, a checkpoint."""
        logger.info(text)
        if self._shown:
            self._print(text)

    def result(self, text: str) -> None:
        """Prints the summary at the end; in a notebook, whose cells show it as tables, only its first paragraph."""
        if self._bar is not None and shows_html():
            self._bar.print(text.partition("\n\n")[0])
        else:
            output.show(text)

    def close(self) -> None:
        """Stops updating and leaves the bar on the screen. Further calls do nothing."""
        logger.removeHandler(self._warnings)
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.print(text)
        else:
            self._stream.write(text + "\n")  # one call, so that lines of several threads are not mixed
            self._stream.flush()

    def _left(self, step: int) -> str:
        """Returns the time left at the pace since the first update, which excludes compilation.

        The first updates arrive together, since the loop dispatches ahead of the devices.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first_step, first_time = self._first
        if step <= first_step or step >= self._total or now - first_time < MIN_PACE_S:
            return ""
        return f"  left {formatting.duration((now - first_time) / (step - first_step) * (self._total - step))}"


class CountProgress:
    """Progress of work over a known number of items, on standard error: a bar on a terminal, lines elsewhere.

    Args:
        activity: what is done, such as "predicting".
        unit: what is counted, such as "examples".
        shown: False shows nothing.
        delay_s: nothing is shown before; work that ends by then shows nothing.
    """

    def __init__(self, activity: str, unit: str, shown: bool = True, delay_s: float = 0.0):
        self._activity, self._unit, self._shown = activity, unit, shown
        self._bar: _Bar | NotebookBar | None = None
        self._begin, self._next_line = time.monotonic(), 0.0
        self._show_at = self._begin + delay_s
        self.done = 0
        """Finished items."""

    def update(self, done: int, total: int) -> None:
        """Shows the number of finished items; a line at most every LINES_S seconds, and at the end."""
        self.done, now = done, time.monotonic()
        if not self._shown or now < self._show_at:
            return
        rate = f"{formatting.number(round(done / max(now - self._begin, 1e-9)))} {self._unit}/s"
        if self._bar is None and (_is_terminal(sys.stderr) or shows_html()):
            self._bar = _bar(total, 0, output.nonblocking(sys.stderr))
        if self._bar is not None:
            self._bar.count(done, self._activity, rate)
        elif done >= total or now >= self._next_line:
            self._next_line = now + LINES_S
            output.show(f"{self._activity}: {formatting.progress(done, total)} {self._unit}  {rate}")

    def __enter__(self) -> "CountProgress":
        return self

    def close(self) -> None:
        """Ends the bar; the work is finished."""
        if self._bar is not None:
            self._bar.close()
            self._bar, self._shown = None, False

    def __exit__(self, *exception) -> None:
        self.close()


class _Bar:
    """A progress bar on a terminal. Only this class imports rich, which takes 0.1 s."""

    def __init__(self, total: int, start: int, stream: TextIO):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self._console = Console(file=stream, force_terminal=True)
        self._progress = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # in 80 columns, the bar gives way to the texts
            TextColumn("[green]{task.completed:,}/{task.total:,}"),  # as `formatting.progress`
            TextColumn("[cyan]{task.fields[loss]}"),
            TextColumn("[green]{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
            refresh_per_second=4,  # each refresh takes milliseconds of Python from the training loop
            redirect_stdout=sys.stdout.isatty(),  # output that is redirected to a file stays in the file
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("starting", total=total, completed=start, loss="", rate="")
        self._progress.start()

    def phase(self, name: str) -> None:
        self._progress.update(self._task, description=name)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" in values:
            self._progress.update(self._task, loss=f"loss {formatting.number(values['loss'])}")
        if "examples_per_s" in values:
            rate = f"{formatting.number(round(values['examples_per_s']))} examples/s"
            self._progress.update(self._task, rate=rate)
        self._progress.update(self._task, completed=step, description="training")

    def count(self, done: int, description: str, rate: str) -> None:
        self._progress.update(self._task, completed=done, description=description, rate=rate)

    def print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


class _Warnings(logging.Handler):
    """Log handler that shows the warnings of the engine."""

    def __init__(self, show):
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._show(f"{record.levelname.lower()}: {record.getMessage()}")
        except Exception:
            self.handleError(record)


def row_text(row: Mapping[str, float]) -> str:
    """Returns a row as readable text: the loss and metrics of the Task, then metrics of the engine.

    Omits keys that every row has (step, attempt, time), a small `data_wait`, a `skipped` of 0, and values that are
    only useful in `metrics.jsonl`.
    """
    values = {name: value for name, value in metrics_of(row).items() if name not in _HIDDEN}
    if values.get("data_wait", 0) <= _SMALL_WAIT:
        values.pop("data_wait", None)
    if values.get("skipped") == 0:
        del values["skipped"]
    middle = [name for name in values if name not in _FIRST + _LAST]
    return "  ".join(_value_text(name, values[name]) for name in (*_FIRST, *middle, *_LAST) if name in values)


def _value_text(name: str, value: float) -> str:
    if name == "examples_per_s":
        return f"{formatting.number(round(value))} examples/s"
    if name in ("data_wait", "mfu"):
        return f"{name} {value:.0%}"
    return f"{name} {formatting.number(value)}"


def shows_html() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from engine.observe import notebook

    return notebook.shows_html()


def _bar(total: int, start: int, stream: TextIO) -> "_Bar | NotebookBar":
    if shows_html():
        from engine.observe.notebook import NotebookBar

        return NotebookBar(total, start)
    return _Bar(total, start, stream)


def _is_terminal(stream: TextIO) -> bool:
    return output.is_terminal(stream) and os.environ.get("TERM") not in (None, "dumb", "unknown")
