"""Files of a process for its launcher: one verdict, its steps, the path of the run's status."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from engine.base.errors import ConfigError, RunError
from engine.cluster import verdict
from engine.cluster.kv_store import CoordinationError
from engine.cluster.peer_failure import LostPeer, lost_peer
from engine.cluster.rendezvous import CannotJoin
from engine.cluster.verdict import Verdict, failure_signature
from engine.loop.preemption import Interrupted, Preempted
from engine.loop.watchdog import Hang


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Makes this process number 1 of a launch."""
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "1.json"))
    return tmp_path


def test_only_the_first_verdict_is_recorded_and_none_printed(launched, capsys):
    verdict.report(RunError("no such folder"))
    verdict.record(42, "what followed\n")
    (found,) = verdict.read(launched)
    assert (found.index, found.code, found.text, found.signature) == (1, 1, "RunError: no such folder", "RunError")
    assert [path.name for path in launched.iterdir()] == ["1.json"]
    assert capsys.readouterr().err == ""


def test_report_prints_the_error_without_a_launcher(monkeypatch, capsys):
    monkeypatch.delenv(verdict.VARIABLE, raising=False)
    verdict.report(RunError("no such folder"))
    assert capsys.readouterr().err == "RunError: no such folder\n"
    assert verdict.read_peers() == []


def test_verdict_of_a_user_error_is_a_sentence_with_the_file_of_the_traceback(launched, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(launched))
    try:
        raise KeyError("x")
    except KeyError as error:
        verdict.report(error)
        found = Verdict.of(error, 3)
    assert (found.index, found.code, found.line) == (3, 1, found.text)
    (file,) = launched.glob("convoy-traceback-*.txt")
    assert found.text.startswith("KeyError: 'x' (tests/cluster/verdict_test.py:")
    assert found.text.endswith(f"The traceback is in {file}; CONVOY_TRACEBACK=1 prints it.")
    assert 'raise KeyError("x")' in file.read_text()
    assert (Verdict.of(KeyboardInterrupt(), 0).code, Verdict.of(KeyboardInterrupt(), 0).text) == (130, "interrupted")


def test_verdicts_are_ordered_by_the_monotonic_clock(launched, monkeypatch):
    hours = iter((3, 2, 1))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))
    for i in (2, 0, 1):
        monkeypatch.setenv(verdict.VARIABLE, str(launched / f"{i}.json"))
        verdict.record(1, f"from {i}")
    assert [found.index for found in verdict.read(launched)] == [2, 0, 1]
    assert [found.text for found in verdict.read_peers()] == ["from 2", "from 0"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("RunError: no such folder", "RunError: no such folder"),
        ("ConfigError: these differ:\n  a: 1", "  a: 1"),
        ("Traceback (most\n  File x\nError: bad\nError: bad (a.py:1 in f).", "Error: bad (a.py:1 in f)."),
        ("", ""),
    ],
)
def test_verdict_in_one_line(text, line):
    assert Verdict(0, 1, text, 0.0).line == line


def test_process_is_unfinished_from_its_begin_until_it_is_done(launched, monkeypatch):
    monkeypatch.setattr(verdict, "_file", None)
    verdict.done()  # a program that is not the command line
    assert not verdict.is_unfinished(launched, 1)
    verdict.begin()
    assert verdict.VARIABLE not in os.environ and verdict.is_launched()  # its own programs are not launched
    verdict.record(42, "preempted")
    assert verdict.is_unfinished(launched, 1) and not verdict.is_unfinished(launched, 0)
    verdict.done()
    assert not verdict.is_unfinished(launched, 1)


def test_status_path_is_recorded_for_the_launcher(launched, monkeypatch):
    verdict.record_status_path(launched / "run/status.json")
    assert (launched / verdict.STATUS).read_text() == str(launched / "run/status.json")
    monkeypatch.delenv(verdict.VARIABLE)
    verdict.record_status_path(launched / "other")


def run(program: str, file: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({verdict.VARIABLE: str(file)} if file else {})
    program = f"from engine.cluster import verdict\n{program}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, timeout=180, text=True)


def test_steps_of_a_killed_process_are_readable(tmp_path):
    program = """
import os, signal
verdict.step_counter()[0] = 3
verdict.step_counter()[0] = 2**40
os.kill(os.getpid(), signal.SIGKILL)
"""
    for i in (0, 7):
        assert run(program, tmp_path / f"{i}.json").returncode == -9
    assert verdict.read_steps(tmp_path) == {0: 2**40, 7: 2**40}
    assert verdict.read(tmp_path) == []
    (tmp_path / "8.step").touch()  # killed before its first step
    assert 8 not in verdict.read_steps(tmp_path)
    (tmp_path / "8.step").unlink()
    run("verdict.step_counter()[0] = 1")  # without a launcher
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def users(tmp_path, monkeypatch):
    """Writes user code as a module in the working directory, and returns the module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str):
        (tmp_path / "perception.py").write_text(textwrap.dedent(text))
        sys.modules.pop("perception", None)
        return importlib.import_module("perception")

    yield write
    sys.modules.pop("perception", None)


def raised(function) -> BaseException:
    with pytest.raises(BaseException) as caught:
        function()
    return caught.value


def test_signature_has_the_innermost_frame_of_user_code(users):
    module = users("""
        import json
        def loss():
            return parse("{")
        def parse(text):
            return json.loads(text)
    """)
    assert failure_signature(raised(module.loss)) == "JSONDecodeError at perception.py:6 in parse"


def test_engine_frames_are_not_in_the_signature(tmp_path):
    from engine.run.directory import RunDirectory

    error = raised(lambda: RunDirectory("gs://bucket"))
    assert failure_signature(error).startswith("RunError at tests/cluster/verdict_test.py:")
    assert " in <lambda>" in failure_signature(error)
    assert failure_signature(RunError("never raised")) == "RunError"


def test_wrapped_error_has_the_frame_of_the_original_error(users):
    module = users("""
        def read():
            raise OSError("unreadable")
    """)

    def wrap():
        try:
            module.read()
        except OSError as error:
            raise RunError("example 3 cannot be read") from error

    assert failure_signature(raised(wrap)) == "RunError at perception.py:3 in read"


def test_circular_error_chain_terminates():
    first, second = ConfigError("a"), ConfigError("b")
    first.__cause__, second.__cause__ = second, first
    assert failure_signature(first) == "ConfigError"


@pytest.mark.parametrize("kind", [LostPeer, CannotJoin, CoordinationError, Preempted, Interrupted])
def test_failure_from_outside_has_no_signature(kind):
    assert failure_signature(raised(lambda: _raise(kind("gone")))) == ""
    assert json.dumps(failure_signature(KeyError("x"))) == '"KeyError"'


def test_only_the_loss_of_a_peer_blames_a_peer(launched):
    for kind in (LostPeer, CannotJoin, CoordinationError):
        assert Verdict.of(kind("gone"), 0).blames_peer
    for kind in (Preempted, Interrupted, Hang, RunError, KeyError):
        assert not Verdict.of(kind("gone"), 0).blames_peer
    assert not Verdict.of(lost_peer(Verdict(0, 1, "ConfigError: no", 5.0), ""), 1).blames_peer  # it has the cause
    verdict.report(Preempted("saved"))
    (found,) = verdict.read(launched)
    assert (found.code, found.state, found.blames_peer) == (42, "preempted", False)


def _raise(error):
    raise error
