"""Ends that the engine did not decide: the output goes away, a terminal closes, the user's code ends the process."""

import ctypes
import dataclasses
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cli.main import main
from tests import runs, zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

HERE = "tests.faults.exits_test"
ON_TERMINAL = (
    *(sys.executable, "-c"),
    "import os, sys\nos.login_tty(int(sys.argv[1]))\nos.execv(sys.argv[2], sys.argv[2:])",
)
INTO_HEAD = ("bash", "-c", '"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}', "bash")


def drain(terminal: int, run: Path, step: int) -> None:
    """Reads a terminal until a step of the run is done, so that the processes in it do not wait for a reader."""
    end = time.monotonic() + 300
    while step not in harness.losses(run):
        assert time.monotonic() < end
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 1 << 16)


@pytest.mark.case("output that goes away")
def test_closed_terminal_saves_the_run_and_lost_output_does_not_end_it(tmp_path, one, add_row):
    run = tmp_path / "run"
    where = harness.config(tmp_path / "config", pause=0.5, log__progress="auto")
    fast = harness.config(tmp_path / "fast", log__progress="auto", **harness.EVALUATED)
    terminal, inside = pty.openpty()
    words = [*ON_TERMINAL, str(inside), *runs.command("train", where, f"--workdir={run}")]
    process = subprocess.Popen(words, env=runs.environment(**runs.COMPILING), pass_fds=(inside,))
    try:
        os.close(inside)
        drain(terminal, run, 6)
        os.close(terminal)  # the kernel sends SIGHUP; later output is an error
        begin = time.monotonic()
        assert process.wait(300) == 42
        detected = time.monotonic() - begin
    finally:
        process.kill()
        process.wait()
    status = runs.status(run)
    assert (status["state"], status["exit_code"]) == ("preempted", 42)
    assert (run / f"checkpoints/{status['step']}/manifest.json").exists()
    assert "standard error cannot be written (Input/output error)" in (run / "log.txt").read_text()
    add_row("the terminal closes (SIGHUP)", detected_s=detected, code=42)

    with harness.Job("supervise", "--", "train", fast, f"--workdir={run}", prefix=INTO_HEAD) as job:
        assert job.end() == 0
        assert len(job.output.splitlines()) == 1
    assert runs.status(run)["state"] == "done"
    assert "standard error cannot be written (Broken pipe)" in (run / "log.txt").read_text()
    assert harness.outcome(run) == one
    add_row("the reader of the output ends (| head -1)", bitwise=True, code=0)


def leave(place: str, here: str) -> None:
    """Ends the process if the user's code is in this place."""
    if place == here:
        sys.exit(0 if place != "the hook" else 7)
    if place == f"os._exit in {here}":
        os._exit(0)


@dataclasses.dataclass
class LeavingTask(zoo.Classify):
    """Calls `sys.exit` in a place."""

    place: str = ""

    def build(self, rngs):
        leave(self.place, "the model")
        return super().build(rngs)

    def loss(self, model, batch, rng):
        leave(self.place, "the loss")
        return super().loss(model, batch, rng)


def leaving_source(place: str):
    leave(place, "the dataset")
    return zoo.source()


class LeavingHook:
    def __init__(self, place: str):
        self._place = place

    def run(self, trainer, state, step: int) -> None:
        leave(self._place, "the hook")
        if self._place == "os._exit" and step == 7:
            os._exit(0)
        if self._place == "a fault" and step == 7:
            ctypes.string_at(0)


def config(folder: Path, place: str) -> str:
    """Writes the config of a run whose code ends the process in a place; returns the `--config` argument."""
    hook = {"target": f"{HERE}.LeavingHook", "every": "1 step", "place": place}
    return harness.config(
        folder,
        task={"target": f"{HERE}.LeavingTask", "place": place},
        data={"target": f"{HERE}.leaving_source", "place": place},
        hooks={"leaving": hook},
    )


@pytest.mark.case("exits of the user's code")
def test_sys_exit_in_user_code_is_an_error_with_its_line(tmp_path, capsys, add_row):
    file = tmp_path / "leaving.py"
    file.write_text("import sys\n\ndef get_config():\n    sys.exit(0)\n")
    assert main(["config", str(file)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"SystemExit: the code ended the process with sys.exit(0) ({file}:4 in get_config).")
    for place in ("the model", "the dataset", "the loss", "the hook"):
        run = tmp_path / place / "run"
        assert main(["train", config(tmp_path / place, place), f"--workdir={run}"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        code = 7 if place == "the hook" else 0
        assert error.startswith(
            f"SystemExit: the code ended the process with sys.exit({code}) (tests/faults/exits_test.py"
        )
        assert f"The traceback is in {run}/log.txt" in error and "in leave" in (run / "log.txt").read_text()
        status = runs.status(run)
        assert (status["state"], status["exit_code"]) == ("failed", 1) and error.startswith(status["reason"])
    add_row("sys.exit in the config, model, dataset, loss or hook", code=1)


@pytest.mark.case("exits of the user's code")
def test_os_exit_with_0_is_not_taken_for_the_end_of_the_run(tmp_path, add_row):
    run = tmp_path / "run"
    with harness.Job("supervise", "--", "train", config(tmp_path / "config", "os._exit"), f"--workdir={run}") as job:
        assert job.end() == 1
        last = job.output.splitlines()[-1]
    status = runs.status(run)
    assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 1, last)
    assert last.startswith("process 0 ended with exit code 0 before it was done: ")
    add_row("os._exit(0) in a hook, under a supervisor", code=1)


@pytest.mark.case("exits of the user's code")
def test_os_exit_of_a_process_without_a_launcher_is_told_and_not_0(tmp_path, add_row):
    file = tmp_path / "leaving.py"
    file.write_text("import os\n\ndef get_config():\n    os._exit(0)\n")
    commands = {"config": f"--config={file}"}
    commands |= {place: config(tmp_path / place, f"os._exit in the {place}") for place in ("dataset", "loss")}
    for place, where in commands.items():
        run = tmp_path / place / "run"
        with harness.Job("train", where, f"--workdir={run}") as job:
            assert job.end() == 1, job.output
            text = job.output.splitlines()[-1]
        assert text.startswith(
            "the process ended with exit code 0 before it was done: its code or a library called os."
        )
        if place != "config":  # before there is a run
            status = runs.status(run)
            assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 1, text)
    add_row("os._exit(0) in the config, dataset or loss, without a launcher", code=1)


@pytest.mark.case("exits of the user's code")
def test_fault_in_native_code_is_named_and_the_status_is_completed(tmp_path, add_row):
    run = tmp_path / "run"
    with harness.Job("train", config(tmp_path / "config", "a fault"), f"--workdir={run}") as job:
        assert job.end() == 139, job.output
        text = job.output.splitlines()[-1]
    assert text.startswith("the process was killed by SIGSEGV: usually compiled code of a library or an extension used")
    status = runs.status(run)
    assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 139, text)
    lost = [line for line in runs.complete_lines(run / "goodput.jsonl") if line["kind"] == "lost"]
    assert [line["attempt"] for line in lost] == [1]
    add_row("a segmentation fault in a hook, without a launcher", code=139)
