"""Writes a source as ArrayRecord files in several processes, and resumes a write that was killed.

The source is split into shards, ranges of its examples, whose bytes do not depend on the processes. The manifest
(`engine/readers/record_manifest.py`) lists each finished shard with its checksum.
"""

import contextlib
import glob
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.base.errors import ConfigError, DataError, RunError
from engine.data.source import BaseSource, source_name
from engine.datasets.bucket_output import BucketOutput, remove_empty
from engine.datasets.given import Given, given_source, is_stream_source, sample_indices, with_inner
from engine.datasets.lineage import SHARD_NAMES, dataset_names, remove_record, save_record
from engine.datasets.output_lock import OutputLock, locked
from engine.datasets.pool import Pool, as_pool
from engine.datasets.shards import (
    SHARD_LENGTHS,
    ShardJob,
    ShardWriter,
    all_bad,
    check_readable,
    merge_lengths,
    shard_lengths,
)
from engine.readers.array_record import cannot_write, check_name
from engine.readers.record import encode
from engine.readers.record_manifest import (
    SEQUENCES,
    SIDECARS,
    RecordManifest,
    dataset_of,
    lengths_path,
    load_lengths,
    manifest_path,
    read_manifest,
    save_lengths,
    shard_name,
)
from engine.run.atomic import write_text
from engine.storage.mounts import local_path
from engine.storage.object_store import is_selected

SHARD_BYTES = 64 << 20  # a shard of the default size: large reads, and enough shards for all cores
MAX_SHARDS, MAX_DEFAULT_SHARDS = 99_999, 1024
SAVE_S = 3.0  # between two saves of the manifest, whose size grows with the number of shards
SAMPLE = 16  # examples whose sizes give the default number of shards
# Names of files of an unfinished write, and in a group the shard or the dataset that they belong to. The hidden files
# are temporary ones of `save_lengths`, `write_names` and `write_text`.
_UNFINISHED = re.compile(
    rf"(.+)\.\d+\.unfinished|(.+)(?:{re.escape(SHARD_LENGTHS)}|{re.escape(SHARD_NAMES)})"
    rf"|\.(.+)(?:{'|'.join(map(re.escape, (SHARD_LENGTHS, SHARD_NAMES, *SIDECARS)))})\.[\da-f-]+\.tmp",
    re.DOTALL,
)


@dataclass(frozen=True)
class WrittenDataset:
    """The result of `write_dataset`."""

    paths: list[str]
    """The shards, in order."""
    examples: int
    """Examples in the shards."""
    bad: dict[int, str]
    """Index in the source -> error text, of the examples that were left out."""
    kept: int
    """Number of shards that an earlier call had finished."""


def write_dataset(
    data: Given,
    out: str | Path,
    *,
    shards: int | None = None,
    processes: int | Pool | None = None,
    on_error: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_sent: Callable[[int, int], None] = lambda done, total: None,
) -> WrittenDataset:
    """Writes every example of a dataset as ArrayRecord files, which `ArrayRecordSource` reads.

    If the call is killed, the same call continues: it verifies and keeps the finished files. The files are the same
    bytes whatever the number of processes.

    Args:
        data: a source, a stream, or a config section such as {"target": "package.module.Name", "split": "train"}.
        out: path such as `scenes.arrayrecord`, the name of the dataset. With several shards, the files are
            `scenes-00003-of-00016.arrayrecord`. An address in a bucket is mounted, or with CONVOY_DATA_CACHE the
            files are written there and then sent (`bucket_output.py`).
        shards: number of files. None: one for each 64 MiB, estimated from some examples, at most 1024.
        processes: number of processes. None: one per core, or one for a stream, of which each process reads all. The
            source is pickled to them. Or a pool whose workers are elsewhere, such as `engine.ray.pool.RayPool`.
        on_error: "stop" raises an error for an example that cannot be read; "skip" leaves it out. None: as the config
            section says, else "stop".
        overwrite: replace an existing dataset.
        on_progress: called with the number of finished examples and of all examples.
        on_sent: called with the number of files that were sent to a bucket and of all files.

    Raises:
        ConfigError: an argument is invalid.
        DataError: an example cannot be read, the files cannot be written, or `out` holds another dataset.
        ProcessError: a process was killed.
    """
    output = BucketOutput(out) if is_selected(out) else None
    source, on_error = given_source(data, on_error)
    path = Path(check_name(str(local_path(out) if output is None else output.path)))
    if shards is not None and not 1 <= shards <= MAX_SHARDS:
        raise ConfigError(f"shards = {shards}: allowed is a whole number from 1 to {MAX_SHARDS}.")
    if path.is_dir():
        raise DataError(f"{path}: is a folder. Name a file in it, such as {path / 'scenes.arrayrecord'}.")
    if not len(source):
        raise DataError(f"{source_name(source)}: no examples. Check its files and arguments.")

    def write(lock: OutputLock) -> WrittenDataset:
        manifest = _begin(path, source, on_error, shards, overwrite)
        return _Write(lock, data, source, manifest, on_progress).run(as_pool(processes))

    if output is None:
        with locked(path) as lock:
            return write(lock)
    try:
        with locked(path) as lock:  # until all files are sent and removed here: an equal call may wait for the lock
            if not overwrite:
                output.check_new()
            return replace(write(lock), paths=output.send(on_sent))
    finally:
        remove_empty(path)


