"""Errors of the user's code as one line: the innermost frame of that code, and notes."""

import importlib
import sys
import textwrap

import jax
import pytest

from engine.base import user_errors
from engine.base.errors import ConfigError, DataError
from engine.base.user_errors import describe, has_traceback, is_user_code, location


@pytest.fixture
def users(tmp_path, monkeypatch):
    """Writes user code as a module in the working directory or in `folder`, and returns the module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_errors, "_target_packages", set())

    def write(text: str, folder: str = "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "perception.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(tmp_path / folder)
        sys.modules.pop("perception", None)
        return importlib.import_module("perception")

    yield write
    sys.modules.pop("perception", None)


def raised(function) -> BaseException:
    with pytest.raises(BaseException) as caught:
        function()
    return caught.value


def test_description_has_type_text_and_innermost_frame_of_user_code(users):
    module = users("""
        import json
        def loss():
            return json.loads("{")
        def stop():
            raise SystemExit(7)
        def empty():
            raise ValueError
    """)
    text = "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert describe(raised(module.loss)) == f"{text} (perception.py:4 in loss)."
    stop = "SystemExit: the code ended the process with sys.exit(7) (perception.py:6 in stop)."
    assert describe(raised(module.stop)) == stop
    assert describe(raised(module.empty)) == "ValueError (perception.py:8 in empty)."
    assert describe(ConfigError("train.total: is missing.")) == "ConfigError: train.total: is missing."


def test_frames_of_cython_are_no_user_code(users):
    module = users("""
        import numpy as np
        def tracks(count):
            return np.random.default_rng(0).uniform(0, 1, count)
    """)
    assert location(raised(lambda: module.tracks(-1))) == "perception.py:4 in tracks"


def test_error_while_tracing_has_the_line_of_the_user_and_no_note_of_jax(users):
    module = users("""
        import jax.numpy as jnp
        def loss(x):
            return jnp.dot(x, jnp.ones(7))
    """)
    error = raised(lambda: jax.jit(module.loss).lower(jax.numpy.ones(3)))
    assert describe(error).endswith("got (3,) and (7,) (perception.py:4 in loss).")


def test_long_and_broken_texts_stay_one_line():
    class Broken(Exception):
        def __str__(self):
            raise ValueError

    text = describe(ValueError("first\nline\n\nsecond paragraph"))
    assert text == "ValueError: first line."
    assert len(describe(ValueError("x" * 100_000))) < 700
    assert describe(Broken()) == "Broken: its text cannot be shown (ValueError)."


def test_last_error_of_a_chain_with_a_frame_of_user_code_is_located(users):
    module = users("""
        def read():
            raise OSError("unreadable")
        def again():
            try:
                read()
            except OSError:
                raise KeyError("b")
    """)
    assert location(raised(module.again)) == "perception.py:8 in again"

    def wrap():
        try:
            module.read()
        except OSError as error:
            raise DataError("example 3 cannot be read") from error

    assert has_traceback(raised(wrap)) and not has_traceback(DataError("x"))


def test_installed_package_counts_as_user_code_once_a_target_names_it(users):
    module = users("def loss():\n    raise KeyError('x')\n", folder="site-packages")
    trace = raised(module.loss).__traceback__
    assert trace is not None and trace.tb_next is not None
    error = KeyError("x").with_traceback(trace.tb_next)  # without the frame of this test
    assert location(error) == ""
    user_errors.add_target_package("perception")
    assert location(error).endswith("site-packages/perception.py:2 in loss")
    assert not is_user_code(trace.tb_next.tb_frame.f_code.co_filename)
