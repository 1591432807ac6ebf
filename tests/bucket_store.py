"""A bucket of an S3 server (`s3_server.py`) that the engine reads without a mount."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorstore

from engine.readers import bucket_cache
from engine.storage import object_store

KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "thing"}


@contextlib.contextmanager
def empty_store(server: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tensorstore.KvStore]:
    """Yields the objects of the bucket `data` after it has removed them; the engine reads it without a mount."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server, object_store.SWITCH: str(cache)}.items():
        monkeypatch.setenv(name, value)
    store = tensorstore.KvStore.open(
        {"driver": "s3", "bucket": "data", "endpoint": server, "aws_region": "us-east-1",
         "aws_credentials": {"type": "environment"}}
    ).result()  # fmt: skip
    store.delete_range(tensorstore.KvStore.KeyRange()).result()
    monkeypatch.setattr(bucket_cache, "_in_use", {})
    yield store
    release_cache()


def release_cache() -> None:
    """Ends the use of all files of the cache, as the end of the process does."""
    for lock in bucket_cache._in_use.values():
        lock.close()
    bucket_cache._in_use.clear()


def upload(store: tensorstore.KvStore, folder: Path, key: str) -> None:
    """Writes all files of a folder as objects below a key."""
    files = (path for path in folder.rglob("*") if path.is_file())
    for write in [store.write(f"{key}/{path.relative_to(folder)}", path.read_bytes()) for path in files]:
        write.result()
