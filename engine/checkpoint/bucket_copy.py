"""Copies the small files of a run in a bucket to a local folder, to read the run without a mount.

These are its config, its results and the manifests of its checkpoints. The arrays stay in the bucket:
`bucket_arrays.py` reads the parts that this process needs. The copy is removed when the process ends.
"""

import atexit
import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.base.errors import CheckpointError
from engine.base.files import temporary_folder
from engine.checkpoint.manifest import MANIFEST
from engine.storage.mounts import address_of_copy, local_path, register_copy, split_address
from engine.storage.object_store import Bucket, is_selected

READS = 16  # files that are read at the same time
_STEP_FILES = r"manifest\.json|state/_METADATA|frozen/frozen\.json"
_SMALL = re.compile(
    r"config\.txt|[^/]+\.json|(?:evaluations|goodput)\.jsonl"  # files of a run
    rf"|checkpoints/[^/]+|checkpoints/(?:frozen-)?\d+/(?:{_STEP_FILES})"
    rf"|{_STEP_FILES}"  # files of a step
)


def readable(path: str | os.PathLike[str]) -> Path:
    """Returns the local path of a run, or of the folder of a step, that is only read.

    A bucket is mounted (`storage/mounts.py`). If CONVOY_DATA_CACHE is set, the small files are copied instead; each
    call copies them again.

    Raises:
        RunError: the bucket cannot be mounted.
        CheckpointError: the bucket cannot be read, or the copy cannot be written.
    """
    address = split_address(path)
    if address is None or not is_selected(path):
        return local_path(path)
    scheme, name, key = address
    bucket, key = Bucket(scheme, name, CheckpointError), key.rstrip("/")
    parent, _, last = key.rpartition("/")
    with _disk_errors(f"{bucket.name}/{key}"):
        stack = contextlib.ExitStack()
        atexit.register(stack.close)
        root = stack.enter_context(temporary_folder("copy")).resolve()
        register_copy(root, f"{bucket.name}/{parent}".rstrip("/"))
        _copy(bucket, key, root / last)
    return root / last


def add_step(folder: Path) -> None:
    """Copies the small files of a step that was saved after this process copied its run.

    Processes copy a run at different times, so the primary may choose a step that the copy of another process lacks.
    Does nothing for a folder that is no copy, or that already has the step.

    Raises:
        CheckpointError: the bucket cannot be read, or the copy cannot be written.
    """
    if (address := address_of_copy(folder)) is None or (folder / MANIFEST).is_file():
        return
    found = split_address(address)
    assert found is not None
    scheme, name, key = found
    with _disk_errors(address):
        _copy(Bucket(scheme, name, CheckpointError), key, folder)


def _copy(bucket: Bucket, key: str, folder: Path) -> None:
    prefix = f"{key}/" if key else ""
    keys = [found for found in bucket.list(prefix) if _SMALL.fullmatch(found.removeprefix(prefix))]
    with ThreadPoolExecutor(READS) as threads:
        for found, (content, _) in zip(keys, threads.map(bucket.read, keys), strict=True):
            if content is not None:  # else it was removed since the list was made
                file = folder / found.removeprefix(prefix)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)


@contextlib.contextmanager
def _disk_errors(address: str) -> Iterator[None]:
    """Raises CheckpointError if the copy cannot be written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{address}: its small files cannot be copied to {tempfile.gettempdir()} ({error.strerror or error}). Free "
            "space there, or set TMPDIR to another folder."
        ) from error
