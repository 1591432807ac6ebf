"""Where every thread of this process is: as a file with all stacks, and as a line about the main thread.

Owns: how stacks are written and shortened. Does not own: when (`watchdog.py`).
"""

import contextlib
import faulthandler
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType

from engine.cluster.failure_signature import is_users, short

FRAMES = 6  # innermost ones that are shown on the screen


def dump(file: Path) -> Path | None:
    """Writes the stacks of all threads to a file, and returns it; None where it cannot be written."""
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
    """Returns in a line where the main thread is, and other threads as far as they run the user's code."""
    main = threading.main_thread().ident
    places = [_place(_frames()[main])]
    for thread in threading.enumerate():
        frame = _frames().get(thread.ident)
        if thread.ident != main and frame is not None and (users := _innermost(frame, users=True)):
            places.append(f"thread {thread.name} {users}")
    return ", ".join(places)


def _place(frame: FrameType) -> str:
    """The innermost frame; before it the user's own, where another one follows it."""
    innermost, users = _innermost(frame), _innermost(frame, users=True)
    return innermost if users in ("", innermost) else f"{users} > {innermost}"


def _innermost(frame: FrameType, users: bool = False) -> str:
    """`file:line in function`; of the user's code alone, with "" where there is none."""
    found = [f for f in traceback.extract_stack(frame) if not users or is_users(f.filename)]
    return f"{short(found[-1].filename)}:{found[-1].lineno} in {found[-1].name}" if found else ""


def _frames() -> dict[int | None, FrameType]:
    return {**sys._current_frames()}
