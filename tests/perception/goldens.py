"""Values and gradients of PyTorch as golden numbers.

Written by: python -m benchmarks.references --only=perception --cases=1 --golden=tests/perception/golden
"""

from pathlib import Path

from benchmarks.references import perception

FOLDER = Path(__file__).parent / "golden" / "perception"


def differing(start: str, count: int) -> list[str]:
    """Returns the items that begin with `start` and differ from PyTorch. Fails for another number of rows."""
    rows = list(perception.compared(FOLDER, start))
    assert len(rows) == count, f"{len(rows)} rows of values and gradients begin with {start!r}"
    return [f"{row.item}: {row.largest_difference}" for row in rows if not row.agrees]
