import contextlib
import io
import os
import re
import subprocess
import sys
import threading

import pytest

from engine.base.errors import ConfigError
from engine.observe import progress
from engine.observe.progress import Progress, row_text
from engine.run.log import RunLog, logger
from tests.cells import notebook_shell


class Terminal:
    """A real pseudo-terminal: write to `stream`, then read with `text()` what it showed."""

    def __init__(self):
        self._master, slave = os.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # raised when the other side is closed
            while data := os.read(self._master, 4096):
                self._shown += data

    def text(self):
        self.close()
        return self._shown.decode()

    def close(self):
        if not self.stream.closed:
            self.stream.close()
            self._reader.join()
            os.close(self._master)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with contextlib.closing(Terminal()) as terminal:
        yield terminal


def plain(text):
    """Removes the control sequences of colours and cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def log_of(path):
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()]


def test_auto_prints_lines_without_a_terminal():
    stream = io.StringIO()
    with Progress("auto", total_steps=100, stream=stream) as progress:
        progress.phase("compiling")
        progress.update(50, {"step": 50, "attempt": 1, "time": 0.0, "loss": 0.42134, "examples_per_s": 12345.6})
        progress.message("heldout at step 50: accuracy 0.9")
        progress.update(100, {"loss": 0.25})
    assert stream.getvalue().splitlines() == [
        "step 50/100  loss 0.4213  12,346 examples/s",
        "heldout at step 50: accuracy 0.9",
        "step 100/100  loss 0.25",
    ]


@pytest.mark.parametrize(("min_pace_s", "left"), [(0.0, r"  left 0\.\d\d s"), (60.0, "")])
def test_lines_show_the_time_left_once_the_pace_is_known(monkeypatch, min_pace_s, left):
    monkeypatch.setattr("engine.observe.progress.MIN_PACE_S", min_pace_s)
    stream = io.StringIO()
    with Progress("lines", total_steps=100, start_step=20, stream=stream) as progress:
        progress.update(30, {"loss": 0.5})
        progress.update(40, {"loss": 0.4})
    first, second = stream.getvalue().splitlines()
    assert first == "step 30/100  loss 0.5"
    assert re.fullmatch(rf"step 40/100  loss 0\.4{left}", second)


def test_row_text_orders_loss_then_task_metrics_then_engine_metrics():
    row = {
        "step": 50, "attempt": 1, "time": 0.0, "loss": 0.42134, "accuracy": 0.9, "grad_norm": 1.5,
        "learning_rate": 1e-3, "skipped": 0.0, "examples_per_s": 12345.6, "step_time_s": 0.01, "data_wait": 0.05,
        "flop_per_s": 1e9, "mfu": 0.412, "host_rss_gib": 1.25, "device_peak_gib": 2.5,
    }  # fmt: skip
    assert row_text(row) == (
        "loss 0.4213  accuracy 0.9  learning_rate 0.001  grad_norm 1.5  12,346 examples/s  mfu 41%  device_peak_gib 2.5"
    )


def test_row_text_shows_skipped_steps_and_data_wait():
    assert row_text({"skipped": 2.0, "data_wait": 0.051, "loss": float("nan")}) == "loss nan  skipped 2  data_wait 5%"


def test_auto_shows_a_bar_on_a_terminal(terminal):
    with Progress("auto", total_steps=100, stream=terminal.stream) as progress:
        progress.update(50, {"loss": 0.42134, "accuracy": 0.5, "examples_per_s": 12345.6})
    text = terminal.text()
    last = plain(text).replace("\r", "\n").strip().splitlines()[-1]
    assert re.fullmatch(
        r"training [━╸╺ ]+ 50/100 loss 0\.4213 12,346 examples/s 0:00:00 left [-:\d]+", re.sub(" +", " ", last).strip()
    ), last


def test_bar_shows_the_whole_step_in_80_columns(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with Progress("bar", total_steps=1500, stream=terminal.stream) as progress:
        progress.update(1350, {"loss": 0.0003439, "examples_per_s": 42776.0})
        progress.phase("evaluating")
    assert "1,350/1,500 loss 0.0003439 42,776 examples/s 0:00:00 left" in plain(terminal.text())


def test_messages_are_printed_above_the_bar(terminal):
    with Progress("bar", total_steps=100, stream=terminal.stream) as progress:
        progress.update(50, {"loss": 0.5})
        progress.message("saved [bold]step 50[/bold]")
    lines = plain(terminal.text()).replace("\r", "\n").split("\n")
    shown = [line for line in lines if line.strip()]
    assert shown.index("saved [bold]step 50[/bold]") < max(i for i, line in enumerate(shown) if "50/100" in line)


def test_bar_shows_the_phase(terminal):
    with Progress("bar", total_steps=100, stream=terminal.stream) as progress:
        progress.phase("evaluating")
    assert plain(terminal.text()).rstrip().split("\r")[-1].strip().startswith("evaluating")


def test_dumb_terminal_gets_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with Progress("auto", total_steps=100, stream=terminal.stream) as progress:
        progress.update(50, {"loss": 0.5})
    assert terminal.text() == "step 50/100  loss 0.5\r\n"


@pytest.mark.parametrize("mode", ["bar", "lines", "none"])
def test_log_gets_plain_lines_in_every_mode(tmp_path, mode):
    stream = io.StringIO()
    with RunLog(tmp_path / "log.txt"), Progress(mode, total_steps=100, stream=stream) as progress:
        progress.update(50, {"loss": 0.5})
        progress.message("saved")
    assert log_of(tmp_path / "log.txt") == ["step 50/100  loss 0.5", "saved"]
    assert (stream.getvalue() == "") == (mode == "none")


def test_logged_warnings_are_shown_in_every_mode():
    for mode in ("lines", "none"):
        stream = io.StringIO()
        with Progress(mode, total_steps=100, stream=stream):
            logger.warning("the disk has %d GiB left", 3)
        assert stream.getvalue() == "warning: the disk has 3 GiB left\n"


def test_close_stops_threads_and_removes_the_log_handler(terminal):
    handlers, threads = list(logger.handlers), set(threading.enumerate())
    progress = Progress("bar", total_steps=100, stream=terminal.stream)
    progress.close()
    progress.close()
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()
    assert logger.handlers == handlers
    assert terminal.text().count("\x1b[?25h") == 1  # the cursor is shown again


def test_redirected_standard_output_does_not_reach_the_terminal(terminal, capsys):
    with Progress("bar", total_steps=100, stream=terminal.stream):
        print("from the model")
    assert capsys.readouterr().out == "from the model\n"
    assert "from the model" not in terminal.text()


def test_lines_mode_imports_neither_rich_nor_jax():
    code = (
        "import sys; from engine.observe.progress import Progress\n"
        "with Progress('auto', 10) as progress: progress.update(5, {'loss': 0.5})\n"
        "sys.exit(bool({'rich', 'jax', 'tensorboardX'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stderr, process.stdout) == (0, "step 5/10  loss 0.5\n", "")


def test_unknown_mode_is_a_config_error():
    with pytest.raises(ConfigError, match=r"log\.progress: 'fancy' is unknown\. Allowed: auto, bar, lines, none\."):
        Progress("fancy", total_steps=1)


def test_bar_is_a_notebook_bar_in_the_shell_of_a_notebook(capsys):
    with notebook_shell() as shell:
        with Progress("auto", 20) as shown:
            shown.update(10, {"step": 10, "loss": 0.5})
            shown.message("a message")
        shown.result("digits: done\n\n  run  runs/digits\n")
        with progress.CountProgress("predicting", "examples") as count:
            count.update(3, 4)
    bars = [shown["data"]["text/html"] for shown in shell.displayed]
    assert all(text in bars[-4] for text in ('value="10" max="20"></progress>', ">10/20<", ">loss 0.5<"))
    assert all(text in bars[-1] for text in ('value="3" max="4"></progress>', ">predicting<", ">3/4<"))
    assert capsys.readouterr() == ("a message\ndigits: done\n", "")
    assert not progress.shows_html()


def test_count_shows_few_lines_and_the_last(capsys):
    with progress.CountProgress("predicting", "examples") as shown:
        for done in range(1, 100):
            shown.update(done, 99)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3 and lines[-1].startswith("predicting: 99/99 examples  ")
    with progress.CountProgress("predicting", "examples", shown=False) as hidden:
        hidden.update(3, 3)
    assert hidden.done == 3 and capsys.readouterr().err == ""


def test_count_of_short_work_shows_nothing(capsys):
    with progress.CountProgress("evaluating a", "batches", delay_s=60.0) as shown:
        shown.update(1, 2)
        shown.update(2, 2)
    assert capsys.readouterr().err == ""


def test_process_without_streams_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Progress("lines", 2) as shown:
        shown.update(1, {"step": 1, "loss": 0.5})
        shown.message("a message")
