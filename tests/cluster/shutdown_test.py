"""The last words of a process: one file for each, and an end that waits for nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cluster import shutdown


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """This process as number 1 of a launch."""
    monkeypatch.setenv(shutdown.VARIABLE, str(tmp_path / "1.json"))
    return tmp_path


def test_a_verdict_is_recorded_once_and_not_printed(launched, capsys):
    shutdown.tell(1, "KeyError: 'x'\n")
    shutdown.tell(42, "what followed")
    (verdict,) = shutdown.read(launched)
    assert (verdict.index, verdict.code, verdict.text) == (1, 1, "KeyError: 'x'")
    assert [path.name for path in launched.iterdir()] == ["1.json"]
    assert capsys.readouterr().err == ""


def test_without_a_launcher_it_is_printed(monkeypatch, capsys):
    monkeypatch.delenv(shutdown.VARIABLE, raising=False)
    shutdown.tell(1, "RunError: no such folder")
    assert capsys.readouterr().err == "RunError: no such folder\n"
    assert shutdown.of_others() == []


def test_verdicts_come_in_the_order_of_time_and_others_are_not_mine(launched, monkeypatch):
    hours = iter((3, 2, 1))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))  # set back meanwhile
    for i in (2, 0, 1):
        monkeypatch.setenv(shutdown.VARIABLE, str(launched / f"{i}.json"))
        shutdown.tell(1, f"from {i}")
    assert [verdict.index for verdict in shutdown.read(launched)] == [2, 0, 1]
    assert [verdict.text for verdict in shutdown.of_others()] == ["from 2", "from 0"]


def run(program: str, verdict: Path | None = None) -> subprocess.CompletedProcess[str]:
    imports = "import atexit, time\nfrom engine.cluster import shutdown\nfrom engine.config.errors import RunError\n"
    program = imports + program
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {shutdown.VARIABLE: str(verdict)} if verdict else {}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=30)


def test_an_end_alone_shows_what_was_printed_and_runs_nothing_more():
    done = run("atexit.register(print, 'never')\nprint('said', end='')\nshutdown.end_alone(43)")
    assert (done.returncode, done.stdout) == (43, "said")


def test_a_thread_ends_the_process_with_its_last_acts_last_words_and_code():
    done = run("""
import threading
def broken(code, text):
    raise OSError
for act in (lambda code, text: print("first", code, text), broken, lambda code, text: print("second")):
    shutdown.add_last_act(act)
shutdown.add_last_act(print)
shutdown.remove_last_act(print)
threading.Thread(target=lambda: shutdown.end(RunError("stuck."))).start()
time.sleep(60)
""")
    assert (done.returncode, done.stdout, done.stderr) == (1, "second\nfirst 1 stuck.\n", "RunError: stuck.\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("RunError: no such folder", "RunError: no such folder"),
        ("ConfigError: these differ:\n  a: 1", "  a: 1"),
        ("Traceback (most\n  File x\nmy.Error: bad\nraised in process 1 of 2, after step 7", "my.Error: bad"),
        ("Traceback (most\n  File x\nKeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_a_verdict_in_one_line(text, line):
    assert shutdown.Verdict(0, 1, text, 0.0).line == line


def test_the_launcher_is_told_which_file_holds_the_status(launched, monkeypatch):
    shutdown.note_status(launched / "run/status.json")
    assert (launched / shutdown.STATUS).read_text() == str(launched / "run/status.json")
    monkeypatch.delenv(shutdown.VARIABLE)
    shutdown.note_status(launched / "other")


def test_threads_that_never_end_do_not_keep_the_process():
    done = run("""
import sys, threading
threading.Thread(target=time.sleep, args=(60,)).start()
shutdown.end_soon(42)
print("said", end="")
sys.exit(42)
""")
    assert (done.returncode, done.stdout) == (42, "said")


def test_a_wait_that_takes_too_long_ends_the_process_with_a_sentence():
    done = run("with shutdown.bounded(0.1, lambda: RunError('waited 0.1 s')):\n    time.sleep(60)")
    assert (done.returncode, done.stderr) == (1, "RunError: waited 0.1 s\n")
    assert run("with shutdown.bounded(0.1, lambda: RunError('late')):\n    pass\ntime.sleep(0.3)").returncode == 0


def test_the_step_of_a_killed_process_is_known(tmp_path):
    program = """
import os, signal
shutdown.counter()[0] = 3
shutdown.counter()[0] = 2**40
os.kill(os.getpid(), signal.SIGKILL)
"""
    for i in (0, 7):
        assert run(program, tmp_path / f"{i}.json").returncode == -9
    assert shutdown.steps(tmp_path) == {0: 2**40, 7: 2**40}
    assert shutdown.read(tmp_path) == []
    (tmp_path / "8.step").touch()  # killed before it told of one
    assert 8 not in shutdown.steps(tmp_path)
    (tmp_path / "8.step").unlink()
    run("shutdown.counter()[0] = 1")  # nobody asks
    assert len(list(tmp_path.iterdir())) == 2


def test_a_verdict_says_what_the_error_is_known_by(tmp_path):
    late = "with shutdown.bounded(0.1, lambda: RunError('waited 0.1 s')):\n    time.sleep(60)"
    assert run(late, tmp_path / "0.json").returncode == 1
    assert [verdict.cause for verdict in shutdown.read(tmp_path)] == ["RunError"]
