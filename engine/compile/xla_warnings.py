"""Explains XLA's warning "Involuntary full rematerialization", which its C++ code prints while it compiles a step.

The warning means that an array is copied to every device because XLA cannot change its sharding directly. It goes to
the standard error of the process, past Python. So the file descriptor is led through `tee` during a compilation: its
output also survives a crash of this process.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

SHOWN = 3  # arrays that are named
_TEE_S = 5.0  # until `tee` has written everything
_WARNING = re.compile(
    r"Involuntary full rematerialization\. .*? from sharding (?P<before>\{.*?\}) to (?P<after>\{.*?\}) efficiently for "
    r"HLO operation \S+ = (?P<array>\w+\[[\d,]*\])[^\n]*?(?:op_name=\"(?P<name>[^\"]*)\"|\n|$)"
)


@contextlib.contextmanager
def rematerialization_explained(say: Callable[[str], None]) -> Iterator[None]:
    """Calls `say` with a sentence if XLA prints the warning inside the block; the warning itself is still printed."""
    with contextlib.ExitStack() as stack:
        copy = None
        with contextlib.suppress(OSError):  # no folder for temporary files can be written
            copy = stack.enter_context(tempfile.TemporaryFile())
        if copy is None:
            yield
            return
        with _copied_to(copy.fileno()):
            yield
        copy.seek(0)
        text = copy.read().decode(errors="replace")
    if sentence := explain(text):
        say(f"warning: {sentence}")


@contextlib.contextmanager
def _copied_to(file: int) -> Iterator[None]:
    """Copies what is written to standard error into a file. Without `tee`, the file stays empty."""
    tee = _start_tee(file)
    if tee is None or tee.stdin is None:
        yield
        return
    _flush()
    former = os.dup(2)
    os.dup2(tee.stdin.fileno(), 2)
    tee.stdin.close()
    try:
        yield
    finally:
        _flush()
        os.dup2(former, 2)
        os.close(former)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process that inherited the pipe still has it open
            tee.wait(_TEE_S)


def _start_tee(file: int) -> subprocess.Popen[bytes] | None:
    """Starts `tee`; returns None if it is missing or standard error is closed."""
    try:
        return subprocess.Popen(
            ["tee", f"/dev/fd/{file}"],
            stdin=subprocess.PIPE,
            stdout=2,
            stderr=subprocess.DEVNULL,  # without /proc it cannot open the file; it still copies to standard error
            pass_fds=(file,),
            start_new_session=True,  # no signal of the terminal
        )
    except OSError:
        return None


def _flush() -> None:
    """Flushes standard error. A stream that is closed or has lost its reader is no reason to end a run."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def explain(text: str) -> str:
    """Returns which arrays XLA copies to every device and what to change; "" if the text has no such warning."""
    found = dict.fromkeys(
        f"{match['array']} of {match['name'] or 'an operation'} goes from {_dimensions(match['before'])} to "
        f"{_dimensions(match['after'])}"
        for match in _WARNING.finditer(text)
    )
    if not found:
        return ""
    listed = "; ".join(list(found)[:SHOWN]) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    return (
        "XLA copies whole arrays to every device, which costs time and memory, because it cannot change their sharding "
        f"directly ('Involuntary full rematerialization'): {listed}. The results are right. To avoid it, split the "
        "dimension over the same mesh axes before and after: map its name in sharding.rules, or set the sharding in "
        "the model with layers.constrain."
    )


def _dimensions(sharding: str) -> str:
    """Returns the mesh axes of each dimension, such as `[data, -, fsdp x tensor]`; an unknown format unchanged."""
    match = re.search(r"\], \[(.*)\]", sharding)
    if match is None:
        return sharding
    groups = [re.findall(r"'(\w+)'", group) for group in re.findall(r"\{(.*?)\}", match[1])]
    return f"[{', '.join(' x '.join(axes) or '-' for axes in groups)}]"
