"""Images that metrics and hooks return without a file name: a run keeps them in its TensorBoard files alone."""

import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from engine.base.files import open_regular
from engine.report.images import PNG, Budget

MOST_BYTES = 512 << 20  # of the event files that are read, the newest first
_HEADER, _FOOTER = struct.Struct("<QI"), 4  # length and its checksum; checksum of the content


def read_event_images(folder: Path, budget: Budget, shown: Collection[str], known: Collection[bytes]) -> list[Any]:
    """Returns name, step and address of the newest image of each name.

    Args:
        folder: the folder `tensorboard` of a run.
        budget: what may be embedded.
        shown: names of results that the report shows already, such as curves, which TensorBoard has as images.
        known: images that are not needed again.
    """
    newest: dict[str, tuple[int, bytes]] = {}
    for path in _event_files(folder):
        for step, name, content in _images(path):
            if step >= newest.get(name, (-1, b""))[0]:
                newest[name] = (step, content)
    found = []
    for name, (step, content) in sorted(newest.items()):
        if name in shown or "/figures/" in name or content in known:
            continue
        if address := budget.embed(content):
            found.append({"name": f"{name}, step {step:,}", "src": address})
    return found


def _event_files(folder: Path) -> list[Path]:
    """Returns the event files, the oldest first, without the oldest ones where all are too large together."""
    try:
        files = [(path.stat().st_mtime, path.stat().st_size, path) for path in folder.iterdir() if path.is_file()]
    except OSError:
        return []
    left, found = MOST_BYTES, []
    for _, size, path in sorted(files, reverse=True):
        left -= size
        if left >= 0 and "tfevents" in path.name:
            found.append(path)
    return found[::-1]


def _images(path: Path) -> Iterator[tuple[int, str, bytes]]:
    """Yields step, name and content of each PNG of a file, as far as it is complete."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto import event_pb2

    events: Any = event_pb2  # its names are made at import
    for record in _records(path):
        if PNG not in record:
            continue
        try:
            event = events.Event.FromString(record)
        except DecodeError:
            continue
        for value in event.summary.value:
            if value.WhichOneof("value") == "image" and value.image.encoded_image_string.startswith(PNG):
                yield event.step, value.tag, value.image.encoded_image_string


def _records(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb", opener=open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            while len(header := file.read(_HEADER.size)) == _HEADER.size:
                length, _ = _HEADER.unpack(header)
                if length > size - file.tell():  # incomplete, or damaged
                    return
                yield file.read(length)
                file.seek(_FOOTER, os.SEEK_CUR)
    except OSError:
        return
