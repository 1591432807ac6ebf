"""Decompressed copies of files that are compressed as a whole by gzip or zlib, since these allow no random access.

The copy of `data/a.gz` is `data/.convoy_index/a.gz.FORM.plain`, or lies in the user's cache folder, as its index does.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from engine.base.errors import DataError
from engine.base.files import temporary_path
from engine.cluster import output
from engine.cluster.identity import is_primary
from engine.readers.bucket_cache import COPY
from engine.readers.saved_index import index_paths
from engine.storage.mounts import shown

BLOCK = 1 << 20  # bytes that are read at once
_WINDOW = {"gzip": 31, "zlib": 15}  # bits, as zlib.decompressobj takes them


def compression(begin: bytes) -> str | None:
    """Returns "gzip" or "zlib" if a file that begins with these bytes may be compressed so."""
    if begin[:2] == b"\x1f\x8b":
        return "gzip"
    # Method 8 (deflate), a window of at most 32 KiB, and a check of both bytes: RFC 1950, section 2.2.
    is_zlib = len(begin) > 1 and begin[0] & 15 == 8 and begin[0] >> 4 <= 7 and (begin[0] << 8 | begin[1]) % 31 == 0
    return "zlib" if is_zlib else None


def find_copy(path: str, form: str, size: int) -> str | None:
    """Returns the copy of a file that has this size; None if there is none.

    Args:
        path: the compressed file.
        form: name and version of the content of its index, such as "tfrecord-2".
        size: size of the copy in bytes, which the index holds.
    """
    for copy in _copies(path, form):
        with contextlib.suppress(OSError):
            if copy.stat().st_size == size:
                return str(copy)
    return None


def write_copy(path: str, form: str, kind: str) -> tuple[str, bool] | None:
    """Writes the copy of a file; it appears complete or not at all.

    Args:
        path: the compressed file.
        form: as for `find_copy`.
        kind: "gzip" or "zlib".

    Returns:
        The path of the copy, and whether the file is complete and its checksums are right; None if nothing can be
        decompressed, so that the file may not be compressed at all.

    Raises:
        DataError: the copy cannot be written anywhere.
    """
    problem = ""
    for copy in _copies(path, form):
        unfinished = temporary_path(copy)
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            if is_primary():
                output.show(f"decompressing {shown(path)} into {copy}, which allows random access")
            blocks = _Blocks(path, kind)
            with open(unfinished, "xb") as file:
                for block in blocks:
                    file.write(block)
                something = blocks.complete or file.tell() > 0
            if something:
                os.replace(unfinished, copy)
                return str(copy), blocks.complete
            os.unlink(unfinished)
            return None
        except OSError as error:
            problem = f"{copy} ({error.strerror or error})"
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
    raise DataError(
        f"{shown(path)} is compressed by {kind}, and its copy cannot be written to {problem}. Make room, or decompress "
        "the file yourself."
    )


class _Blocks:
    """The decompressed blocks of a file, up to its end or its damage."""

    def __init__(self, path: str, kind: str):
        self._path, self._kind = path, kind
        self.complete = False
        """Whether the last member of the file has ended, and nothing is damaged; known after the last block."""

    def __iter__(self) -> Iterator[bytes]:
        with open(self._path, "rb") as file, contextlib.suppress(zlib.error):
            stream = zlib.decompressobj(_WINDOW[self._kind])
            rest = file.read(BLOCK)
            while rest:
                yield stream.decompress(rest, BLOCK)
                rest = stream.unconsumed_tail or (stream.unused_data + file.read(BLOCK))
                if stream.eof and rest:
                    rest = rest.lstrip(b"\0")  # gzip ignores zeros at the end
                    if rest and self._kind == "zlib":
                        return
                    stream = zlib.decompressobj(_WINDOW[self._kind]) if rest else stream
                    rest = rest or file.read(BLOCK)
            while not stream.eof and (more := stream.decompress(b"", BLOCK)):
                yield more
            self.complete = stream.eof


def _copies(path: str, form: str) -> list[Path]:
    return [place.with_suffix(COPY) for place in index_paths(path, form)]
