import dataclasses
import functools
import threading

import numpy as np
import pytest

from engine.base.errors import ConfigError, DataError
from engine.readers.decoders import decode, decoder_name, find_decoder
from engine.readers.tf_example import TFExample


def broken(data):
    raise KeyError("x")


def scaled(data, by):
    return data


def test_decoder_is_a_function_or_its_path():
    assert find_decoder(broken, "decoder") is broken
    assert find_decoder("json.loads", "decoder")(b"[1]") == [1]
    with pytest.raises(ConfigError, match=r"decoder.target: found 'json.load5'"):
        find_decoder("json.load5", "decoder")
    with pytest.raises(DataError, match="decoder: found 3, allowed is a function of the bytes, or its dotted path"):
        find_decoder(3, "decoder")  # pyright: ignore[reportArgumentType]


def test_name_of_a_decoder_tells_its_settings():
    assert decoder_name(broken) == "tests.readers.decoders_test.broken"
    name = "tests.readers.decoders_test.scaled"
    assert decoder_name(functools.partial(scaled, by=[2])) == f"partial({name}, (), {{'by': (2)}})"
    assert decoder_name(TFExample({"x": "int8"})) == "TFExample({'x': ('int8', (), None)})"


class Settings:
    def __init__(self, **settings):
        self.settings, self.lock, self.itself = settings, threading.Lock(), self

    def decode(self, data):
        return data


@dataclasses.dataclass
class Fields:
    names: set

    def decode(self, data):
        return data


def test_name_of_a_bound_method_has_the_settings_of_its_object():
    different = [1, 2, {"x"}, np.arange(2000), np.arange(2001), Fields({"x"}), ["x" * 500], ["x" * 501]]
    assert len({decoder_name(Settings(a=setting).decode) for setting in different}) == len(different)
    assert decoder_name(Settings(a=1).decode) == decoder_name(Settings(a=1).decode)
    assert decoder_name(b"x".startswith) != decoder_name(b"y".startswith)
    names = [f"n{i}" for i in range(20)]
    assert decoder_name(Fields(set(names)).decode) == decoder_name(Fields(set(sorted(names)[5:]) | set(names)).decode)
    assert "'n0', 'n1', 'n10'" in decoder_name(Fields(set(names)).decode)
    assert "0x" not in decoder_name(Settings(a=1).decode)


def test_error_of_a_decoder_names_the_record():
    with pytest.raises(DataError, match=r"tests.readers.decoders_test.broken failed: KeyError: 'x' \(.*\)"):
        decode(broken, b"", "record 3 of a")
    with pytest.raises(DataError, match=r"^record 3 of a: the record of 1 bytes is no tensorflow\.Example, or "):
        decode(TFExample({"x": "int8"}), b"\0", "record 3 of a")
