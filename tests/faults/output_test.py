"""Readers of the output that do not read: a stopped terminal, a pipe, a socket. Nothing waits for them but a result."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import runs, zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

NOISE = b"noise of a library\n" * 10_000  # more than any of the three holds


class Noise:
    """Prints much, from Python and directly to the descriptors, as XLA does."""

    def __init__(self, pause_s: float = 0.0, text: str = ""):
        self._pause_s = pause_s

    def run(self, trainer, state, step: int) -> None:
        if step == 1:
            print(NOISE.decode())
            print(NOISE.decode(), file=sys.stderr)
        if step in (2, 3):
            os.write(step - 1, NOISE)
        time.sleep(self._pause_s)


class Hanging:
    """The examples of tests/zoo.py; reading one hangs once a file exists."""

    def __init__(self, file: str):
        self._source, self._file = zoo.source(), Path(file)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._file.exists():
            time.sleep(3600)
        return self._source[index]


@contextlib.contextmanager
def stopped_terminal() -> Iterator[tuple[int, int]]:
    """A terminal on which the user pressed Ctrl-S."""
    terminal, inside = pty.openpty()
    termios.tcflow(inside, termios.TCOOFF)
    yield terminal, inside
    os.close(terminal)
    os.close(inside)


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """A small pipe."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


@contextlib.contextmanager
def connection() -> Iterator[tuple[int, int]]:
    """A socket, as a log shipper may give a service."""
    reader, writer = socket.socketpair()
    with reader, writer:
        yield reader.fileno(), writer.fileno()


def config(folder: Path, steps: int = harness.STEPS, hang_s: int = 20, file: Path | None = None, **hook: Any) -> str:
    noise = {"target": "tests.faults.output_test.Noise", "every": "1 step", **hook}
    settings: dict[str, Any] = {"log__progress": "auto", "resilience__hang": f"{hang_s} seconds"}
    if file is not None:  # the hook may take ten times as long as reading
        settings["data"] = {"target": "tests.faults.output_test.Hanging", "file": str(file)}
    return harness.config(folder, hooks={"noise": noise}, train__total=f"{steps} steps", **settings)


WAYS = {
    "convoy train, a stopped terminal": (stopped_terminal, ("train",), 1),
    "convoy supervise, a pipe": (pipe, ("supervise", "--", "train"), 1),
    "convoy launch local, a socket": (connection, ("train",), 2),
}


@pytest.mark.case("output that nobody reads")
@pytest.mark.parametrize("way", WAYS)
def test_run_ends_although_nobody_reads_its_output(tmp_path, add_row, way):
    unread, words, processes = WAYS[way]
    run = tmp_path / "run"
    with unread() as (_, into):
        where = config(tmp_path / "config", steps=5)
        with harness.Job(*words, where, f"--workdir={run}", processes=processes, into=into, TERM="xterm") as job:
            assert job.end() == 0
    assert runs.status(run)["state"] == "done"
    assert re.search(r"standard error was not read in time: [0-9,]+ lines are missing", (run / "log.txt").read_text())
    assert harness.losses(run).keys() == set(range(1, 6))
    add_row(way, code=0)


@pytest.mark.case("output that nobody reads")
def test_python_api_does_not_wait_for_a_reader(tmp_path, add_row):
    harness.config(tmp_path / "config", log__progress="lines")
    program = "import engine, sys; engine.train(engine.config.load(sys.argv[1]), workdir=sys.argv[2])"
    words = (sys.executable, "-c", program, str(tmp_path / "config"), str(tmp_path / "run"))
    with pipe() as (_, into):
        done = subprocess.run(words, stderr=into, env=runs.environment(**runs.COMPILING), timeout=300)
    assert done.returncode == 0 and runs.status(tmp_path / "run")["state"] == "done"
    assert "standard error was not read in time: " in (tmp_path / "run/log.txt").read_text()
    add_row("engine.train in Python, a pipe", code=0)


@pytest.mark.case("output that nobody reads")
def test_sigterm_and_the_watchdog_do_not_wait_for_a_reader(tmp_path, add_row):
    with pipe() as (_, into):
        run = tmp_path / "stopped"
        with harness.Job("train", config(tmp_path / "a", pause_s=0.1), f"--workdir={run}", into=into) as job:
            job.until_step(run, 12)
            begin = job.signal(0, signal.SIGTERM)
            assert job.end() == 42
            stopped_s = time.monotonic() - begin
        status = runs.status(run)
        assert (status["state"], status["exit_code"]) == ("preempted", 42)
        assert (run / f"checkpoints/{status['step']}/manifest.json").exists()
        add_row("SIGTERM", detected_s=stopped_s, code=42)

        run, file = tmp_path / "hanging", tmp_path / "hangs"
        where = config(tmp_path / "b", hang_s=4, file=file, pause_s=0.1)
        with harness.Job("train", where, f"--workdir={run}", into=into) as job:
            job.until_step(run, 5)
            file.touch()
            begin = time.monotonic()
            assert job.end() == 42
            hung_s = time.monotonic() - begin
        assert "in __getitem__" in next((run / "stacks").glob("*.txt")).read_text()
        add_row("a hang (the watchdog)", detected_s=hung_s, code=42)


@pytest.mark.case("output that nobody reads")
@pytest.mark.parametrize("launch", [(), ("launch", "local", "--processes=1", "--")], ids=["alone", "launched"])
def test_result_waits_for_its_reader_until_sigterm(tmp_path, add_row, launch):
    config(tmp_path / "config", text="x" * 50_000)
    words = (*launch, "config", str(tmp_path / "config"))
    with harness.Job(*words) as job:
        assert job.end() == 0
        whole = job.output
    with pipe() as (reader, into):
        with harness.Job(*words, into=into) as job:
            text = os.read(reader, 1)
            while len(text) < len(whole):
                text += os.read(reader, 10_000)
            assert job.end() == 0
        assert text.decode() == whole
        with harness.Job(*words, into=into) as job:
            assert select.select([reader], [], [], 60)[0]
            begin = time.monotonic()
            job.process.terminate()
            assert job.end() == 143
            add_row(" ".join(("a result", *launch[:2], "and SIGTERM")), detected_s=time.monotonic() - begin, code=143)
