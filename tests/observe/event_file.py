"""Reads the event files of TensorBoard."""

import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2

_events: Any = event_pb2  # its names are made at import
Event = _events.Event


def read(folder: Path) -> dict[str, Any]:
    """Returns tag -> value of the only event file of a folder."""
    (file,) = folder.iterdir()
    data, found = file.read_bytes(), {}
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        found |= {value.tag: value for value in event.summary.value}
    return found
