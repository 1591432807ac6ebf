"""Reads MCAP logs as a source with random access: one example for each message of a topic (extra `mcap`)."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import FINGERPRINT_EXAMPLES, Example, evenly_spaced
from engine.data.file_states import FileStates
from engine.data.source import SEPARATOR, SPEC_TRIES, BaseSource
from engine.readers.decoders import Decoder, decode, decoder_name, find_decoder
from engine.readers.extras import import_extra
from engine.readers.files import Pattern, file_names, find_files, sampled_files
from engine.readers.json_values import find_json_values
from engine.readers.mcap_file import FORM, Messages, Schema, build_index, read_schemas
from engine.readers.mcap_types import schema_decoder
from engine.readers.members import default_decoder
from engine.readers.record_files import RecordFiles
from engine.readers.saved_index import Index, file_indexes
from engine.storage.mounts import shown

NS = 1e-9  # seconds in a nanosecond


class _Log(NamedTuple):
    """The examples of one log, and the messages that they hold."""

    start: int
    """Nanoseconds of the first message of the log."""
    time: np.ndarray
    """Nanoseconds `[messages]`; the other two are those of the index."""
    chunk: np.ndarray
    offset: np.ndarray
    chosen: np.ndarray
    """Message of each topic `[examples, topics]`."""
    damage: np.ndarray
    """Byte at which the log is damaged, if it is: the last example stands for what is lost."""

    @property
    def examples(self) -> int:
        return len(self.chosen) + len(self.damage)


class Mcap(BaseSource):
    """Source of the messages of MCAP logs, such as those of ROS 2.

    There is one example for each message of the first of the topics. It holds the latest message of each other topic
    at that time, by log time and from the same log. Where a topic has no message yet, there is no example. An example
    is a dict of

    - the decoded message of each topic, under the name of the topic,
    - `time`, float64: seconds since the first message of the log,
    - `age`, float32 `[topics]`: seconds since the message of each topic,
    - `log`, text: the name of the file; `log_time`, text: nanoseconds, since they do not fit 32 bits.

    On the first use of a log, an index of its messages is built and saved in `.convoy_index/` next to the log, or in
    the user's cache folder. A chunk is the smallest read: to read a large log often, convert it with
    `convoy data write`.

    Args:
        pattern: path or list of paths; shell wildcards and bucket addresses are allowed.
        topics: name of the topic, or names of several.
        decoders: topic -> function of the data of a message, or its dotted path. By default, messages of ROS 2 (cdr),
            of Protocol Buffers and in JSON become dicts of arrays and text.
        decode: field of a message, such as "/camera.data", or a topic -> function of the decoded value that returns
            what replaces it, such as `engine.readers.DecodeImage()`; or its dotted path.
        max_age_s: leaves out examples in which a message is older.
        dtypes: field of a message in JSON, such as "/imu.speed" -> dtype, instead of that of the first examples.

    Raises:
        DataError: no file matches, a file is no log, no example has all topics, a topic needs a decoder, `dtypes` names
            an unknown field, or mcap is not installed.
        ConfigError: the path of a decoder does not exist.
    """

    def __init__(
        self,
        pattern: Pattern,
        topics: str | Sequence[str],
        decoders: Mapping[str, str | Decoder] | None = None,
        max_age_s: float | None = None,
        dtypes: Mapping[str, str] | None = None,
        decode: Mapping[str, str | Decoder] | None = None,
    ):
        import_extra("mcap", "mcap", "MCAP logs")
        self.topics = [topics] if isinstance(topics, str) else list(topics)
        if not self.topics or len(set(self.topics)) < len(self.topics):
            raise DataError(f"topics = {self.topics}: name at least one topic, and each once.")
        paths = find_files(pattern, "MCAP")
        self.paths, self.file_states = paths, FileStates(paths)
        indexes = file_indexes(paths, FORM, build_index)
        self._max_age_s = max_age_s
        given = self._known_decoders(indexes, decoders or {})
        self._decode = [
            (self._path_of(field), find_decoder(one, f"decode.{field}")) for field, one in (decode or {}).items()
        ]
        self._logs = [_log(index, self.topics, max_age_s) for index in indexes]
        self._files = RecordFiles(paths, [log.examples for log in self._logs], self.file_states)
        self._messages = Messages(self._files)
        self._names = [os.path.basename(path) for path in paths]
        if not any(len(log.chosen) for log in self._logs):
            raise DataError(
                f"{shown(paths[0])}: none of {len(paths)} logs has an example with a message of each of "
                f"{', '.join(self.topics)}. Remove a topic, or raise max_age_s."
            )
        values = find_json_values([topic for topic in self.topics if topic not in given], self._first_values, dtypes)
        self._decoders = {
            topic: given[topic] if topic in given else default_decoder("json", values[topic]) for topic in self.topics
        }

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        """Returns one example. Raises DataError, which names the log, if a message is damaged."""
        file, log, chosen = self._locate(index)
        messages = chosen.tolist()
        times = [int(log.time[message]) for message in messages]  # NumPy takes longer for a few numbers
        example: dict[str, Any] = {
            "time": np.array((times[0] - log.start) * NS),
            "age": np.array([(times[0] - time) * NS for time in times], np.float32),
            "log": self._names[file],
            "log_time": str(times[0]),
        }
        for topic, message in zip(self.topics, messages, strict=True):
            data = self._read(file, log, message, chosen)
            example[topic] = decode(
                self._decoders[topic], data, lambda topic=topic: f"{self._where(file, log, chosen)}, {topic}"
            )
        for path, decoder in self._decode:
            _replace(example, path, decoder, self._where(file, log, chosen))
        return example

    def fingerprint(self) -> str:
        """Returns the names, sizes and hashed samples of the first logs, a hash of some messages, and the topics."""
        found = hashlib.blake2b(SEPARATOR.join(file_names(self._files.paths)).encode(), digest_size=16)
        for index in evenly_spaced(len(self), FINGERPRINT_EXAMPLES):
            try:
                file, log, chosen = self._locate(index)
                for message in chosen.tolist():
                    found.update(self._read(file, log, message, chosen))
            except DataError:  # training reports the error when it reads this example
                found.update(b"cannot be read")
        used = [*self._decoders.items(), *((".".join(path), decoder) for path, decoder in self._decode)]
        topics = ", ".join(f"{name} {decoder_name(decoder)}" for name, decoder in used)
        parts = [*sampled_files(self._files.paths), f"messages {found.hexdigest()}"]
        return SEPARATOR.join([*parts, f"{len(self)} examples", f"topics {topics}".replace(SEPARATOR, " ")])

    def _locate(self, index: int) -> tuple[int, _Log, np.ndarray]:
        """Returns the file of an example, its log, and its messages `[topics]`."""
        file, number = self._files.locate(index)
        log = self._logs[file]
        if number == len(log.chosen):
            raise DataError(
                f"{shown(self._files.paths[file])}: the log is damaged or ends at byte {log.damage[0]}, and messages "
                "after it cannot be found. Copy it again, or write what is left to a new log: mcap recover FILE -o NEW."
            )
        return file, log, log.chosen[number]

    def _where(self, file: int, log: _Log, chosen: np.ndarray) -> str:
        """Returns the name of an example in error texts."""
        return f"{shown(self._files.paths[file])}, message of {self.topics[0]} at {log.time[chosen[0]]} ns"

    def _read(self, file: int, log: _Log, message: int, chosen: np.ndarray) -> bytes:
        try:
            return self._messages.read(file, int(log.chunk[message]), int(log.offset[message]))
        except DataError as error:
            raise DataError(f"{self._where(file, log, chosen)}: {error}") from error

    def _first_values(self, topic: str) -> list[Any]:
        """Returns the values of the JSON messages of a topic in the first examples."""
        number, read, values = self.topics.index(topic), default_decoder("json", lambda value: value), []
        for index in range(min(len(self), SPEC_TRIES)):
            with contextlib.suppress(DataError):  # training reports the error when it reads this example
                file, log, chosen = self._locate(index)
                values.append(read(self._read(file, log, int(chosen[number]), chosen)))
        return values

    def _path_of(self, field: str) -> list[str]:
        """Returns the topic and the names in it of a field such as "/camera.data"."""
        topics = [topic for topic in self.topics if f"{field}.".startswith(f"{topic}.")]
        if not topics:
            raise DataError(
                f"decode: {field!r} is no field of a topic that is read.{did_you_mean(field, self.topics)} Write "
                f"TOPIC.FIELD; topics: {', '.join(self.topics)}."
            )
        topic = max(topics, key=len)
        return [topic, *field[len(topic) + 1 :].split(".")] if field != topic else [topic]

    def _known_decoders(self, indexes: Sequence[Index], given: Mapping[str, str | Decoder]) -> dict[str, Decoder]:
        """Returns the given decoders, and those of topics with a schema; JSON has none.

        Raises:
            DataError: a topic is unknown or needs a decoder, or its messages have several types.
        """
        types: dict[str, dict[tuple[str, Schema | None], str]] = {}  # topic -> its types, and a log with each
        for index, path in zip(indexes, self.paths, strict=True):
            schemas = [*read_schemas(index), None]
            rows = zip(index["topic"].tolist(), index["encoding"].tolist(), index["schema"].tolist(), strict=True)
            for topic, encoding, schema in rows:
                types.setdefault(topic.decode(), {}).setdefault((encoding.decode(), schemas[schema]), path)
        for topic in [*self.topics, *given]:
            if topic not in types:
                raise DataError(
                    f"topics: no log has {topic!r}.{did_you_mean(topic, types)} Found: {', '.join(sorted(types))}."
                )
        found = {topic: find_decoder(decoder, f"decoders.{topic}") for topic, decoder in given.items()}
        for topic in self.topics:
            if topic not in given and any(encoding != "json" for encoding, _ in types[topic]):
                found[topic] = schema_decoder(topic, types[topic])
        return found


def _replace(example: Any, path: Sequence[str], decoder: Decoder, where: str) -> None:
    """Replaces a field by the result of a decoder. Raises DataError if there is no such field."""
    *parents, last = path
    for name in parents:
        example = example.get(name) if isinstance(example, dict) else None
    if not isinstance(example, dict) or last not in example:
        names = ", ".join(example) if isinstance(example, dict) else "none"
        raise DataError(
            f"{where}: decode names the field {'.'.join(path)}, which does not exist. Fields there: {names}."
        )
    example[last] = decode(decoder, example[last], f"{where}, {'.'.join(path)}")


def _log(index: Index, topics: Sequence[str], max_age_s: float | None) -> _Log:
    """Chooses the messages of each example of a log; messages are in the order of their log times."""
    of_topic = []
    for topic in topics:
        channels = index["id"][index["topic"] == topic.encode()]
        of_topic.append(np.flatnonzero(np.isin(index["channel"], channels)))
    first = of_topic[0]
    times = index["time"][first]
    columns, complete = [first], np.ones(len(first), bool)
    for messages in of_topic[1:]:
        latest = np.searchsorted(index["time"][messages], times, side="right") - 1
        complete &= latest >= 0
        column = messages[np.maximum(latest, 0)] if len(messages) else np.zeros(len(first), np.int64)
        if max_age_s is not None:
            complete &= times - index["time"][column] <= max_age_s / NS
        columns.append(column)
    chosen = np.stack(columns, axis=1)[complete]
    start = int(index["time"][0]) if len(index["time"]) else 0
    used, numbers = np.unique(chosen, return_inverse=True)  # a log has many more messages than those of the topics
    chosen = numbers.reshape(chosen.shape)
    return _Log(start, index["time"][used], index["chunk"][used], index["offset"][used], chosen, index["damage"])
