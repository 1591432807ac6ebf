"""Writes the report of a run when an attempt ends (`log.report`). `api/train.py` names this function by its path."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.base.errors import ConvoyError, RunError
from engine.base.user_errors import describe
from engine.cluster import output
from engine.report.page import write_report
from engine.run import status
from engine.run.directory import RunDirectory
from engine.run.lease import LeaseLost

NAME = "report.html"
WRITTEN = ("done", "failed")
"""States after which a report is written. A run that was asked to stop may have only seconds to end."""


@contextmanager
def reported(directory: RunDirectory, progress: str) -> Iterator[None]:
    """Returns a context for an attempt, whose exit writes its report. An error there is a warning: the run has ended.

    Args:
        directory: the run directory; its lease is still held at the exit.
        progress: `log.progress`; "none" prints nothing.
    """
    try:
        yield
    finally:
        path = directory.path / NAME
        try:
            if _is_due(directory):
                write_report([directory.path], path, search_s=0)  # the folder may be large, and others write there
                if progress != "none":
                    output.show(f"report  {path}\n")
        except LeaseLost:
            pass  # the directory belongs to another job now
        except ConvoyError as error:
            _warn(path, str(error))
        except Exception as error:
            _warn(path, describe(error))


def _is_due(directory: RunDirectory) -> bool:
    """Returns whether the attempt has ended as WRITTEN. Raises LeaseLost if another job has taken over the run."""
    directory.lease.check()
    if not directory.exists():  # a run that failed before it was prepared
        return False
    try:
        return status.read(directory.status).state in WRITTEN
    except RunError:
        return False


def _warn(path: Path, reason: str) -> None:
    logging.getLogger("convoy").warning(
        "%s: the report is not written (%s). convoy report writes it from the files of the run.", path, reason
    )
