import threading

from IPython.terminal.interactiveshell import TerminalInteractiveShell

from engine.observe.notebook import NotebookBar, shows_html
from tests.cells import notebook_shell


def test_bar_is_one_output_that_is_updated(monkeypatch):
    monkeypatch.setattr("engine.observe.notebook.REFRESH_S", 0)
    assert not shows_html()
    with notebook_shell() as shell:
        assert shows_html()
        bar = NotebookBar(40, 8)
        bar.phase("compiling <1>")
        compiling = shell.displayed[-1]["data"]
        bar.update(24, {"loss": 0.25, "examples_per_s": 1234.4})
        bar.close()
        first, *updates = shell.displayed
    assert "starting  8/40" in first["data"]["text/plain"]
    assert 'aria-label="compiling &lt;1&gt;" value="8" max="40"' in compiling["text/html"]
    assert "training  24/40  loss 0.25  1,234 examples/s  0.0" in updates[-1]["data"]["text/plain"]
    assert all(update["update"] and update["transient"] == first["transient"] for update in updates)


def test_updates_are_few():
    with notebook_shell() as shell:
        bar = NotebookBar(1000, 0)
        for step in range(1000):
            bar.update(step, {})
        bar.close()
        assert len(shell.displayed) < 20


def test_time_goes_on_without_updates(monkeypatch):
    """The step of a large model compiles for minutes."""
    monkeypatch.setattr("engine.observe.notebook.REFRESH_S", 0)
    monkeypatch.setattr("engine.observe.notebook.TICK_S", 0.01)
    shown = threading.Event()
    with notebook_shell():
        bar = NotebookBar(10, 0)
        monkeypatch.setattr(bar._handle, "update", lambda bar: shown.set())
        assert shown.wait(10)
        bar.close()


def test_terminal_of_ipython_shows_no_html(monkeypatch):
    shell = TerminalInteractiveShell.__new__(TerminalInteractiveShell)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert not shows_html()
