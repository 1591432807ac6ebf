"""Where the traceback of an unexpected error is kept, and what the screen shows."""

import tempfile

import pytest

from engine.base.errors import TRACEBACK_VARIABLE, DataError
from engine.cluster import tracebacks


@pytest.fixture
def error(tmp_path, monkeypatch):
    """An error with a traceback; temporary files are made in `tmp_path`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    return caught.value


def test_traceback_goes_to_a_temporary_file_once(error, tmp_path):
    tracebacks.keep(error)
    tracebacks.keep(error)
    (file,) = tmp_path.iterdir()
    assert "1 / 0" in file.read_text()
    text = tracebacks.report_text(error)
    assert text.startswith("ZeroDivisionError: division by zero (tests/cluster/tracebacks_test.py:")
    assert text.endswith(f" The traceback is in {file}; CONVOY_TRACEBACK=1 prints it.") and "\n" not in text


def test_file_of_the_run_is_preferred(error, tmp_path):
    file = tracebacks.write(tmp_path / "stacks/error.txt", tracebacks.traceback_text(error))
    assert file is not None
    tracebacks.set_file(error, file)
    tracebacks.keep(error)
    assert str(file) in tracebacks.report_text(error)
    assert [path.name for path in tmp_path.iterdir()] == ["stacks"]


def test_traceback_is_printed_if_no_file_can_be_written_or_the_variable_is_set(error, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    tracebacks.keep(error)
    text = tracebacks.report_text(error)
    assert text.startswith("Traceback (most recent call last):")
    assert text.splitlines()[-1].startswith("ZeroDivisionError: division by zero (")
    assert tracebacks.write(tmp_path / "missing/stacks/error.txt", "") is None
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    tracebacks.keep(error)
    assert not [*tmp_path.iterdir()] and tracebacks.report_text(error) == text


def test_engine_error_shows_no_traceback_unless_the_variable_is_set(error, tmp_path, monkeypatch):
    wrapped = DataError("example 3 cannot be read.")
    wrapped.__cause__ = error
    tracebacks.keep(wrapped)
    assert not [*tmp_path.iterdir()]
    assert tracebacks.report_text(wrapped) == "DataError: example 3 cannot be read."
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert "1 / 0" in tracebacks.report_text(wrapped)
    assert tracebacks.report_text(DataError("x.")) == "DataError: x."
