"""Reads TFRecord files as a source with random access, without TensorFlow.

A record is its length (uint64), the masked CRC32C of the length, the data, and the masked CRC32C of the data; all
numbers are little-endian. The index of a file holds the offset and the size of each record.
"""

import hashlib
import os
import struct
from array import array

import numpy as np

from engine.base.errors import DataError
from engine.data.examples import FINGERPRINT_EXAMPLES, Example, evenly_spaced
from engine.data.file_states import FileStates
from engine.data.source import SEPARATOR, SPEC_TRIES, BaseSource
from engine.readers.decoders import Decoder, decode, decoder_name, find_decoder
from engine.readers.decompressed import compression, find_copy, write_copy
from engine.readers.extras import import_extra
from engine.readers.files import Pattern, file_names, find_files, sampled_files
from engine.readers.record_files import RecordFiles
from engine.readers.saved_index import Index, file_indexes
from engine.readers.tf_example import TFExample
from engine.storage.mounts import shown

FORM = "tfrecord-2"
BUFFER = 1 << 16  # bytes read at once while the index is built: small records come many at a time
HEADER, FOOTER = 12, 4  # bytes before and after the data of a record
# Sizes that stand for the damaged end of a file. It counts as one record, which cannot be read.
TRUNCATED, BAD_LENGTH = -1, -2


class TFRecord(BaseSource):
    """Source of the records of TFRecord files.

    On the first use of a file, an index of its records is built, which checks the checksum of each length, and saved in
    `.convoy_index/` next to the file, or in the user's cache folder. The checksum of the data is checked when a record
    is read. If a file is damaged so that the next record cannot be found, the rest of the file is one bad record. A
    file that is compressed by gzip or zlib is decompressed once, into the folder of its index.

    Args:
        pattern: path or list of paths; shell wildcards and bucket addresses are allowed.
        decoder: what makes an example from a record: a function of the bytes, or its dotted path. The default is
            `TFExample()`, which reads every feature of `tf.train.Example`.

    Raises:
        DataError: no file matches, a file cannot be decompressed, no record can be read, or google-crc32c is not
            installed.
        ConfigError: the path of the decoder does not exist.
    """

    def __init__(self, pattern: Pattern, decoder: str | Decoder | None = None):
        import_extra("google_crc32c", "tfrecord", "TFRecord files")
        paths = find_files(pattern, "TFRecord")
        self.paths, self.file_states = paths, FileStates(paths)
        indexes = file_indexes(paths, FORM, _build)
        copies = [_copy(path, index) for path, index in zip(paths, indexes, strict=True)]
        self._files = RecordFiles(paths, [len(index["size"]) for index in indexes], self.file_states, copies)
        self._offsets = np.concatenate([index["offset"] for index in indexes])
        self._sizes = np.concatenate([index["size"] for index in indexes])
        if len(self) and not (self._sizes >= 0).any():
            raise DataError(f"{self._damage(0)} Check that {shown(paths[0])} is a TFRecord file.")
        self._decoder = find_decoder(TFExample() if decoder is None else decoder, "decoder")
        if isinstance(self._decoder, TFExample) and len(self):
            self._decoder = self._decoder.inferred(self._first_records())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        """Returns one example. Raises DataError, which names the file and the record, if it cannot be read."""
        return decode(self._decoder, self.record(index), lambda: self._files.name(index))

    def record(self, index: int) -> bytes:
        """Returns the data of a record. Raises DataError if it is damaged."""
        file, _ = self._files.locate(index)
        size = int(self._sizes[index])
        if size < 0:
            raise DataError(self._damage(index))
        stored = self._files.read(file, int(self._offsets[index]), size + FOOTER)
        data = stored[:size]
        if _checksum(data) != stored[size:]:
            raise DataError(f"{self._files.name(index)}: its data does not match its checksum. Copy the file again.")
        return data

    def fingerprint(self) -> str:
        """Returns the names, sizes and hashed samples of the first files, a hash of some records, and the decoder."""
        found = hashlib.blake2b(SEPARATOR.join(file_names(self._files.paths)).encode(), digest_size=16)
        for index in evenly_spaced(len(self), FINGERPRINT_EXAMPLES):
            try:
                found.update(self.record(index))
            except DataError:  # training reports the error when it reads this record
                found.update(b"cannot be read")
        decoder = f"decoder {decoder_name(self._decoder)}".replace(SEPARATOR, " ")
        return SEPARATOR.join([*sampled_files(self._files.paths), f"records {found.hexdigest()}", decoder])

    def _first_records(self) -> list[bytes]:
        """Returns a sample of the records that can be read."""
        found = []
        for index in evenly_spaced(len(self), SPEC_TRIES):
            try:
                found.append(self.record(index))
            except DataError:
                continue
        return found

    def _damage(self, index: int) -> str:
        """Returns what is wrong with the end of a file that holds no further record."""
        reason = {
            TRUNCATED: "the file ends within this record",
            BAD_LENGTH: "its length does not match the checksum of the length, so that the next record is not found",
        }[int(self._sizes[index])]
        where = f"{self._files.name(index)}, at byte {int(self._offsets[index])}"
        return f"{where}: {reason}. The file is incomplete or damaged: copy or write it again."


def _checksum(data: bytes) -> bytes:
    """Returns the masked CRC32C of data, as it is stored."""
    import google_crc32c

    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFF_FFFF)


def _build(path: str) -> Index:
    """Returns the offset of the data and the size of each record of a file, int64 `[records]` each.

    `plain` holds the size of the decompressed copy of a compressed file, int64 `[1]`, else nothing.
    """
    with open(path, "rb") as file:
        begin = file.read(HEADER)
    kind = None if _checksum(begin[:8]) == begin[8:] else compression(begin)
    written = None if kind is None else write_copy(path, FORM, kind)
    if written is None:
        return {**_records(path), "plain": np.zeros(0, np.int64)}
    copy, complete = written
    found = _records(copy)
    if not complete and not (found["size"] < 0).any():  # it ends after a record, but records are missing
        end = os.path.getsize(copy)
        found = {"offset": np.append(found["offset"], end), "size": np.append(found["size"], TRUNCATED)}
    return {**found, "plain": np.array([os.path.getsize(copy)], np.int64)}


def _copy(path: str, index: Index) -> str:
    """Returns the file that the records of a file are read from: the file itself, or its decompressed copy."""
    if not len(index["plain"]):
        return path
    found = find_copy(path, FORM, int(index["plain"][0]))
    if found is None:  # it was deleted, and the index was not
        with open(path, "rb") as file:
            written = write_copy(path, FORM, compression(file.read(2)) or "")
        found = written[0] if written else path
    return found


def _records(path: str) -> Index:
    """Returns the offset of the data and the size of each record of an uncompressed file."""
    offsets, sizes, position = array("q"), array("q"), 0  # lists would take five times the memory
    with open(path, "rb", BUFFER) as file:
        end = file.seek(0, 2)
        while position < end:
            file.seek(position)
            header = file.read(HEADER)
            size = BAD_LENGTH
            if len(header) < HEADER:
                size = TRUNCATED
            elif _checksum(header[:8]) == header[8:]:
                (size,) = struct.unpack_from("<Q", header)
                size = size if size <= end - position - HEADER - FOOTER else TRUNCATED
            offsets.append(position if size < 0 else position + HEADER)
            sizes.append(size)
            if size < 0:
                break
            position += HEADER + size + FOOTER
    return {"offset": np.array(offsets, np.int64), "size": np.array(sizes, np.int64)}
