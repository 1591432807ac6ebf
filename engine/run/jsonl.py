"""Append-only JSON-lines files, one per process.

Opening a file removes an incomplete last line that a killed writer left.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from engine.base.types import Json
from engine.run.atomic import cannot_write


def open_for_append(path: Path) -> int:
    """Opens a file for appending lines, created if it is missing, and returns its descriptor.

    An incomplete last line, as a killed writer or a full disk leaves it, is removed first. Raises OSError.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    end = size = os.fstat(file).st_size
    while end and not (tail := os.pread(file, min(end, 4096), end - min(end, 4096))).endswith(b"\n"):
        line_end = tail.rfind(b"\n")
        end = end - len(tail) + line_end + 1
    if end < size:
        os.ftruncate(file, end)
    return file


class JsonLinesWriter:
    """Lines that one process appends to its file in one attempt. The first line creates the file.

    Args:
        folder: with the files of all processes.
        process: index of this process.
        processes: number of processes.
        attempt: number of the attempt; a field of each line.
    """

    def __init__(self, folder: Path, process: int, processes: int, attempt: int):
        self._path, self._attempt = folder / f"{process}-of-{processes}.jsonl", attempt
        self._file: int | None = None

    def open(self) -> "JsonLinesWriter":
        """Creates the file now; returns `self`. Raises RunError."""
        try:
            self._path.parent.mkdir(exist_ok=True)
            self._file = open_for_append(self._path)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        return self

    def add(self, line: Mapping[str, Json]) -> None:
        """Appends a line. When it returns, the line survives a kill of this process. Raises RunError."""
        file = self.open()._file if self._file is None else self._file
        unwritten = (json.dumps({"attempt": self._attempt, **line}) + "\n").encode()
        try:
            while unwritten and file is not None:
                unwritten = unwritten[os.write(file, unwritten) :]
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