def default_shards(source: BaseSource) -> int:
    """Returns the number of shards of SHARD_BYTES, estimated from the sizes of some examples."""
    sizes = []
    for index in sample_indices(source, SAMPLE):
        with contextlib.suppress(Exception):  # the write reports an example that cannot be read
            sizes.append(len(encode(source[index], "")))
    total = len(source) * sum(sizes) / max(1, len(sizes))
    return int(max(1, min(MAX_DEFAULT_SHARDS, len(source), -(-total // SHARD_BYTES))))


class _Write:
    """One call: runs the jobs, and keeps the manifest up to date."""

    def __init__(
        self,
        lock: OutputLock,
        given: Given,
        source: BaseSource,
        manifest: RecordManifest,
        on_progress: Callable[[int, int], None],
    ):
        self._lock, self._out, self._given, self._source = lock, lock.out, given, source
        self._manifest, self._on_progress = manifest, on_progress
        self._shards = list(manifest.shards)
        self._unsaved, self._save_at = False, 0.0  # shards that the saved manifest lacks, and the time to save them
        count, size = len(manifest.shards), len(source)
        self._jobs = [
            ShardJob(
                self._out.with_name(shard_name(self._out, n, count)), n * size // count, (n + 1) * size // count, known
            )
            for n, known in enumerate(manifest.shards)
        ]
        self._done = self._kept = 0

    def run(self, pool: Pool) -> WrittenDataset:
        before = self._indexed_lengths() if self._manifest.complete else None
        self._manifest = replace(self._manifest, complete=before is not None)
        work = ShardWriter(self._source, self._manifest.on_error, self._manifest.complete, self._lock)
        workers = pool.count(len(self._jobs), 1 if is_stream_source(self._source) else None)
        try:
            for number, (shard, kept) in pool.run(work, self._jobs, workers, self._report):
                self._kept += kept
                if not kept:
                    self._shards[number], self._unsaved = shard, True
                    self._save_if_due()
        except BaseException:
            with contextlib.suppress(DataError):  # the first error says more
                self._save()
            raise
        self._save()
        return self._finish(before)

    def _report(self, count: int) -> None:
        self._done += count
        self._on_progress(self._done, len(self._source))
        self._save_if_due()

    def _save_if_due(self) -> None:
        """Saves the manifest, at most every SAVE_S. A call that continues writes the shards again that it lacks."""
        if self._unsaved and time.monotonic() >= self._save_at:
            self._save()
            self._save_at = time.monotonic() + SAVE_S

    def _save(self) -> None:
        if self._unsaved:
            self._manifest = replace(self._manifest, shards=list(self._shards), complete=False)
            save_manifest(self._out, self._manifest)
            self._unsaved = False

    def _indexed_lengths(self) -> list[dict[str, np.ndarray]] | None:
        """Returns the lengths of each shard of a complete dataset; None if its length index is missing or damaged."""
        ends = np.cumsum([shard.examples for shard in self._manifest.shards if shard is not None]).tolist()
        path = lengths_path(self._out)
        try:
            index = load_lengths(path)
        except DataError:
            return None
        if not path.exists() or any(len(lengths) != ends[-1] for lengths in index.values()):
            return None
        return [
            {name: lengths[start:stop] for name, lengths in index.items()}
            for start, stop in zip([0, *ends], ends, strict=False)
        ]

    def _finish(self, before: Sequence[Mapping[str, np.ndarray]] | None) -> WrittenDataset:
        """Merges the length indexes of the shards, and marks the dataset as complete.

        Args:
            before: lengths of each shard of a dataset that was complete, for those that were kept; else None.
        """
        shards = [shard for shard in self._manifest.shards if shard is not None]
        bad = {record.index: record.error for shard in shards for record in shard.bad}
        if len(bad) == len(self._source):
            raise all_bad(self._source, bad[0])
        if not self._manifest.complete:
            own = [shard_lengths(job.path) for job in self._jobs]
            parts = [before[n] if before and not path.exists() else load_lengths(path) for n, path in enumerate(own)]
            try:
                save_lengths(lengths_path(self._out), merge_lengths(parts, [shard.examples for shard in shards]))
            except OSError as error:
                raise cannot_write(self._out, error.strerror or str(error)) from error
            names = dataset_names(self._out, [job.path for job in self._jobs], before is not None)
            content = self._manifest.source["content"]
            save_record(self._out, self._given, self._source, content, shards, names)
            save_manifest(self._out, replace(self._manifest, complete=True))
        _remove_unfinished(self._out)
        return WrittenDataset([str(job.path) for job in self._jobs], len(self._source) - len(bad), bad, self._kept)


def _begin(out: Path, source: BaseSource, on_error: str, shards: int | None, overwrite: bool) -> RecordManifest:
    """Returns the manifest of an earlier call that this one continues, or a new one.

    Raises:
        DataError: `out` exists and is of another source, or was written with other arguments.
    """
    identity = {"name": source_name(source), "examples": str(len(source)), "content": source.fingerprint()}
    if overwrite:
        _check_apart(out, source)
        check_readable(source, on_error)
        try:
            _remove(out)
        except OSError as error:
            raise cannot_write(out, error.strerror or str(error)) from error
    elif (found := read_manifest(out)) is not None:
        old, new = dict(found.source), dict(identity)
        if old != new:
            name = next(name for name in new if old.get(name) != new[name])
            raise _other(out, f"is a dataset whose {name} is {old.get(name)}, not {new[name]}")
        if shards is not None and min(shards, len(source)) != len(found.shards):
            raise _other(out, f"has {len(found.shards)} shards, not {shards}")
        if found.on_error != on_error:
            raise _other(out, f"was written with on_error={found.on_error}, not {on_error}")
        return found
    elif out.exists():
        raise _other(out, "exists, and is not a dataset with a manifest")
    count = min(shards or default_shards(source), len(source))
    names = [shard_name(out, number, count) for number in range(count)]
    if not overwrite and (existing := [name for name in names if out.with_name(name).exists()]):
        raise _other(out, f"{existing[0]} exists, and is not in a manifest")
    manifest = RecordManifest(identity, on_error, [None] * count)
    save_manifest(out, manifest)
    return manifest


def _check_apart(out: Path, source: BaseSource) -> None:
    """Raises DataError if a source, or one that it reads, has the files that would be replaced.

    A file in the folder of a source is never replaced, unless it is a dataset with a manifest.
    """
    real = out.resolve()
    other = out.exists() and not manifest_path(out).exists()
    for one in with_inner(source):
        files = [Path(path).resolve() for path in one.paths]
        folder = one.folder
        inside = isinstance(folder, str | os.PathLike) and Path(folder).resolve() in real.parents
        if any(real in (file, dataset_of(file)) for file in files) or (inside and other):
            raise DataError(f"{out}: are files of the source. Choose another path.")


def _other(out: Path, found: str) -> DataError:
    return DataError(f"{out}: {found}. Choose another path, or replace it with --overwrite.")


def save_manifest(out: Path, manifest: RecordManifest) -> None:
    """Replaces the manifest. Raises DataError if it cannot be written."""
    try:
        write_text(manifest_path(out), manifest.to_text())
    except RunError as error:
        cause = error.__cause__
        raise cannot_write(out, (isinstance(cause, OSError) and cause.strerror) or str(cause)) from error


def _remove(out: Path) -> None:
    """Removes a dataset."""
    with contextlib.suppress(DataError):  # a damaged manifest
        if (found := read_manifest(out)) is not None:
            for number in range(len(found.shards)):
                out.with_name(shard_name(out, number, len(found.shards))).unlink(missing_ok=True)
    for path in (manifest_path(out), lengths_path(out), out.with_name(out.name + SEQUENCES), out):
        path.unlink(missing_ok=True)
    remove_record(out)
    _remove_unfinished(out)


def _remove_unfinished(out: Path) -> None:
    """Removes what only an unfinished write needs, and what a killed one has left."""
    name = glob.escape(out.stem)
    for path in (*out.parent.glob(f"{name}*"), *out.parent.glob(f".{name}*")):
        found = _UNFINISHED.fullmatch(path.name)
        if found is not None and dataset_of(path.with_name(found[found.lastindex or 0])) == out:
            path.unlink(missing_ok=True)
