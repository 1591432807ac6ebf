"""A wall clock that a test moves while a job runs, by a library that is compiled here and preloaded (`clock.c`)."""

import struct
import subprocess
from pathlib import Path
from typing import Any

HOUR = 3600


class Clock:
    """The wall clock of the processes that are started with `env`; the machine's own is left alone.

    Args:
        folder: for the library and the file that holds the offset.
        offset: seconds by which it is ahead at first.
    """

    def __init__(self, folder: Path, offset: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        library, self._file = folder / "clock.so", folder / "offset"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60)
        self.jump_to(offset)
        self.env: dict[str, Any] = {"LD_PRELOAD": str(library), "CONVOY_TEST_CLOCK": str(self._file)}

    def jump_to(self, offset: int) -> None:
        """Moves it to so many seconds ahead of the machine's clock, in one piece."""
        if self._file.exists():
            with open(self._file, "r+b") as file:
                file.write(struct.pack("=q", offset))
        else:
            self._file.write_bytes(struct.pack("=q", offset))
