"""Records of lineage: what a run, a dataset, predictions or exported weights were made from.

A record is written when the thing is made, as a small JSON file beside it: `FILE.lineage.json`, and `lineage.json` in a
run directory. Names of what a dataset holds (files, and text of examples such as scenes) lie in a compressed file next
to the record. `engine/lineage/` reads records and joins them to a tree.
"""

import dataclasses
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.base import json_text
from engine.base.files import open_regular, replacing, set_aside
from engine.run.atomic import cannot_write

if TYPE_CHECKING:
    from engine.run.directory import RunDirectory

VERSION = 1
"""Of a record and of a file of names. A file with a larger number is not read."""
RECORD, NAMES = "lineage.json", "names.json.gz"
"""Names of the files in a run directory. Beside a file, they follow its name and a dot."""
CHECKPOINT, DATA = "checkpoint", "data"
MOST_NAMES = 2_000_000  # of one kind in a dataset: at 40 bytes a name, 80 MB before compression
LARGEST = 1 << 30  # bytes of a file of names before compression
_READING = ("threads", "workers", "prefetch", "on_change", "shuffle_window")
"""Settings of a data section that change only how fast it is read, or its order."""
_USUAL = {"on_error": "stop", "shuffle": "True"}
_READ_BYTES = 4 << 20  # per read of a file that is hashed
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}(.*?)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Input:
    """One thing that another one was made from.

    Attributes:
        kind: CHECKPOINT or DATA.
        role: what it was used for: a config section such as "data", "evaluations.test.data" or "init"; or "weights".
        path: of a checkpoint, the run directory; of data, the datasets with records that it reads, one per line.
        step: of a checkpoint.
        id: of a checkpoint, the hash of its manifest; of data, the fingerprint of its content. "" if it is not known.
        examples: number of examples of data, as text.
        settings: how data was read: the settings of its config section, such as `target`, `limit` and arguments.
        datasets: identities of the datasets with records that it reads.
        attempt: attempt of a run that used it: the first one that is known.
        time: when that was, ISO time in UTC.
    """

    kind: str
    role: str
    path: str = ""
    step: int | None = None
    id: str = ""
    examples: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[str] = ()
    attempt: int = 0
    time: str = ""

    @property
    def key(self) -> str:
        """Identifies an input within a record, also in its file of names."""
        return f"{self.role}@{digest(self.id)}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one thing was made from.

    Attributes:
        kind: "run", "dataset", "predictions" or "export".
        inputs: what it was made from.
        id: identifies its content, wherever it lies; "" for a run.
        examples: number of its examples; None if it has none.
        left_out: number of examples of the source that could not be read.
        commit: git commit of the code that made it; "" if not known. Of a run, `code.json` has it.
        dirty: whether this code had uncommitted changes, if there is a commit; None if not known.
        packages: package -> version.
        settings: how it was made.
        time: when it was made, ISO time in UTC.
    """

    kind: str
    inputs: Sequence[Input] = ()
    id: str = ""
    examples: int | None = None
    left_out: int = 0
    commit: str = ""
    dirty: bool | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    time: str = ""

    def to_text(self) -> str:
        """Returns the text of the file."""
        return json_text.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"


@dataclass
class Names:
    """What a dataset holds.

    Attributes:
        files: path -> size in bytes, -1 if not known, and a hash of samples of the content, "" if not known.
        values: name of a text in the examples, such as "scene" -> its values, sorted.
        omitted: kind of names, such as "scene" -> how many there are at least, if they are too many to keep.
    """

    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    values: dict[str, list[str]] = field(default_factory=dict)
    omitted: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.files or self.values or self.omitted)

    def add(self, other: "Names") -> None:
        """Adds the names of another dataset."""
        self.files |= other.files
        for name, values in other.values.items():
            self.add_values(name, values)
        for name, count in other.omitted.items():
            self.omitted[name] = max(count, self.omitted.get(name, 0))
            self.values.pop(name, None)

    def add_values(self, name: str, values: Sequence[str]) -> None:
        """Adds values of a text; too many are only counted."""
        if name in self.omitted:
            return
        found = dict.fromkeys((*self.values.get(name, ()), *values))  # in their order, which is often the sorted one
        if len(found) > MOST_NAMES:
            self.omitted[name] = len(found)
            self.values.pop(name, None)
        elif found:
            self.values[name] = sorted(found)


def collect(found: dict[str, set[str]], name: str, values: Iterable[str]) -> None:
    """Adds values of a text to those of earlier examples, until they are too many to keep: so memory is bounded."""
    known = found.setdefault(name, set())
    if len(known) <= MOST_NAMES:
        known.update(values)


def digest(text: str) -> str:
    """Returns a short hash of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def data_settings(settings: Mapping[str, object], role: str) -> dict[str, str]:
    """Returns the settings that decide which examples a data section has: its target, arguments and filters.

    Settings with their default, and those that are None, are left out.

    Args:
        settings: dotted name -> value of the settings of a run.
        role: the section: "data", or "evaluations.test.data".
    """
    found = {name[len(role) + 1 :]: str(value) for name, value in settings.items() if name.startswith(f"{role}.")}
    return {
        name: text for name, text in found.items() if name not in _READING and text not in ("None", _USUAL.get(name))
    }


