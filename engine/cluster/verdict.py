"""What a process leaves for its launcher, in files: its verdict, the steps it has done, where the run's status lies.

The launcher names the verdict's file in a variable. A killed process leaves no verdict, but its steps are known all the
same: they lie in a file that is mapped into memory, which outlives the process.
"""

import json
import mmap
import os
import re
import struct
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.cluster.exit_status import status_of
from engine.cluster.failure_signature import failure_signature
from engine.config.errors import ConvoyError
from engine.mounts import shown

VARIABLE = "CONVOY_VERDICT"
"""Names the file `<folder>/<index>.json` of this process; the folder holds those of all processes."""
STATUS = "status"
"""File in that folder: the path of the run's status."""


@dataclass(frozen=True)
class Verdict:
    """How a process ended."""

    index: int  # of the process
    code: int  # its exit code
    text: str  # sentence or traceback, without a line end
    time: float  # when it decided to end, by the monotonic clock that all processes of a machine share
    cause: str = ""  # its signature (`failure_signature.py`)

    @staticmethod
    def of(error: BaseException, index: int) -> "Verdict":
        """Returns the verdict of a process that an error ends."""
        text = "".join(traceback.format_exception(error))
        if isinstance(error, ConvoyError):
            text = f"{error.kind}: {error}"
        elif isinstance(error, KeyboardInterrupt):
            text = "interrupted"
        return Verdict(index, status_of(error), shown(text.rstrip()), time.monotonic(), failure_signature(error))

    @property
    def line(self) -> str:
        """The text in one line: a sentence, or the last line of a traceback, `KeyError: 'image'`."""
        lines = self.text.splitlines() or [""]
        raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
        return raised[-1] if lines[0].startswith("Traceback") and raised else lines[-1]


def is_launched() -> bool:
    """Whether a launcher reads the verdict of this process, and shows it."""
    return bool(os.environ.get(VARIABLE))


def report(error: BaseException) -> None:
    """Hands the reason of this process's end to its launcher, which shows it once, or prints it."""
    found = Verdict.of(error, 0)
    if is_launched():
        record(found.code, found.text, found.cause)
    else:
        print(found.text, file=sys.stderr)


def record(code: int, text: str, cause: str = "") -> None:
    """Writes this process's verdict at once and whole; the first one stays."""
    path = Path(os.environ[VARIABLE])
    if not path.exists():
        _write(path, json.dumps(asdict(Verdict(int(path.stem), code, text.rstrip(), time.monotonic(), cause))))


def read(folder: Path) -> list[Verdict]:
    """Returns the verdicts of all processes so far, the earliest first."""
    verdicts = [Verdict(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(verdicts, key=lambda verdict: verdict.time)


def of_others() -> list[Verdict]:
    """Returns those of the other processes of this job, the earliest first; none without a launcher."""
    if not is_launched():
        return []
    mine = Path(os.environ[VARIABLE])
    return [verdict for verdict in read(mine.parent) if str(verdict.index) != mine.stem]


def note_status(path: Path) -> None:
    """Names the run's status file to the launcher, which corrects one that a kill left behind."""
    if is_launched():
        _write(Path(os.environ[VARIABLE]).parent / STATUS, shown(path.absolute()))


_steps: memoryview | None = None  # the launcher reads it; without a launcher nobody does


def step_counter() -> memoryview:
    """Returns the memory, one int64, in which this process counts its steps for the launcher."""
    global _steps
    if _steps is None:
        _steps = memoryview(_shared() if is_launched() else bytearray(8)).cast("q")
    return _steps


def read_steps(folder: Path) -> dict[int, int]:
    """Returns index -> steps done, of the processes that have counted any."""
    found = {int(path.stem): path.read_bytes() for path in folder.glob("*.step")}
    return {index: struct.unpack("q", data)[0] for index, data in found.items() if len(data) == 8}


def _shared() -> mmap.mmap:
    with open(Path(os.environ[VARIABLE]).with_suffix(".step"), "wb+") as file:
        file.truncate(8)
        return mmap.mmap(file.fileno(), 8)


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.{threading.get_ident()}.tmp")
    beside.write_text(text)
    beside.replace(path)
