"""The table of the worst examples of an evaluation: their indices in the dataset, their scores and their text."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.cluster import group
from engine.data.source import BaseSource, source_text
from engine.data.text import is_text, text_of
from engine.metrics.results import Table

EXAMPLE = "example"  # column with the index of the example in the dataset, as in predictions


class WorstExamples:
    """Makes the table for a dataset. Reads only the listed examples again, and only if examples hold text.

    Args:
        source: the examples.
    """

    def __init__(self, source: BaseSource):
        self._source, self._text = source, source_text(source)

    def table(
        self, score: str, scores: np.ndarray, indices: np.ndarray, on_progress: Callable[[], None] = lambda: None
    ) -> Table:
        """Returns the table; in processes other than the primary without the text.

        Args:
            score: name of the score.
            scores: scores of the worst examples, the worst first.
            indices: indices of these examples in the dataset.
            on_progress: called after each example whose text is read.
        """
        columns: dict[str, Sequence[Any]] = {EXAMPLE: indices.tolist(), score: scores.tolist()}
        if self._text and group.is_primary():
            texts = {}
            for index in sorted(indices.tolist()):  # files are read in their order
                texts[index] = self._read(index)
                on_progress()
            rows = [texts[index] for index in indices.tolist()]
            columns |= {name: [text.get(name, "") for text in rows] for name in self._text if name not in columns}
        return Table(columns)

    def _read(self, index: int) -> dict[str, str]:
        """Returns path -> text of an example; {} if it cannot be read any more, since the table is complete without."""
        try:
            return {path: _cell(value) for path, value in text_of(self._source[index]).items()}
        except Exception:
            return {}


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and is_text(value):
        return ", ".join(map(_cell, value.reshape(-1).tolist()))
    return str(value)
