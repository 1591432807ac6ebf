import pickle

import pytest

from engine.base.errors import (
    TRACEBACK_VARIABLE,
    ConfigError,
    ConvoyError,
    FieldError,
    UnknownFieldError,
    did_you_mean,
)
from tests.cells import notebook_shell


def test_errors_of_this_module_have_exit_code_1():
    assert {
        error.exit_code for error in ConvoyError.__subclasses__() if error.__module__ == ConvoyError.__module__
    } == {1}


def test_field_error_names_where_the_value_was_written():
    error = FieldError("train.seed", "found 'a', allowed is an integer", "Write a number.")
    assert str(error) == "train.seed: found 'a', allowed is an integer. Write a number."
    assert str(error.at("x.py:3")) == "train.seed: found 'a', allowed is an integer (x.py:3). Write a number."
    assert str(error.at("x.py:3").at("elsewhere")) == str(error.at("x.py:3"))


def test_subclasses_of_config_error_are_shown_as_config_error():
    error = UnknownFieldError("a", "unknown field", "")
    assert error.kind == "ConfigError" and ConfigError("a").kind == "ConfigError"
    assert isinstance(error, ConfigError) and isinstance(error, AttributeError)


def test_field_error_can_be_pickled():
    error = UnknownFieldError("a.b", "unknown field", "Fields here: c.", "x.py:3")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UnknownFieldError and str(copy) == str(error)


@pytest.mark.parametrize(
    ("name", "text"),
    [("totl", " Did you mean total?"), ("sed", " Did you mean seed?"), ("zzz", ""), ("", "")],
)
def test_did_you_mean_suggests_similar_names(name, text):
    assert did_you_mean(name, ["total", "seed"]) == text


def test_notebook_shows_a_sentence_instead_of_a_traceback(monkeypatch):
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    cell = "from engine.base.errors import ConfigError\nraise ConfigError('train.totl: unknown field.')"
    with notebook_shell() as shell:
        with pytest.raises(ConfigError):
            shell.run(cell)
        assert shell.printed == "ConfigError: train.totl: unknown field.\n"
        monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
        with pytest.raises(ConfigError):
            shell.run(cell)
        assert "Traceback (most recent call last)" in shell.printed
