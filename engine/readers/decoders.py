"""Decoders of records: functions that return an example from bytes, or the dotted paths of such functions."""

import dataclasses
import functools
import hashlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.base.errors import DataError
from engine.base.user_errors import describe
from engine.config import target
from engine.config.schema import Target
from engine.data.stages import stage
from engine.readers.fingerprints import digest

MOST_TEXT = 400  # characters of the settings of a decoder in a fingerprint; a longer text is hashed

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
    """Returns a text that identifies a decoder and its settings, for fingerprints; it is the same in each process.

    The settings of an object, such as that of a bound method, are its `repr`, or else its attributes.
    """
    text = _described(decoder, ())
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}... {digest([text])}"


def _described(value: Any, parents: tuple[Any, ...]) -> str:
    if any(value is parent for parent in parents):
        return "..."

    def inner(child: Any) -> str:
        return _described(child, (*parents, value))

    if isinstance(value, functools.partial):
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if (name := getattr(value, "__qualname__", None)) is not None:
        owner = getattr(value, "__self__", None)
        of = "" if owner is None or inspect.ismodule(owner) else f" of {inner(owner)}"
        return f"{value.__module__}.{name}{of}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inner, value)))}}}"  # the order of a set differs between processes
    if isinstance(value, list | tuple):
        return f"({', '.join(map(inner, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{inner(key)}: {inner(child)}' for key, child in value.items())}}}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()}"
    if hasattr(value, "__dict__") and (dataclasses.is_dataclass(value) or type(value).__repr__ is object.__repr__):
        return f"{type(value).__module__}.{type(value).__qualname__}({inner(vars(value))})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # an address differs in each process


def decode(decoder: Decoder, data: bytes, where: str | Callable[[], str]) -> Any:
    """Returns the result of a decoder.

    Args:
        decoder: the decoder.
        data: its argument.
        where: name of the record for error texts, or a function that returns it.

    Raises:
        DataError: the decoder raised anything; the text names the record.
    """
    try:
        with stage("decode"):
            return decoder(data)
    except DataError as error:
        raise DataError(f"{_name(where)}: {error}") from error
    except Exception as error:
        raise DataError(
            f"{_name(where)}: {decoder_name(decoder)} failed: {describe(error)} Correct the decoder, or repair the "
            "record."
        ) from error


def _name(where: str | Callable[[], str]) -> str:
    return where if isinstance(where, str) else where()
