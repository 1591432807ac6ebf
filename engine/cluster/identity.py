"""Index and count of this process in the run, and the names of processes in texts.

`processes.initialize` sets them when all processes have joined. Before that, `jax.distributed.initialize` determines
them if the user has called it.
"""

import sys
from collections.abc import Iterable

from engine.cluster.cluster_detection import ProcessInfo

LISTED = 16  # processes that a sentence names: every process receives and prints it

_joined: ProcessInfo | None = None


def set_joined(process: ProcessInfo) -> None:
    """Records the identity of this process after it has joined."""
    global _joined
    _joined = process


def index() -> int:
    """Returns the index of this process. After `initialize` with several processes, it does not start JAX's devices."""
    return _current().index


def count() -> int:
    """Returns the number of processes of the run."""
    return _current().count


def is_primary() -> bool:
    """Whether this process writes the run's files and the screen."""
    return index() == 0


def _current() -> ProcessInfo:
    if _joined is not None:
        return _joined
    if "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized():
            return ProcessInfo(jax.process_index(), jax.process_count())
    return ProcessInfo()


def process_list(indices: Iterable[int]) -> str:
    """Returns "process 3" or "processes 1, 3"; of many processes the first `LISTED` and the number of the others."""
    numbers = sorted(indices)
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:LISTED]))}{more}"
