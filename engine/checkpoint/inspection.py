"""All checkpoints of a run looked at, file by file: what `convoy checkpoints verify` prints.

Owns: its lines, and how far it is while it takes long. Does not own: the verdict on a step (`verification.py`).
"""

import time
from collections.abc import Callable
from pathlib import Path

from engine.checkpoint.restore_latest import list_set_aside
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.verification import DamagedCheckpoint, in_short, verify
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import CheckpointError

_TELL_S = 1.0  # between two words about a step that takes long


class DamagedCheckpoints(CheckpointError):
    """Some checkpoints of a run are damaged."""

    exit_code = ExitStatus.STOP


def inspect(directory: Path, say: Callable[[str], None], tell: Callable[[str], None] = lambda text: None) -> None:
    """Reads every file of every step, the oldest first, and changes nothing; needs no JAX.

    Args:
        directory: of the step directories.
        say: is given a line for each step.
        tell: is given, about once a second, how far it is with a step.

    Raises:
        DamagedCheckpoints: at the end, if any is.
    """
    store = CheckpointStore(directory, read_only=True)
    steps, damaged = sorted(store.candidates()), 0
    for step in steps:
        begin = time.monotonic()
        try:
            manifest = verify(directory / str(step), on_bytes=_Progress(step, tell))
            size, seconds = manifest.bytes / 2**20, time.monotonic() - begin
            say(f"step {step:>8}  good     {len(manifest.files)} files, {size:.1f} MiB, {seconds:.1f} s")
        except DamagedCheckpoint as error:
            say(f"step {step:>8}  DAMAGED  {in_short(error.problems)}")
            damaged += 1
    for name, why in list_set_aside(directory):
        say(f"{name:>13}  set aside by an earlier start: {why}")
    if damaged:
        raise DamagedCheckpoints(
            f"{directory}: {damaged} of {len(steps)} checkpoints are damaged. Training sets them aside and goes on "
            "from the newest that is good; to bring one back, copy its files from elsewhere."
        )


class _Progress:
    """Tells of a step's bytes, about once a second."""

    def __init__(self, step: int, tell: Callable[[str], None]):
        self._step, self._tell, self._last = step, tell, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last >= _TELL_S:
            self._last = time.monotonic()
            self._tell(f"step {self._step}: {done / 2**30:.2f} of {total / 2**30:.2f} GiB")
