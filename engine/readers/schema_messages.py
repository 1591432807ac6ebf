"""Base of the decoders of messages in MCAP logs, whose schemas the logs hold (extra `mcap`)."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, ClassVar

from engine.base.errors import DataError
from engine.data.examples import Example
from engine.readers.extras import import_extra
from engine.readers.message_arrays import Field, to_example


class SchemaMessages:
    """Function from the bytes of a message to an example: see `message_arrays.to_example`. It is pickled as its schema.

    A subclass sets the fields in its `__init__`, which takes the name and the schema.

    Args:
        name: full name of the type.
        schema: as in the log.

    Raises:
        DataError: the package that decodes the messages is not installed.
    """

    kind: ClassVar[str]
    """The messages in error texts, such as "Messages of ROS 2"."""
    module: ClassVar[str]
    """Module with the `DecoderFactory` of the package mcap."""
    encodings: ClassVar[tuple[str, str]]
    """Encoding of the messages and of their schema."""
    fields: tuple[Field, ...]
    """The fields with their dtypes."""

    def __init__(self, name: str, schema: bytes):
        import_extra(self.module, "mcap", self.kind)
        self._schema = (name, schema)

    def __getstate__(self):
        return self._schema

    def __setstate__(self, schema):
        self.__init__(*schema)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._schema[0]!r}, {self.fields})"

    def __call__(self, data: bytes) -> Example:
        """Returns the example. Raises DataError if the message is damaged."""
        try:
            message = self._decode(data)
        except Exception as error:  # struct.error, UnicodeDecodeError and others
            raise DataError(
                f"is no {self._schema[0]}, or is damaged: {type(error).__name__}: {error}. Try `mcap recover`."
            ) from error
        return to_example(message, self.fields)

    @functools.cached_property
    def _decode(self) -> Callable[[bytes], Any]:
        from mcap.records import Schema

        name, text = self._schema
        factory = importlib.import_module(self.module).DecoderFactory()
        decode = factory.decoder_for(self.encodings[0], Schema(id=1, name=name, encoding=self.encodings[1], data=text))
        assert decode is not None
        return decode
