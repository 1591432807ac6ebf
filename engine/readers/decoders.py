"""Decoders of records: functions from bytes to an example, given as such or by dotted path."""

import re
from collections.abc import Callable
from typing import Any

from engine.config import target
from engine.config.errors import DataError
from engine.config.schema import Target
from engine.data.stages import stage

type Decoder = Callable[[bytes], Any]
"""Returns the example, or a part of it, that bytes hold."""


def find_decoder(decoder: "str | Decoder", where: str) -> Decoder:
    """Returns a decoder, imported if it is a dotted path such as `package.module.decode`.

    Raises:
        ConfigError: the path does not exist, or names no function.
        DataError: it is not a function.
    """
    if isinstance(decoder, str):
        return target.resolve(Target(target=decoder), where)
    if not callable(decoder):
        raise DataError(
            f"{where}: found {decoder!r}, allowed is a function of the bytes, or its dotted path, such as "
            "'package.module.decode'."
        )
    return decoder


def decoder_name(decoder: Decoder) -> str:
    """Returns a text that identifies a decoder and its settings, for fingerprints."""
    name = getattr(decoder, "__qualname__", None)
    if name is not None:
        return f"{decoder.__module__}.{name}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(decoder))  # an address differs in each process


def decode(decoder: Decoder, data: bytes, where: str) -> Any:
    """Returns the result of a decoder. Raises DataError, which names the record, if the decoder raises anything."""
    try:
        with stage("decode"):
            return decoder(data)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:
        raise DataError(
            f"{where}: {decoder_name(decoder)} failed: {type(error).__name__}: {error}. Correct the decoder, or repair "
            "the record."
        ) from error
