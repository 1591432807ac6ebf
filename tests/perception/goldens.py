"""Values and gradients of PyTorch as golden numbers.

Written by: python -m benchmarks.references --only=perception --cases=1 --golden=tests/perception/golden
"""

from pathlib import Path

from benchmarks.references import perception

FOLDER = Path(__file__).parent / "golden" / "perception"


def differing(start: str, items: int) -> list[str]:
    """Returns the items that begin with `start` and differ from PyTorch. Fails for another number of items."""
    rows = list(perception.compared(FOLDER, start))
    assert len(rows) == 2 * items, f"{len(rows)} rows of {items} items, each with a value and a gradient"
    return [f"{row.item}: {row.largest_difference}" for row in rows if not row.agrees]
