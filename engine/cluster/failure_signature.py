"""The signature of an error: its type and the innermost frame of the user's code. Supervisors compare signatures.

The user's code is every file outside of the engine, of installed packages and of Python's standard library.
"""

import sysconfig
from pathlib import Path
from traceback import walk_tb

from engine.config.errors import ConvoyError

_ENGINE = {file.parents[1] for file in (Path(__file__), Path(__file__).resolve())}  # Bazel runs links to the files
_LIBRARY = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_INSTALLED = ("site-packages", "dist-packages")


def failure_signature(error: BaseException) -> str:
    """Returns `KeyError at perception.py:12 in loss`; only the type if no frame is in the user's code.

    Errors caused from outside (a lost peer, a signal) have no signature: "". In a chain of errors, the first error with
    such a frame counts, since later errors only wrap it.
    """
    if isinstance(error, ConvoyError) and error.from_outside:
        return ""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    frames = [frame for link in reversed(chain) if (frame := _innermost(link))]
    return f"{type(error).__name__} at {frames[0]}" if frames else type(error).__name__


def _innermost(error: BaseException) -> str:
    """Returns `file:line in function` of the last frame in the user's code, "" if there is none."""
    found = ""
    for frame, line in walk_tb(error.__traceback__):
        if is_user_code(frame.f_code.co_filename):
            found = f"{short_path(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name}"
    return found


def is_user_code(file: str) -> bool:
    """Whether a file is the user's code."""
    path = Path(file)
    if file.startswith("<") or set(_INSTALLED) & set(path.parts):
        return False
    return not _ENGINE & set(path.parents) and not file.startswith(_LIBRARY)


def short_path(file: str) -> str:
    """Returns the path relative to the working directory if the file is inside it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
