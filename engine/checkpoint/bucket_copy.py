"""Copies the small files of a run in a bucket to a local folder, to read the run without a mount.

These are its config, its results and the manifests of its checkpoints. The arrays stay in the bucket:
`bucket_arrays.py` reads the parts that this process needs. The copy is removed when the process ends.
"""

import atexit
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.config.errors import CheckpointError
from engine.mounts import local_path, register_copy, split_address
from engine.object_store import Bucket, is_selected

READS = 16  # at the same time
_STEP_FILES = r"manifest\.json|state/_METADATA"
_SMALL = re.compile(
    r"config\.txt|[^/]+\.json|(?:evaluations|goodput)\.jsonl"  # of a run
    rf"|checkpoints/[^/]+|checkpoints/\d+/(?:{_STEP_FILES})"
    rf"|{_STEP_FILES}"  # of a step
)


def readable(path: str | os.PathLike[str]) -> Path:
    """Returns the local path of a run, or of the folder of a step, that is only read.

    A bucket is mounted (`engine/mounts.py`). If CONVOY_DATA_CACHE is set, the small files are copied instead; each call
    copies them again.

    Raises:
        RunError: the bucket cannot be mounted.
        CheckpointError: the bucket cannot be read.
    """
    address = split_address(path)
    if address is None or not is_selected(path):
        return local_path(path)
    scheme, name, key = address
    bucket, key = Bucket(scheme, name, CheckpointError), key.rstrip("/")
    prefix = f"{key}/" if key else ""
    keys = [found for found in bucket.list(prefix) if _SMALL.fullmatch(found.removeprefix(prefix))]
    root = Path(tempfile.mkdtemp(prefix="convoy-copy-")).resolve()
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    parent, _, last = key.rpartition("/")
    register_copy(root, f"{bucket.name}/{parent}".rstrip("/"))
    with ThreadPoolExecutor(READS) as threads:
        for found, (content, _) in zip(keys, threads.map(bucket.read, keys), strict=True):
            if content is not None:  # else it was removed since the list was made
                file = root / last / found.removeprefix(prefix)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
    return root / last
