"""An S3 server for tests: moto, on this machine."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorstore

from engine import object_store

KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "thing"}


@contextlib.contextmanager
def serve(bucket: str = "data") -> Iterator[str]:
    """Yields the address of a server with an empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end, address = time.monotonic() + 60, f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end
                time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


def empty_store(server: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tensorstore.KvStore:
    """Returns the objects of the bucket `data` after it has removed them; the engine reads it without a mount."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server, object_store.SWITCH: str(cache)}.items():
        monkeypatch.setenv(name, value)
    store = tensorstore.KvStore.open(
        {"driver": "s3", "bucket": "data", "endpoint": server, "aws_region": "us-east-1",
         "aws_credentials": {"type": "environment"}}
    ).result()  # fmt: skip
    store.delete_range(tensorstore.KvStore.KeyRange()).result()
    return store


def upload(store: tensorstore.KvStore, folder: Path, key: str) -> None:
    """Writes all files of a folder as objects below a key."""
    files = (path for path in folder.rglob("*") if path.is_file())
    for write in [store.write(f"{key}/{path.relative_to(folder)}", path.read_bytes()) for path in files]:
        write.result()
