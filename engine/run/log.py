"""The log of a run: `log.txt`, through the standard logger named "convoy".

Any package may write to it: `logging.getLogger("convoy").info(...)`. A line is in the file when the call returns, so
the last lines before a crash are not lost. This costs the calling thread a few microseconds.
"""

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from engine.cluster import output
from engine.run.atomic import cannot_write
from engine.storage.mounts import shown

logger = logging.getLogger("convoy")


class RunLog:
    """Appends the logger's records of level INFO and above to a file until `close`. A context manager.

    Until then records do not propagate to the root logger: libraries (absl, Orbax) add handlers there that would print
    each line a second time.
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
        """Closes the file and restores the logger; a second call does nothing."""
        if self._handler in logger.handlers:
            self._handler.note_output()
            logger.removeHandler(self._handler)
            level, logger.propagate = self._before
            logger.setLevel(level)
            self._handler.close()

    @property
    def is_complete(self) -> bool:
        """Whether every record could be written so far."""
        return not self._handler.error_reported

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def sync() -> None:
    """Syncs the log to disk, or to its bucket, so that it survives a crash of the machine. May wait for the storage."""
    for handler in logger.handlers:
        if isinstance(handler, _File):
            handler.sync()


class _File(logging.FileHandler):
    """Writes `2025-01-31T12:00:00Z text`, with the level if above INFO. Reports a full disk once, on stderr."""

    def __init__(self, path: Path):
        super().__init__(path, mode="a", encoding="utf-8", errors="backslashreplace")  # paths may not be UTF-8
        self.error_reported = False

    def emit(self, record: logging.LogRecord) -> None:
        self.note_output()
        super().emit(record)

    def note_output(self) -> None:
        """Writes which output streams went silent since the last record."""
        for text in output.unreported():
            super().emit(logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": text}))

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
        return f"{moment} {level}{shown(super().format(record))}"

    def sync(self) -> None:
        with suppress(OSError, ValueError):  # a failing disk, which `emit` reports, or a file that is being closed
            if self.stream is not None:
                os.fsync(self.stream.fileno())

    def close(self) -> None:
        with suppress(OSError):  # handleError has reported it
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is logging's
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.error_reported:
            self.error_reported = True
            output.show(str(cannot_write(Path(self.baseFilename), error)))
