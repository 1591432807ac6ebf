"""The signature of an error: its type and the innermost frame of the user's code."""

import importlib
import json
import sys
import textwrap

import pytest

from engine.base.errors import ConfigError, RunError
from engine.cluster.failure_signature import failure_signature
from engine.cluster.kv_store import CoordinationError
from engine.cluster.peer_failure import LostPeer
from engine.cluster.processes import CannotJoin
from engine.loop.preemption import Interrupted, Preempted


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
    assert failure_signature(error).startswith("RunError at tests/cluster/failure_signature_test.py:")
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


def _raise(error):
    raise error
