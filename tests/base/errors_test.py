import pickle

import pytest

from engine.base.errors import ConfigError, ConvoyError, FieldError, UnknownFieldError, did_you_mean


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
