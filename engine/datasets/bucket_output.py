"""Sends a dataset to a bucket without a mount. It is written to a local folder first.

The folder is `unsent` in the folder that CONVOY_DATA_CACHE names, apart from the cache. The same call continues after a
kill: the finished shards are kept there, and objects that were sent are not sent again. Until the last object is sent,
the manifest in the bucket says that the dataset is not complete.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from engine.base import json_text
from engine.base.errors import DataError
from engine.base.files import replacing
from engine.readers.array_record import cannot_write
from engine.readers.record_manifest import MANIFEST, RecordManifest, Shard, lengths_path, manifest_path, read_manifest
from engine.run import lineage
from engine.storage.mounts import split_address
from engine.storage.object_store import SWITCH, Bucket

UNSENT = "unsent"
SENDS = 4  # files that are sent at the same time, each of them held in memory
LARGEST = 5 << 30  # bytes of an object that S3 accepts in one request


class BucketOutput:
    """The output of `convoy data write` in a bucket.

    Args:
        address: address of the dataset, such as `s3://bucket/scenes.arrayrecord`.

    Attributes:
        path: where the dataset is written before it is sent.

    Raises:
        DataError: the address names no file.
    """

    def __init__(self, address: str | os.PathLike[str]):
        found = split_address(address)
        assert found is not None
        scheme, name, key = found
        self._key = key.rstrip("/")
        if not self._key:
            raise DataError(f"{scheme}://{name}: is a bucket. Name a file in it: {scheme}://{name}/scenes.arrayrecord.")
        self._bucket = Bucket(scheme, name, DataError)
        self._address = f"{self._bucket.name}/{self._key}"
        self.path = Path(os.environ[SWITCH]).expanduser() / UNSENT / scheme / name / self._key
        self._sent = self.path.with_name(f".{self.path.name}.sent")

    def check_new(self) -> None:
        """Raises DataError if the dataset exists in the bucket, and is not one whose files an earlier call has begun.

        The caller holds the lock of `path`: another call may be sending the same dataset.
        """
        if not manifest_path(self.path).exists() and (existing := self._parts()):
            raise DataError(
                f"{self._address}: {self._bucket.name}/{existing[0]} exists. Choose another path, or replace the "
                "dataset with --overwrite. A write that was interrupted continues only where its local files are, in "
                f"{self.path.parent}."
            )

    def _parts(self) -> list[str]:
        """Returns the objects in the bucket that are shards or the manifest of a dataset with this address."""
        stem, suffix = os.path.splitext(self._key)
        shard = re.compile(rf"{re.escape(stem)}-\d{{5}}-of-\d{{5}}{re.escape(suffix)}")
        others = (self._key, self._key + MANIFEST)
        return [key for key in self._bucket.list(stem) if key in others or shard.fullmatch(key)]

    def send(self, on_sent: Callable[[int, int], None]) -> list[str]:
        """Sends the files of a complete dataset, removes them here, and returns the addresses of the shards.

        Replaces a former dataset. `on_sent` is called with the number of files that were sent and of all files. The
        caller holds the lock of `path`.

        Raises:
            DataError: an object cannot be written or is too large, or a file cannot be read.
        """
        manifest = read_manifest(self.path)
        assert manifest is not None
        shards = [shard for shard in manifest.shards if shard is not None]
        self._check_sizes(shards)
        try:
            self._begin(manifest, [shard.file for shard in shards])
            record = lineage.record_path(self.path)
            records = [path for path in (record, lineage.names_path(record)) if path.exists()]
            others = (lengths_path(self.path), *records, manifest_path(self.path))  # the manifest last
            done, total = 0, len(shards) + len(others)
            for done in self._send_shards({shard.file: shard.checksum for shard in shards}):
                on_sent(done, total)
            for file in others:
                self._bucket.write(self._object(file.name), file.read_bytes())
                done += 1
                on_sent(done, total)
            for name in [shard.file for shard in shards]:
                self.path.with_name(name).unlink()
            for file in (lengths_path(self.path), *records, self._sent, manifest_path(self.path)):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error.strerror or str(error)) from error
        return [f"{self._bucket.name}/{self._object(shard.file)}" for shard in shards]

    def _object(self, name: str) -> str:
        return f"{self._key.rpartition('/')[0]}/{name}".lstrip("/")

    def _check_sizes(self, shards: Sequence[Shard]) -> None:
        """Raises DataError if a shard is too large for one request."""
        largest = max(shards, key=lambda shard: shard.bytes)
        if self._bucket.scheme == "s3" and largest.bytes > LARGEST:
            raise DataError(
                f"{self._address}: {largest.file} has {largest.bytes / 2**30:.3g} GiB, and one request sends at most "
                f"{LARGEST / 2**30:.3g}. Repeat the command with more --shards and with --overwrite."
            )

    def _begin(self, manifest: RecordManifest, shards: Sequence[str]) -> None:
        """Marks the dataset in the bucket as not complete, then deletes the shards of a former one."""
        name = manifest_path(self.path).name
        incomplete = replace(manifest, shards=[None] * len(shards), complete=False)
        self._bucket.write(self._object(name), incomplete.to_text().encode())
        for key in {*self._parts()} - {self._object(file) for file in (name, *shards)}:
            self._bucket.delete(key)

    def _send_shards(self, checksums: dict[str, str]) -> Iterator[int]:
        """Sends the shards, records the generation of each object, and yields the number of those that were sent."""
        sent: dict[str, Sequence[str]] = {}
        with contextlib.suppress(OSError, ValueError):  # without this file, all shards are sent again
            sent = json_text.read(self._sent, {str: (str, str)})

        def send(name: str) -> tuple[str, str]:
            key, known = self._object(name), sent.get(name, ("", ""))
            if known[0] == checksums[name] and self._bucket.generation(key) == known[1]:
                return name, known[1]
            return name, self._bucket.write(key, self.path.with_name(name).read_bytes())

        with ThreadPoolExecutor(SENDS) as threads:
            for done, (name, generation) in enumerate(threads.map(send, checksums), 1):
                sent[name] = (checksums[name], generation)
                with replacing(self._sent, self._sent.with_name(f"{self._sent.name}.tmp")) as file:
                    file.write(json.dumps(sent).encode())
                yield done


def remove_empty(path: Path) -> None:
    """Removes the folders above a path that are empty, up to `unsent`."""
    with contextlib.suppress(OSError):  # another write uses the folder, or has removed it
        for folder in path.parents:
            if folder.name == UNSENT:
                return
            folder.rmdir()
