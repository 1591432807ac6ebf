"""Converts the sequences of a `tf.train.SequenceExample`: each is a list of steps, and each step a feature."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.base.errors import DataError
from engine.readers.tf_features import IMAGE, Feature, as_objects, feature_entry
from engine.readers.tf_values import Values


def sequence_entry(name: str, feature: Feature, steps: Sequence[Values | None]) -> Any:
    """Returns the values of a sequence: an array `[steps, ...]`, or a list of arrays if steps differ in length.

    Args:
        name: name of the sequence.
        feature: describes one step.
        steps: (kind, values) of each step; None for a step without values.

    Raises:
        DataError: a step has no value, or its values do not fit; the text names the step.
    """
    entries = []
    for number, step in enumerate(steps):
        try:
            entries.append(feature_entry(name, feature, step))
        except DataError as error:
            raise DataError(f"step {number}: {error}") from error
    if not entries:
        return _no_steps(feature)
    if isinstance(entries[0], str | bytes):
        return as_objects(entries)
    if len({entry.shape for entry in entries}) > 1:
        return entries
    return np.stack(entries)


def _no_steps(feature: Feature) -> np.ndarray:
    shape = [0 if size is None else size for size in feature.shape]
    if feature.dtype == IMAGE:
        return np.zeros([0, *(shape or [0, 0]), 3], np.uint8)
    dtype = {"bytes": "S1", "str": "U1"}.get(feature.dtype, feature.dtype)
    return np.zeros([0, *shape], np.dtype(dtype))
