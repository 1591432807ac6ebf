"""The log of a run: `log.txt`, through the standard logger named "convoy".

Any package may write to it: `logging.getLogger("convoy").info(...)`. A line is in the file when the call returns, so
the last lines before a crash are not lost; that costs the calling thread some microseconds.
"""

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from engine.mounts import shown
from engine.run.atomic import cannot_write

logger = logging.getLogger("convoy")


class RunLog:
    """Appends what the logger gets, from INFO on, to a file until it is closed. A context manager.

    Until then the root logger gets none of it: libraries (absl, Orbax) add handlers there that would print each line a
    second time.
    """

    def __init__(self, path: Path):
        """
        Raises:
            RunError: the file cannot be opened for writing.
        """
        try:
            self._handler = _File(path)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._before = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self._handler)

    def close(self) -> None:
        """Ends the file and leaves the logger as it was; a second call does nothing."""
        if self._handler in logger.handlers:
            logger.removeHandler(self._handler)
            level, logger.propagate = self._before
            logger.setLevel(level)
            self._handler.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def sync() -> None:
    """Has what was logged so far put on the disk, where it outlives the machine, or into a bucket; may wait for it."""
    for handler in logger.handlers:
        if isinstance(handler, _File):
            handler.sync()


class _File(logging.FileHandler):
    """Writes `2025-01-31T12:00:00Z text`; a level above INFO is named. A full disk is told once, on stderr."""

    def __init__(self, path: Path):
        super().__init__(path, mode="a", encoding="utf-8")
        self._told = False

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
        return f"{moment} {level}{shown(super().format(record))}"

    def sync(self) -> None:
        with suppress(OSError, ValueError):  # of a disk in trouble, which `emit` tells, or a file that ends now
            if self.stream is not None:
                os.fsync(self.stream.fileno())

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was told by handleError
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is logging's
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(cannot_write(Path(self.baseFilename), error), file=sys.stderr)
