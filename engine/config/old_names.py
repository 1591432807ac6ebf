"""Dotted paths that older configs name, and the paths of today.

A stored run with such a path stays readable; in a config it works with a warning. Write the public path instead, such
as `engine.readers.ArrayRecordSource`: it does not change when a module moves.
"""

MOVED = {
    "engine.data.array_record": "engine.readers.array_record",
    "engine.metrics.detection": "engine.driving.detection",
    "engine.metrics.detection_score": "engine.driving.detection_score",
    "engine.metrics.forecasting": "engine.driving.forecasting",
}
"""Module of version 0.2.0 -> its module today."""


def current(path: str) -> str:
    """Returns today's dotted path for one of an earlier release; any other path unchanged."""
    module, _, name = path.rpartition(".")
    return f"{MOVED[module]}.{name}" if module in MOVED else path
