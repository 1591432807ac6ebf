"""Parts of a result that workers have finished, in a hidden folder next to the output, for a command that is repeated.

Each part is a file with its checksum. The folder belongs to one request: one with another key removes the parts.
"""

import contextlib
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from engine.api.inference import write_errors_reported
from engine.base.errors import DataError
from engine.base.files import lock_if_supported, replacing

PARTS, KEY, LOCK = ".parts", "key", "lock"
DIGEST = 16  # bytes of the checksum


class Parts:
    """The finished parts of one request. `open_parts` makes it.

    Args:
        folder: the hidden folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def save(self, number: int, part: Any) -> None:
        """Stores a part. Raises DataError if it cannot be written."""
        content = pickle.dumps(part)
        with write_errors_reported(self._folder), replacing(self._path(number)) as file:
            file.write(xxh3_128(content).digest() + content)

    def load(self, number: int) -> Any | None:
        """Returns a part; None if it is missing or damaged."""
        try:
            found = self._path(number).read_bytes()
        except OSError:
            return None
        content = memoryview(found)[DIGEST:]
        return pickle.loads(content) if xxh3_128(content).digest() == found[:DIGEST] else None

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06}"


@contextlib.contextmanager
def open_parts(out: Path, key: str) -> Iterator[Parts]:
    """Yields the parts of an output; they are removed if no error is raised inside.

    Args:
        out: path of the output.
        key: what the parts depend on.

    Raises:
        DataError: another command writes the same output, or the folder cannot be written.
    """
    folder = out.with_name(f".{out.name}{PARTS}")
    with contextlib.ExitStack() as stack:
        with write_errors_reported(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / LOCK, "w"))
            if not lock_if_supported(file, wait=False):
                raise DataError(f"{out}: another process writes this file. Wait until it ends, or stop it.")
            if _text(folder / KEY) != key:
                for path in folder.iterdir():
                    if path.name != LOCK:
                        path.unlink(missing_ok=True)
                with replacing(folder / KEY) as file:
                    file.write(key.encode())
        yield Parts(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