def content_id(path: Path) -> str:
    """Returns a hash of the content of a file. Raises OSError."""
    import xxhash

    found = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            found.update(block)
    return f"xxh3_128:{found.hexdigest()}"


def record_path(path: Path) -> Path:
    """Returns where the record of a file, of a bundle, or of the dataset with this shard lies: next to it."""
    return path.with_name(record_name(path.name))


def record_name(file: str) -> str:
    """Returns the name of the record of a file, or of the dataset with this shard."""
    found = _SHARD.fullmatch(file)
    return f"{file if found is None else found[1] + found[2]}.{RECORD}"


def names_path(record: Path) -> Path:
    """Returns where the names that belong to a record lie."""
    return record.with_name(record.name.removesuffix(RECORD) + NAMES)


_INPUT = {
    "kind": frozenset({CHECKPOINT, DATA}), "role": str, "path": str, "step": int | None, "id": str, "examples": str,
    "settings": {str: str}, "datasets": [str], "attempt": int, "time": str,
}  # fmt: skip
_SHAPE = {
    "version": int, "kind": frozenset({"run", "dataset", "predictions", "export"}), "inputs": [_INPUT], "id": str,
    "examples": int | None, "left_out": int, "commit": str, "dirty": bool | None, "packages": {str: str},
    "settings": {str: str}, "time": str,
}  # fmt: skip


def read(path: Path) -> Record | None:
    """Returns the record in a file; None if the file does not exist.

    Raises:
        OSError, ValueError: it cannot be read, is damaged, or is of a newer version.
    """
    try:
        found = json_text.read(path, {"version": int, str: object})
    except FileNotFoundError:
        return None
    if found["version"] > VERSION:
        raise json_text.Damaged(f"it has version {found['version']}, and this Convoy reads up to {VERSION}")
    found = json_text.check(found, _SHAPE)
    del found["version"]
    inputs = (Input(**{**one, "datasets": tuple(one["datasets"])}) for one in found["inputs"])
    return Record(**{**found, "inputs": tuple(inputs)})


_NAMES = {
    "version": int,
    "data": {str: {
        "files": [str], "sizes": [int], "hashes": [str], "values": {str: [str]}, "omitted": {str: int},
    }},
}  # fmt: skip


def write_names(path: Path, names: Mapping[str, Names], before_rename: Callable[[], None] = lambda: None) -> None:
    """Writes the names of inputs, by key of the input. The same names give the same bytes. Raises OSError."""
    data = {}
    for key, found in sorted(names.items()):
        files = sorted(found.files)
        data[key] = {
            "files": files,
            "sizes": [found.files[file][0] for file in files],
            "hashes": [found.files[file][1] for file in files],
            "values": {name: found.values[name] for name in sorted(found.values)},
            "omitted": dict(sorted(found.omitted.items())),
        }
    text = json.dumps({"version": VERSION, "data": data}, separators=(",", ":"))
    with replacing(path, before_rename=before_rename) as file:
        file.write(gzip.compress(text.encode("ascii"), compresslevel=1, mtime=0))


