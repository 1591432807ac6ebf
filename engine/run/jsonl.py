"""JSON-lines files that only grow, such as one file for each process.

An opened file continues on a line of its own, whatever a killed writer left.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from engine.run.atomic import cannot_write
from engine.types import Json


def open_whole(path: Path) -> int:
    """Opens a file for adding lines, made where it is missing, and returns its descriptor.

    A last line without an end, as a killed writer or a full disk leaves it, is removed first. Raises OSError.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    end = size = os.fstat(file).st_size
    while end and not (cut := os.pread(file, min(end, 4096), end - min(end, 4096))).endswith(b"\n"):
        line_end = cut.rfind(b"\n")
        end = end - len(cut) + line_end + 1
    if end < size:
        os.ftruncate(file, end)
    return file


class Lines:
    """Lines that one process adds in one attempt to a file of its own; the file is made with the first line.

    Args:
        folder: of the files of all processes.
        process: index of this process.
        processes: how many there are.
        attempt: of the run; a part of each line.
    """

    def __init__(self, folder: Path, process: int, processes: int, attempt: int):
        self._path, self._attempt = folder / f"{process}-of-{processes}.jsonl", attempt
        self._file: int | None = None

    def open(self) -> "Lines":
        """Makes the file at once; returns this. Raises RunError."""
        try:
            self._path.parent.mkdir(exist_ok=True)
            self._file = open_whole(self._path)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        return self

    def add(self, line: Mapping[str, Json]) -> None:
        """Adds a line, which is with the system on return. Raises RunError."""
        file = self.open()._file if self._file is None else self._file
        left = (json.dumps({"attempt": self._attempt, **line}) + "\n").encode()
        try:
            while left and file is not None:
                left = left[os.write(file, left) :]
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
