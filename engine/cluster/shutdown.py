"""How one process of several ends: its last words for its launcher and its peers, and the end at once.

Owns: the verdict's file, which lies where a variable of the launcher says, the step beside it, the bound on waits that
nothing interrupts, and the end from another thread than the main one. Does not own: which code an error has (the error
does), how peers learn of it (`peer_failure.py`), or the job's code (`launch/`).

Terms. *Verdict*: the exit code that a process chose, with the text of its error. A process that was killed leaves none;
the step that it had reached is known all the same, since a file mapped into memory outlives it. *Last act*: what must
still be done when a thread ends the process while the main one is stuck, as writing the status.
"""

import json
import mmap
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from engine.cluster.failure_signature import failure_signature
from engine.config.errors import ConvoyError
from engine.mounts import shown

VARIABLE = "CONVOY_VERDICT"
"""Names the file `<folder>/<index>.json` of this process; the folder holds those of all processes."""
STATUS = "status"
"""File in that folder: the path of the run's status."""
_ACTS_S = 8.0  # for all last acts together
_THREADS_S = 3.0  # for threads that are still at work, as one that reads data and gets none


@dataclass(frozen=True)
class Verdict:
    """How a process ended."""

    index: int  # of the process
    code: int  # its exit code
    text: str  # sentence or traceback, without a line end
    time: float  # when it decided to end, by the monotonic clock that all processes of a machine share
    cause: str = ""  # what the error is known by when it comes again (`failure_signature.py`)

    @property
    def line(self) -> str:
        """The text in one line: a sentence, or what a traceback ends with, `KeyError: 'image'`."""
        lines = self.text.splitlines() or [""]
        raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
        return raised[-1] if lines[0].startswith("Traceback") and raised else lines[-1]


def wanted() -> bool:
    """Whether a launcher reads the verdict of this process, and shows it."""
    return bool(os.environ.get(VARIABLE))


_step: memoryview | None = None  # where a launcher reads it; where there is none, nobody does


def counter() -> memoryview:
    """Returns the place, one int64, where this process tells the launcher how many steps it has done."""
    global _step
    if _step is None:
        _step = memoryview(_shared() if wanted() else bytearray(8)).cast("q")
    return _step


def _shared() -> mmap.mmap:
    with open(Path(os.environ[VARIABLE]).with_suffix(".step"), "wb+") as file:
        file.truncate(8)
        return mmap.mmap(file.fileno(), 8)


def steps(folder: Path) -> dict[int, int]:
    """Returns index -> steps done, of the processes that have told of some."""
    found = {int(path.stem): path.read_bytes() for path in folder.glob("*.step")}
    return {index: struct.unpack("q", data)[0] for index, data in found.items() if len(data) == 8}


def record(code: int, text: str, cause: str = "") -> None:
    """Writes this process's verdict, in one piece; the first one stays."""
    path = Path(os.environ[VARIABLE])
    if not path.exists():
        _write(path, json.dumps(asdict(Verdict(int(path.stem), code, text.rstrip(), time.monotonic(), cause))))


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.{threading.get_ident()}.tmp")
    beside.write_text(text)
    beside.replace(path)


def read(folder: Path) -> list[Verdict]:
    """Returns the verdicts of all processes so far, the earliest first."""
    verdicts = [Verdict(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(verdicts, key=lambda verdict: verdict.time)


def of_others() -> list[Verdict]:
    """Returns those of the other processes of this job, the earliest first; none where no launcher asks for them."""
    if not wanted():
        return []
    mine = Path(os.environ[VARIABLE])
    return [verdict for verdict in read(mine.parent) if str(verdict.index) != mine.stem]


def tell(code: int, text: str, cause: str = "") -> None:
    """Hands why this process ends to its launcher, which shows it once, or prints it."""
    if wanted():
        record(code, text, cause)
    else:
        print(text.rstrip(), file=sys.stderr)


def note_status(path: Path) -> None:
    """Tells the launcher which file holds the status of the run, so that it can correct one that a kill left behind."""
    if wanted():
        _write(Path(os.environ[VARIABLE]).parent / STATUS, shown(path.absolute()))


_last_acts: list[Callable[[int, str], None]] = []


def add_last_act(act: Callable[[int, str], None]) -> None:
    """From now on `act(exit code, text)` is called before a thread ends this process; the newest first."""
    _last_acts.append(act)


def remove_last_act(act: Callable[[int, str], None]) -> None:
    """No longer."""
    _last_acts.remove(act)


def end(error: ConvoyError) -> NoReturn:
    """Ends this process from any thread, whatever the main one is stuck in: last acts, last words, exit code."""

    def acts() -> None:
        for act in reversed(_last_acts):
            with suppress(Exception):  # of the others: the end must come
                act(error.exit_code, str(error))

    text = shown(f"{error.kind}: {error}")
    tell(error.exit_code, text, failure_signature(error))
    thread = threading.Thread(target=acts, daemon=True)  # storage that hangs must not keep it
    thread.start()
    thread.join(_ACTS_S)
    end_alone(error.exit_code)


def end_alone(code: int) -> NoReturn:
    """Ends this process at once, since Python's own end would wait for the others; what was printed is shown."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def end_soon(code: int) -> None:
    """Ends this process in some seconds, if Python's own end, which waits for all threads, does not come before."""
    timer = threading.Timer(_THREADS_S, end_alone, (code,))
    timer.daemon = True
    timer.start()


@contextmanager
def bounded(seconds: float, make: Callable[[], ConvoyError]) -> Iterator[None]:
    """Ends the process with an error's sentence when a wait inside JAX, which nothing interrupts, takes longer."""
    timer = threading.Timer(seconds, lambda: end(make()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def first_line(error: BaseException) -> str:
    """The part of JAX's texts that is for people; stacks and registers follow."""
    return (str(error).splitlines() or [""])[0][:300]