def read_names(path: Path) -> dict[str, Names]:
    """Returns the names of inputs, by key of the input; empty if there is no file.

    Raises:
        OSError, ValueError: it cannot be read, is damaged, or is of a newer version.
    """
    try:
        with open(path, "rb", opener=open_regular) as raw, gzip.GzipFile(fileobj=raw) as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        return {}
    except (EOFError, zlib.error) as error:
        raise json_text.Damaged("it is cut or damaged") from error
    if len(content) > LARGEST:
        raise json_text.Damaged(f"it has more than {LARGEST:,} bytes")
    found = json_text.parse(content.decode(), {"version": int, str: object})
    if found["version"] > VERSION:
        raise json_text.Damaged(f"it has version {found['version']}, and this Convoy reads up to {VERSION}")
    return {key: _names(one) for key, one in json_text.check(found, _NAMES)["data"].items()}


def _names(found: Mapping[str, Any]) -> Names:
    columns = (found["files"], found["sizes"], found["hashes"])
    if len({*map(len, columns)}) > 1:
        raise json_text.Damaged("its columns have different lengths")
    files = {path: (size, text) for path, size, text in zip(*columns, strict=True)}
    return Names(files, found["values"], found["omitted"])


def merged(before: Sequence[Input], now: Sequence[Input]) -> list[Input]:
    """Returns inputs of earlier attempts and those of this one, each once: content that a run has read stays listed."""
    found = {(one.key, one.path, one.step): one for one in (*now, *before)}  # that of the first attempt wins
    return sorted(found.values(), key=lambda one: (one.attempt, one.kind, one.role))


def with_names(record: Record, names: Mapping[str, Names]) -> Iterator[tuple[Input, Names | None]]:
    """Yields each data input of a record with its names; None if it has none."""
    for one in record.inputs:
        if one.kind == DATA:
            yield one, names.get(one.key)


def update_run(
    directory: "RunDirectory",
    inputs: Sequence[Input],
    names: Mapping[str, Callable[[], Names]] | None = None,
    kept: Callable[[Input], bool] = lambda one: True,
) -> None:
    """Adds inputs to the record of a run. The primary calls it, and holds the lease.

    Args:
        directory: the run directory, which is open.
        inputs: what this attempt reads.
        names: key of data among `inputs` -> returns its names; called only if they are not known yet.
        kept: which inputs of earlier attempts stay in the record.

    Raises:
        RunError: a file cannot be written.
    """
    path = directory.path / RECORD
    record = _read_or_set_aside(path, read) or Record(kind="run")
    added = [
        dataclasses.replace(one, attempt=one.attempt or directory.attempt, time=one.time or json_text.now())
        for one in inputs
    ]
    after = dataclasses.replace(record, inputs=tuple(merged([one for one in record.inputs if kept(one)], added)))
    if after == record:  # equal content has equal names
        return
    at = names_path(path)
    known, given, used = _read_or_set_aside(at, read_names) or {}, names or {}, {one.key for one in after.inputs}
    found = {key: one for key, one in known.items() if key in used}
    found |= {key: one for key in given.keys() & used - known.keys() if (one := given[key]())}
    if found or known:
        try:
            directory.lease.check()
            write_names(at, found, directory.lease.check)
        except OSError as error:
            raise cannot_write(at, error) from error
    directory.lease.replace_text(path, after.to_text())


def _read_or_set_aside[T](path: Path, reader: Callable[[Path], T]) -> T | None:
    """Returns what a reader returns. A damaged file is renamed, and the result is None."""
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        set_aside(path, "record of lineage, which begins anew", OSError(0, json_text.reason(error)))
        return None
