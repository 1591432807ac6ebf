"""What a format of a public benchmark defines: the predictions and entries of examples that it needs, and its file.

`files.py` finds a format by its name, checks the names of predictions, and reads the examples.
"""

import abc
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np


class SubmissionFormat(abc.ABC):
    """A file for a benchmark, which is written example by example.

    Args:
        file: the open file. The engine opens it under a temporary name, closes it, and renames it when it is complete.
    """

    suffix: ClassVar[str]
    """Ending of the name of the file, such as ".json"."""
    predictions: ClassVar[Mapping[str, str]]
    """Name of a prediction that `Task.predict` must return -> what it is, with shape and unit, for errors and docs."""
    entries: ClassVar[Mapping[str, str]]
    """Name of an entry that each example must have, such as its identifier -> what it is."""

    def __init__(self, file: BinaryIO):
        self.file = file

    @abc.abstractmethod
    def add(self, prediction: Mapping[str, np.ndarray], example: Mapping[str, Any]) -> None:
        """Adds the predictions of an example.

        Args:
            prediction: all that `Task.predict` returned for this example, by name, without the batch dimension.
            example: the example of the source, read once more on the host: with its text, and in its own dtypes.

        Raises:
            TaskError: a prediction has a wrong shape or value.
            DataError: an entry of the example has a wrong value.
        """

    @abc.abstractmethod
    def finish(self) -> None:
        """Writes what is left to the file, after the last example."""
