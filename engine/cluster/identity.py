"""Which process of the run this one is.

`processes.initialize` sets it when all processes have joined. Until then, and without it, JAX's own
`jax.distributed.initialize` counts where an author has called that.
"""

import sys

from engine.cluster.cluster_detection import Processes

_joined: Processes | None = None


def set_joined(who: Processes) -> None:
    """Records who this process is among the joined ones."""
    global _joined
    _joined = who


def index() -> int:
    """Returns the number of this process. Starts no device once several processes have joined."""
    return _current().index


def count() -> int:
    """Returns how many processes the run has."""
    return _current().count


def is_primary() -> bool:
    """Whether this process writes the run's files and the screen."""
    return index() == 0


def _current() -> Processes:
    if _joined is not None:
        return _joined
    if "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized():
            return Processes(jax.process_index(), jax.process_count())
    return Processes()
