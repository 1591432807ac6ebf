"""Cells of a notebook in the shell of IPython, in this process, and what they print and display.

The shell is that of Jupyter's kernel, without the kernel's process and messages.
"""

import atexit
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from traitlets.config import Config

type Output = dict[str, Any]
"""An output of a cell, as a notebook stores it."""


class _Shell(InteractiveShell):
    """A shell whose figures need no window."""

    def enable_gui(self, gui=None):
        """Does nothing, as for inline figures in Jupyter."""


class Shell:
    """Runs cells; `displayed` lists what the last cell has displayed, and `printed` is what it has printed."""

    def __init__(self, folder: str):
        config = Config({"HistoryManager": {"enabled": False}})
        self._shell = _Shell.instance(config=config, ipython_dir=folder)
        publisher = CapturingDisplayPublisher()
        publisher.outputs = self.displayed = []
        self.printed = ""
        self._shell.display_pub = publisher
        self._shell.display_trap.hook = CapturingDisplayHook(self._shell, self.displayed)

    def plot(self) -> None:
        """Makes cells show their figures of matplotlib."""
        self._shell.enable_matplotlib("inline")
        select_figure_formats(self._shell, {"png"})

    def close(self) -> None:
        """Gives `__main__` back to this process."""
        atexit.unregister(self._shell.atexit_operations)
        self._shell.atexit_operations()
        self._shell.restore_sys_module_state()
        _Shell.clear_instance()

    def run(self, source: str) -> list[Output]:
        """Runs a cell and returns its outputs. Raises the error of the cell."""
        self.displayed.clear()
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as errors:
            result = self._shell.run_cell(source)
        self.printed = printed.getvalue()
        result.raise_error()
        streams = (("stdout", printed.getvalue()), ("stderr", errors.getvalue()))
        streams = [{"output_type": "stream", "name": name, "text": lines(text)} for name, text in streams if text]
        return [*streams, *self._stored()]

    def _stored(self) -> list[Output]:
        """Returns what was displayed; an update replaces what it updates."""
        found, places = [], {}
        for shown in self.displayed:
            richer = {kind: text for kind, text in shown["data"].items() if kind != "text/plain"}
            data = {kind: lines(text) for kind, text in (richer or shown["data"]).items()}
            output = {"output_type": "display_data", "data": data, "metadata": {}}
            name = (shown.get("transient") or {}).get("display_id", len(places))
            if shown.get("update"):
                found[places[name]] = output
            else:
                places[name] = len(found)
                found.append(output)
        return found


@contextlib.contextmanager
def notebook_shell() -> Iterator[Shell]:
    """Makes this process show HTML, as the kernel of a notebook."""
    with tempfile.TemporaryDirectory() as folder:
        shell = Shell(folder)
        try:
            yield shell
        finally:
            shell.close()


def run_notebook(file: Path) -> dict[str, Any]:
    """Runs a notebook in the current folder and returns it with its outputs."""
    import matplotlib

    notebook = json.loads(file.read_text(encoding="utf-8"))
    backend = matplotlib.get_backend()
    with notebook_shell() as shell:
        shell.plot()
        try:
            for number, cell in enumerate(code_cells(notebook), 1):
                cell["execution_count"], cell["outputs"] = number, shell.run("".join(cell["source"]))
        finally:
            matplotlib.use(backend)
    return notebook


def main(files: list[str]) -> None:
    """Runs notebooks, each in an empty folder below the current one; writes each to its name in the current folder."""
    top = Path.cwd()
    for file in map(Path, files):
        folder = top / file.stem
        folder.mkdir()
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        text = json.dumps(run_notebook(file), indent=1, ensure_ascii=False)
        (top / file.name).write_text(text + "\n", encoding="utf-8")


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the cells with code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def lines(text: str) -> list[str]:
    """Returns a text as the lines of which a notebook stores it."""
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main(sys.argv[1:])
