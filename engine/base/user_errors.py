"""Describes errors of the user's code: one line with the innermost frame of that code, instead of a traceback.

The user's code is every file outside of the engine, of installed packages and of Python's standard library. A package
that a config names in a target counts as well, although it may be installed: it is used if no other frame is found.
"""

import sysconfig
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.base.errors import EngineEnd
from engine.base.host import ADVICE

_ENGINE = {file.parents[1] for file in (Path(__file__), Path(__file__).resolve())}  # Bazel runs links to the files
_LIBRARY = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_INSTALLED = ("site-packages", "dist-packages")
_COMPILED = (".pyx", ".pxi", ".pxd")  # frames of Cython name files that are not there: numpy/random/mtrand.pyx
_LIBRARY_NOTE = "has removed its internal frames"  # text of JAX's and Grain's note
_LONGEST = 600  # characters of an error's text in a sentence; the traceback has all of them
_target_packages: set[str] = set()  # top-level packages that the targets of a config name


def add_target_package(name: str) -> None:
    """Counts an installed package, such as "perception", as the user's code."""
    _target_packages.add(name)


def describe(error: BaseException) -> str:
    """Returns one line: the type and text of an error, the frame of the user's code, and the error's notes.

    `KeyError: 'imagee' (perception.py:12 in loss). The batch has image, label.` A ConvoyError is its own description.
    """
    if isinstance(error, EngineEnd):
        return f"{error.kind}: {error}"
    text = f"{type(error).__name__}: {_text(error)}".removesuffix(": ")
    if where := location(error):
        text = f"{text.rstrip('.')} ({where})"
    notes = [note for note in getattr(error, "__notes__", ()) if _LIBRARY_NOTE not in note]
    if isinstance(error, MemoryError):
        notes.append(f"Memory ran out, or its limit (ulimit -v) is too low: use {ADVICE}, or raise the limit")
    elif "can't start new thread" in text:
        notes.append("Raise the limit of processes (ulimit -u, or pids.max of a container) or of memory (ulimit -v)")
    return " ".join(_sentence(part) for part in (text, *notes))


def _text(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the code ended the process with sys.exit({'' if error.code is None else repr(error.code)})"
    try:
        text = str(error)
    except Exception as broken:  # the user's own class of errors
        return f"its text cannot be shown ({type(broken).__name__})"
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return paragraph if len(paragraph) <= _LONGEST else f"{paragraph[:_LONGEST]} ..."


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def location(error: BaseException) -> str:
    """Returns `file:line in function` of the innermost frame of the user's code; "" if there is none.

    In a chain of errors, the last error with such a frame counts.
    """
    chain = error_chain(error)
    found = (innermost_frame(link, installed) for installed in (False, True) for link in chain)
    return next(filter(None, found), "")


def error_chain(error: BaseException) -> list[BaseException]:
    """Returns the error and the errors that it follows from, the latest first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and all(link is not other for other in chain):
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def innermost_frame(error: BaseException, installed: bool = False) -> str:
    """Returns `file:line in function` of the last frame in the user's code, "" if there is none.

    Args:
        error: only its own traceback is read, not those of its causes.
        installed: whether frames of installed packages that a config names count too.
    """
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if is_user_code(file) or (installed and not _target_packages.isdisjoint(Path(file).with_suffix("").parts)):
            found = f"{short_path(file)}:{line} in {frame.f_code.co_name}"
    return found


def traced_place(frames: Iterable[Any]) -> str:
    """Returns `file:line in function` of the first frame in the user's code, "" if there is none.

    Args:
        frames: frames of an equation of a jaxpr, the innermost first (`equation.source_info.traceback.frames`).
    """
    for frame in frames:
        if is_user_code(frame.file_name):
            return f"{short_path(frame.file_name)}:{frame.line_num} in {frame.function_name.rpartition('.')[2]}"
    return ""


def is_user_code(file: str) -> bool:
    """Whether a file is the user's code and not part of an installed package."""
    path = Path(file)
    if file.startswith("<") or path.suffix in _COMPILED or set(_INSTALLED) & set(path.parts):
        return False
    return not _ENGINE & set(path.parents) and not file.startswith(_LIBRARY)


def short_path(file: str) -> str:
    """Returns the path relative to the working directory if the file is inside it."""
    path = Path(file)
    with suppress(OSError):  # the working directory was deleted
        if path.is_relative_to(Path.cwd()):
            return str(path.relative_to(Path.cwd()))
    return file


def has_traceback(error: BaseException) -> bool:
    """Whether an error, or one that it follows from, was raised outside of the engine: its traceback is useful."""
    return any(
        link.__traceback__ is not None and not isinstance(link, EngineEnd | KeyboardInterrupt)
        for link in error_chain(error)
    )
