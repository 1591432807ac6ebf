import functools

import pytest

from engine.config.errors import ConfigError, DataError
from engine.readers.decoders import decode, decoder_name, find_decoder
from engine.readers.tf_example import TFExample


def broken(data):
    raise KeyError("x")


def test_decoder_is_a_function_or_its_path():
    assert find_decoder(broken, "decoder") is broken
    assert find_decoder("json.loads", "decoder")(b"[1]") == [1]
    with pytest.raises(ConfigError, match=r"decoder.target: found 'json.load5'"):
        find_decoder("json.load5", "decoder")
    with pytest.raises(DataError, match="decoder: found 3, allowed is a function of the bytes, or its dotted path"):
        find_decoder(3, "decoder")  # pyright: ignore[reportArgumentType]


def test_name_of_a_decoder_tells_its_settings():
    assert decoder_name(broken) == "tests.readers.decoders_test.broken"
    assert decoder_name(functools.partial(broken)) == "functools.partial(<function broken>)"  # without its address
    assert decoder_name(TFExample({"x": "int8"})) == "TFExample({'x': ('int8', (), None)})"


def test_error_of_a_decoder_names_the_record():
    with pytest.raises(DataError, match=r"record 3 of a: tests.readers.decoders_test.broken failed: KeyError: 'x'"):
        decode(broken, b"", "record 3 of a")
    with pytest.raises(DataError, match="record 3 of a: byte 0: there is no field 0"):
        decode(TFExample({"x": "int8"}), b"\0", "record 3 of a")
