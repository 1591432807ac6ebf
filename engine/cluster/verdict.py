"""Files that a process writes for its launcher: its verdict, its completed steps, and the path of the run's status.

An environment variable names the file of the verdict. A process that has begun leaves a file until it is done. A killed
process leaves no verdict, but its steps are known: they are in a memory-mapped file, which outlives it. A process
without a launcher has a parent that waits (`parent.py`): memory that both share holds what the parent must know.
"""

import json
import mmap
import os
import signal
import struct
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.base.errors import EngineEnd
from engine.base.user_errors import error_chain, innermost_frame
from engine.cluster import output, tracebacks
from engine.cluster.exit_status import ExitStatus, status_of
from engine.storage.mounts import shown

VARIABLE = "CONVOY_VERDICT"
"""Environment variable with the file `<folder>/<index>.json` of this process; all processes share the folder."""
STATUS = "status"
"""File in that folder that contains the path of the run's status."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that ask a run to stop."""
_BEGAN = ".began"  # suffix of the file from `begin` to `done`

_MEMORY = 8192  # bytes that a process shares with its parent: steps, exit code, signals, path of the status
_CODE = slice(8, 9)  # 1 + the exit code with which the process wants to end; 0 before that
_PASSED_ON = 9  # number of stop signals that the parent has passed on
_file: Path | None = None  # file of this process, once `begin` has read the variable


@dataclass(frozen=True)
class Verdict:
    """How and why a process ended."""

    index: int  # index of the process
    code: int  # its exit code
    text: str  # a sentence as its last line, without a trailing newline; a traceback may precede it
    time: float  # when it decided to exit, by the monotonic clock that all processes of a machine share
    signature: str = ""  # signature of its error (`failure_signature`)
    state: str = "failed"  # `state` of a run that ends with its error (`EngineEnd.state`)

    @staticmethod
    def of(error: BaseException, index: int) -> "Verdict":
        """Returns the verdict of a process that ends because of an error."""
        by_user = isinstance(error, KeyboardInterrupt) and not isinstance(error, EngineEnd)
        text = "interrupted" if by_user else tracebacks.report_text(error)
        state = error.state if isinstance(error, EngineEnd) else Verdict.state
        text = shown(text.rstrip())
        return Verdict(index, status_of(error), text, time.monotonic(), failure_signature(error), state)

    @property
    def blames_peer(self) -> bool:
        """Whether it states only that another process is gone or does not answer, such as a LostPeer."""
        return self.code == ExitStatus.RETRY and self.state == "failed" and not self.signature

    @property
    def line(self) -> str:
        """The text in one line, without a traceback before it."""
        return (self.text.splitlines() or [""])[-1]


def is_launched() -> bool:
    """Whether a launcher reads and prints the verdict of this process."""
    return _file is not None or bool(os.environ.get(VARIABLE))


def folder() -> Path | None:
    """Returns the folder that all processes of a job share with their launcher; None without a launcher."""
    return _path().parent if is_launched() else None


def _path() -> Path:
    """Returns the file of this process's verdict."""
    return _file or Path(os.environ[VARIABLE])


def begin() -> None:
    """States for the launcher that this process began and is not done. Programs that it starts are not launched."""
    global _file
    if name := os.environ.pop(VARIABLE, ""):
        _file = Path(name)
        with suppress(OSError):  # without this file the launcher believes every exit code
            _file.with_suffix(_BEGAN).write_text(str(os.getpid()))


_memory: mmap.mmap | None = None  # shared with the parent that waits for this process


def share() -> None:
    """Creates the memory through which this process, once forked, tells its parent about its end."""
    global _memory
    _memory = mmap.mmap(-1, _MEMORY)


def intend(code: int) -> None:
    """States for the parent that this process is about to exit with a code that it has explained."""
    if _memory is not None:
        _memory[_CODE] = bytes([(code + 1) & 0xFF])


def is_intended(code: int) -> bool:
    """In the parent: whether its child has stated that it ends with this code."""
    return _memory is not None and _memory[_CODE] == bytes([(code + 1) & 0xFF])


def pass_on(number: int) -> None:
    """In the parent: counts a signal that it is about to pass on to its child."""
    if _memory is not None and number in STOP_SIGNALS:
        _memory[_PASSED_ON] = (_memory[_PASSED_ON] + 1) & 0xFF


