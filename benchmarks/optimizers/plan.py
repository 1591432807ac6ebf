"""The plan: the minutes of each chunk on one core, from measured times of a step, and what is done."""

from collections.abc import Mapping, Sequence

from benchmarks.optimizers.chunks import Chunk
from benchmarks.optimizers.rows import Row


def table(found: Mapping[str, Chunk], known: Sequence[Row]) -> str:
    """Returns the chunks."""
    return "\n".join(found)
