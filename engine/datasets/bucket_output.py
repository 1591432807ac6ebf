"""Sends a dataset to a bucket without a mount. It is written to a local folder first, and its manifest is sent last.

The folder is `unsent` in the folder that CONVOY_DATA_CACHE names, apart from the cache. The same call continues after a
kill: the finished shards are kept there, and objects that were sent are not sent again.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.config.atomic_file import replacing
from engine.config.errors import DataError
from engine.data.array_record import cannot_write
from engine.data.record_manifest import Manifest, lengths_path, manifest_path, read_manifest, shard_name
from engine.mounts import split_address
from engine.object_store import SWITCH, Bucket

UNSENT = "unsent"
SENDS = 4  # at the same time; each holds one file in memory


class BucketOutput:
    """The output of `convoy data write` in a bucket.

    Args:
        address: of the dataset, such as `s3://bucket/scenes.arrayrecord`.
        overwrite: replace an existing dataset.

    Attributes:
        path: where the dataset is written before it is sent.

    Raises:
        DataError: the bucket cannot be read, or the dataset exists.
    """

    def __init__(self, address: str | os.PathLike[str], overwrite: bool):
        found = split_address(address)
        assert found is not None
        scheme, name, self._key = found
        self._bucket = Bucket(scheme, name, DataError)
        self._address = f"{self._bucket.name}/{self._key}"
        self.path = Path(os.environ[SWITCH]).expanduser() / UNSENT / scheme / name / self._key
        self._sent = self.path.with_name(f".{self.path.name}.sent")
        if not overwrite and not manifest_path(self.path).exists():
            self._check_free()

    def _check_free(self) -> None:
        stem, suffix = os.path.splitext(self._key)
        existing = [key for key in self._bucket.list(stem) if _is_part(key, self._key, f"{stem}-", suffix)]
        if existing:
            raise DataError(
                f"{self._address}: {self._bucket.name}/{existing[0]} exists. Choose another path, or replace the "
                "dataset with --overwrite. A write that was interrupted continues only where its local files are, in "
                f"{self.path.parent}."
            )

    def send(self, overwrite: bool) -> list[str]:
        """Sends the files of a complete dataset, removes them here, and returns the addresses of the shards.

        Raises:
            DataError: an object cannot be written, or a file cannot be read.
        """
        manifest = read_manifest(self.path)
        assert manifest is not None
        shards = [shard for shard in manifest.shards if shard is not None]
        try:
            if overwrite:
                self._delete_former(manifest)
            self._send_shards({shard.file: shard.checksum for shard in shards})
            for file in (lengths_path(self.path), manifest_path(self.path)):
                self._bucket.write(self._object(file.name), file.read_bytes())
            for name in [shard.file for shard in shards]:
                self.path.with_name(name).unlink()
            for file in (lengths_path(self.path), self._sent, manifest_path(self.path)):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error.strerror or str(error)) from error
        return [f"{self._bucket.name}/{self._object(shard.file)}" for shard in shards]

    def _object(self, name: str) -> str:
        return f"{self._key.rpartition('/')[0]}/{name}".lstrip("/")

    def _delete_former(self, manifest: Manifest) -> None:
        """Deletes the manifest of a former dataset, then its shards that are not replaced."""
        content, _ = self._bucket.read(self._object(manifest_path(self.path).name))
        self._bucket.delete(self._object(manifest_path(self.path).name))
        count = len(json.loads(content).get("shards", [])) if content else 0
        if count != len(manifest.shards):
            for number in range(count):
                self._bucket.delete(self._object(shard_name(self.path, number, count)))

    def _send_shards(self, checksums: dict[str, str]) -> None:
        """Sends the shards, and records the generation of each object that was sent."""
        sent: dict[str, Sequence[str]] = json.loads(self._sent.read_text()) if self._sent.exists() else {}

        def send(name: str) -> tuple[str, str]:
            key, known = self._object(name), sent.get(name, ("", ""))
            if known[0] == checksums[name] and self._bucket.generation(key) == known[1]:
                return name, known[1]
            return name, self._bucket.write(key, self.path.with_name(name).read_bytes())

        with ThreadPoolExecutor(SENDS) as threads:
            for name, generation in threads.map(send, checksums):
                sent[name] = (checksums[name], generation)
                with replacing(self._sent, self._sent.with_name(f"{self._sent.name}.tmp")) as file:
                    file.write(json.dumps(sent).encode())


def remove_empty(path: Path) -> None:
    """Removes the folders above a path that are empty, up to `unsent`."""
    for folder in path.parents:
        if folder.name == UNSENT or any(folder.iterdir()):
            return
        folder.rmdir()


def _is_part(key: str, dataset: str, shards: str, suffix: str) -> bool:
    """Returns whether an object is a shard or the manifest of a dataset."""
    number = key.removeprefix(shards).removesuffix(suffix)
    is_shard = key.startswith(shards) and len(number) == 14 and number[5:9] == "-of-"
    return key in (dataset, manifest_path(Path(dataset)).as_posix()) or is_shard