def passed_on() -> int:
    """Returns the number of stop signals that the parent has passed on to this process.

    A signal to the group of both processes arrives twice, and counts once.
    """
    return 0 if _memory is None else _memory[_PASSED_ON]


def shared_status() -> tuple[str, int]:
    """In the parent: the status file of the run of its child, "" before there is one, and the steps of the child."""
    if _memory is None:
        return "", 0
    return os.fsdecode(_memory[16:].rstrip(b"\0")), struct.unpack("q", _memory[:8])[0]


def done() -> None:
    """States for the launcher that this process ends with 0 because it is done. Needs no space on the disk."""
    if _file is not None:
        _file.with_suffix(_BEGAN).unlink(missing_ok=True)


def is_unfinished(folder: Path, index: int) -> bool:
    """Whether a process has begun and has not stated that it is done."""
    return (folder / f"{index}{_BEGAN}").exists()


def running_pid(folder: Path, index: int) -> int | None:
    """Returns the pid of a process that has begun and is not done; its launcher may have started it through a shell."""
    with suppress(OSError, ValueError):
        return int((folder / f"{index}{_BEGAN}").read_text())
    return None


def report(error: BaseException) -> None:
    """Records the verdict for the launcher, which prints it once; without a launcher, prints its text."""
    tracebacks.keep(error)
    found = Verdict.of(error, 0)
    if is_launched():
        record(found.code, found.text, found.signature, found.state)
    else:
        output.show(found.text)


def record(code: int, text: str, signature: str = "", state: str = Verdict.state) -> None:
    """Writes this process's verdict atomically, unless it already has a verdict."""
    path = _path()
    if not path.exists():
        found = Verdict(int(path.stem), code, text.rstrip(), time.monotonic(), signature, state)
        _write(path, json.dumps(asdict(found)))


def read(folder: Path) -> list[Verdict]:
    """Returns the verdicts of all processes so far, the earliest first."""
    verdicts = [Verdict(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(verdicts, key=lambda verdict: verdict.time)


def read_peers() -> list[Verdict]:
    """Returns the verdicts of the other processes of this job, the earliest first; none without a launcher."""
    if not is_launched():
        return []
    mine = _path()
    return [verdict for verdict in read(mine.parent) if str(verdict.index) != mine.stem]


def record_status_path(path: Path) -> None:
    """Records the path of the run's status file for the launcher, which corrects the status after a kill."""
    if is_launched():
        _write(_path().parent / STATUS, shown(path.absolute()))
    elif _memory is not None:
        name = os.fsencode(shown(path.absolute()))[: _MEMORY - 16]
        _memory[16:] = name.ljust(_MEMORY - 16, b"\0")


_steps: memoryview | None = None  # read by the launcher, if there is one


def step_counter() -> memoryview:
    """Returns a buffer of one int64, in which this process counts its steps for the launcher."""
    global _steps
    if _steps is None:
        _steps = memoryview(_shared() if is_launched() else _memory or bytearray(8))[:8].cast("q")
    return _steps


def read_steps(folder: Path) -> dict[int, int]:
    """Returns process index -> completed steps, of the processes that have counted any."""
    found = {int(path.stem): path.read_bytes() for path in folder.glob("*.step")}
    return {index: struct.unpack("q", data)[0] for index, data in found.items() if len(data) == 8}


def _shared() -> mmap.mmap:
    with open(_path().with_suffix(".step"), "wb+") as file:
        file.truncate(8)
        return mmap.mmap(file.fileno(), 8)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.write_bytes(os.fsencode(text))  # a path may not be UTF-8
    temporary.replace(path)


def failure_signature(error: BaseException) -> str:
    """Returns `KeyError at perception.py:12 in loss`; only the type if no frame is in the user's code.

    Errors caused from outside (a lost peer, a signal) have no signature: "". In a chain of errors, the first error with
    such a frame counts, since later errors only wrap it.
    """
    if isinstance(error, EngineEnd) and error.from_outside:
        return ""
    frames = [frame for link in reversed(error_chain(error)) if (frame := innermost_frame(link))]
    return f"{type(error).__name__} at {frames[0]}" if frames else type(error).__name__
