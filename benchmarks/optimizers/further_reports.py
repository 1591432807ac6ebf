"""Tables of the chunks beside the comparison of optimizers."""

from collections.abc import Sequence

from benchmarks.optimizers.rows import Row


def further_tables(found: Sequence[Row]) -> list[str]:
    """Returns the tables that the rows allow."""
    return []
