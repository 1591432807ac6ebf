"""Keeps the traceback of an unexpected error in a file, because the screen shows one sentence (`user_errors.py`).

The file is the log of the run, or a temporary file if no run has been opened. A traceback is never lost: it is printed
if no file can be written, or if the environment variable CONVOY_TRACEBACK is set.
"""

import contextlib
import tempfile
import traceback
from pathlib import Path

from engine.base.errors import TRACEBACK_VARIABLE, EngineEnd, shows_traceback
from engine.base.user_errors import describe, has_traceback
from engine.storage.mounts import shown

_FILE = "_convoy_traceback_file"  # attribute of an error: the file that has its traceback


def traceback_text(error: BaseException) -> str:
    """Returns the traceback of an error and of the errors that it follows from."""
    return "".join(traceback.format_exception(error)).rstrip()


def set_file(error: BaseException, file: Path) -> None:
    """States that a file has the traceback of this error."""
    setattr(error, _FILE, shown(file))


def is_unexpected(error: BaseException) -> bool:
    """Whether an error was raised by the user's code or a library and is none of the engine's own errors."""
    return has_traceback(error) and not isinstance(error, EngineEnd | KeyboardInterrupt)


def keep(error: BaseException) -> None:
    """Writes the traceback of an unexpected error to a temporary file, unless a file has it already."""
    if not is_unexpected(error) or getattr(error, _FILE, None) is not None or shows_traceback():
        return
    try:
        descriptor, name = tempfile.mkstemp(prefix="convoy-traceback-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(traceback_text(error) + "\n")
        set_file(error, Path(name))
    except OSError:
        return  # `report_text` contains the traceback


def write(file: Path, text: str) -> Path | None:
    """Writes a traceback to a file in the run directory and returns the file; None if it cannot be written."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        return file
    return None


def report_text(error: BaseException) -> str:
    """Returns what the screen shows of an error: a sentence as the last line, after the traceback if that is shown."""
    sentence, file = describe(error), getattr(error, _FILE, None)
    if is_unexpected(error) and file is not None:
        sentence += f" The traceback is in {file}; {TRACEBACK_VARIABLE}=1 prints it."
    if (shows_traceback() and has_traceback(error)) or (is_unexpected(error) and file is None):
        return f"{traceback_text(error)}\n{sentence}"
    return sentence
