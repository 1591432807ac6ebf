import pickle

import pytest

from engine.config.errors import ConfigError, ConvoyError, FieldError, UnknownFieldError, did_you_mean


def test_every_error_ends_the_process_as_the_users_own_unless_it_says_otherwise():
    assert {
        error.exit_code for error in ConvoyError.__subclasses__() if error.__module__ == ConvoyError.__module__
    } == {1}


def test_a_field_error_is_a_sentence_with_the_place_where_it_was_written():
    error = FieldError("train.seed", "found 'a', allowed is an integer", "Write a number.")
    assert str(error) == "train.seed: found 'a', allowed is an integer. Write a number."
    assert str(error.at("x.py:3")) == "train.seed: found 'a', allowed is an integer (x.py:3). Write a number."
    assert str(error.at("x.py:3").at("elsewhere")) == str(error.at("x.py:3"))


def test_readers_see_one_kind_of_config_error():
    error = UnknownFieldError("a", "unknown field", "")
    assert error.kind == "ConfigError" and ConfigError("a").kind == "ConfigError"
    assert isinstance(error, ConfigError) and isinstance(error, AttributeError)


def test_field_errors_travel_between_processes():
    error = UnknownFieldError("a.b", "unknown field", "Fields here: c.", "x.py:3")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UnknownFieldError and str(copy) == str(error)


@pytest.mark.parametrize(
    ("name", "text"),
    [("totl", " Did you mean total?"), ("sed", " Did you mean seed?"), ("zzz", ""), ("", "")],
)
def test_near_names_are_offered(name, text):
    assert did_you_mean(name, ["total", "seed"]) == text
