"""Stack traces of this process: a file with all threads, and short texts about the main thread."""

import contextlib
import faulthandler
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType

from engine.base.user_errors import is_user_code, short_path

FRAMES = 6  # innermost frames shown on the screen


def dump(file: Path) -> Path | None:
    """Writes the stacks of all threads to a file and returns it; None if it cannot be written."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        with file.open("w", encoding="utf-8") as target:
            names = ", ".join(f"0x{thread.ident:016x} {thread.name}" for thread in threading.enumerate())
            target.write(f"Threads: {names}\n")
            target.flush()
            faulthandler.dump_traceback(target, all_threads=True)
        return file
    return None


def main_thread() -> str:
    """Returns the innermost frames of the main thread, outermost first, as a traceback shows them."""
    frames = traceback.extract_stack(_frames()[threading.main_thread().ident])[-FRAMES:]
    return "Main thread, innermost call last:\n" + "".join(traceback.format_list(frames)).rstrip()


def where() -> str:
    """Returns one line: the location of the main thread, and of other threads that run the user's code."""
    main = threading.main_thread().ident
    found = [_location(_frames()[main])]
    for thread in threading.enumerate():
        frame = _frames().get(thread.ident)
        if thread.ident != main and frame is not None and (users := _innermost(frame, users=True)):
            found.append(f"thread {thread.name} {users}")
    return ", ".join(found)


def _location(frame: FrameType) -> str:
    """Returns the innermost frame, preceded by the innermost frame of the user's code if that is another frame."""
    innermost, users = _innermost(frame), _innermost(frame, users=True)
    return innermost if users in ("", innermost) else f"{users} > {innermost}"


def _innermost(frame: FrameType, users: bool = False) -> str:
    """Returns the innermost `file:line in function`; with `users`, of the user's code only, "" if there is none."""
    found = [f for f in traceback.extract_stack(frame) if not users or is_user_code(f.filename)]
    return f"{short_path(found[-1].filename)}:{found[-1].lineno} in {found[-1].name}" if found else ""


def _frames() -> dict[int | None, FrameType]:
    return {**sys._current_frames()}
