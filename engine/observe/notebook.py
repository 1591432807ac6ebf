"""The progress bar of a notebook: an HTML element that is updated in place. It needs IPython and no widgets."""

import contextvars
import sys
import threading
import time
from collections.abc import Mapping
from html import escape

from engine.base import formatting
from engine.cluster.shutdown import RunThread

REFRESH_S = 0.25  # between two updates: each is a message to the browser
TICK_S = 1.0  # the time that the bar shows goes on while the step compiles, which takes minutes for a large model


def shows_html() -> bool:
    """Whether this process shows HTML: the kernel of a notebook, and no terminal of IPython."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and not any(cls.__name__ == "TerminalInteractiveShell" for cls in type(shell).__mro__)


class NotebookBar:
    """A progress bar below the cell of a notebook.

    Args:
        total: number of steps or items.
        start: how many are done at the start.
    """

    def __init__(self, total: int, start: int):
        from IPython.display import display

        self._total, self._start, self._done = total, start, start
        self._began, self._next = time.monotonic(), 0.0
        self._phase, self._loss, self._rate = "starting", "", ""
        handle = display(self, display_id=True)
        assert handle is not None  # it is None without display_id
        self._handle = handle
        self._closed = threading.Event()
        # The kernel keeps in a context variable to which cell an output belongs.
        in_cell, otherwise = contextvars.copy_context().run, "Until the next step, the bar shows an old time."
        RunThread(in_cell, "convoy-notebook-bar", (self._tick,), otherwise=otherwise).start()

    def phase(self, name: str) -> None:
        """Shows what is done now, such as "evaluating"."""
        self._phase = name
        self._refresh(always=True)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a step with the loss and the rate of a row of metrics."""
        if "loss" in values:
            self._loss = f"loss {formatting.number(values['loss'])}"
        if "examples_per_s" in values:
            self._rate = f"{formatting.number(round(values['examples_per_s']))} examples/s"
        self._done, self._phase = step, "training"
        self._refresh()

    def count(self, done: int, description: str, rate: str) -> None:
        """Shows the number of finished items."""
        self._done, self._phase, self._rate = done, description, rate
        self._refresh()

    def print(self, text: str) -> None:
        """Prints a line below the cell."""
        print(text)

    def close(self) -> None:
        """Shows the last state, which stays. Further calls do nothing."""
        if not self._closed.is_set():
            self._closed.set()
            self._refresh(always=True)

    def _tick(self) -> None:
        while not self._closed.wait(TICK_S):
            self._refresh()

    def _refresh(self, always: bool = False) -> None:
        now = time.monotonic()
        if always or now >= self._next:
            self._next = now + REFRESH_S
            self._handle.update(self)

    def __repr__(self) -> str:
        return "  ".join(self._texts())

    def _repr_html_(self) -> str:
        label = escape(self._phase)
        bar = f'<progress aria-label="{label}" value="{self._done}" max="{self._total}"></progress>'
        texts = "  ".join(f'<span style="white-space: nowrap">{escape(text)}</span>' for text in self._texts())
        style = "font-family: monospace; font-size: var(--jp-code-font-size, inherit); white-space: pre-wrap"
        return f'<div style="{style}">{bar}  {texts}</div>'

    def _texts(self) -> list[str]:
        texts = (self._phase, formatting.progress(self._done, self._total), self._loss, self._rate, self._times())
        return [text for text in texts if text]

    def _times(self) -> str:
        taken, done = time.monotonic() - self._began, self._done - self._start
        left = taken / done * (self._total - self._done) if done > 0 else 0
        return formatting.duration(taken) + (f", left {formatting.duration(left)}" if left else "")
