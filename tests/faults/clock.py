"""A wall clock that a test changes while a job runs, by a preloaded library that is compiled here (`clock.c`)."""

import atexit
import functools
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HOUR = 3600


@functools.cache
def library() -> Path:
    """Compiles the library, once for all clocks."""
    folder = Path(tempfile.mkdtemp(prefix="convoy-clock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file, source = folder / "clock.so", Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", file, source, "-ldl"], check=True, timeout=60)
    return file


class Clock:
    """The wall clock of processes that are started with `env`. The clock of the machine does not change.

    Args:
        folder: for the file that holds the offset.
        offset: initial seconds ahead of the clock of the machine.
    """

    def __init__(self, folder: Path, offset: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "offset"
        self.jump_to(offset)
        self.env: dict[str, Any] = {"LD_PRELOAD": str(library()), "CONVOY_TEST_CLOCK": str(self._file)}

    def jump_to(self, offset: int) -> None:
        """Sets the seconds ahead of the clock of the machine, in one write."""
        if self._file.exists():
            with open(self._file, "r+b") as file:
                file.write(struct.pack("=q", offset))
        else:
            self._file.write_bytes(struct.pack("=q", offset))
