"""Integrity of a step: compares its files with the manifest, and its restored arrays with their digests.

All processes share the work and agree on the verdict. A damaged step is *set aside*: renamed to `<step>.bad`, with the
problems in `damage.txt`. It is no longer listed and never deleted; if it is renamed back, it is verified again.
"""

import base64
import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from engine.base.errors import CheckpointError
from engine.base.files import read_text
from engine.checkpoint import timeouts
from engine.checkpoint.arrays import read_smallest, reraise
from engine.checkpoint.manifest import (
    FORMAT,
    FROZEN,
    WITH_FROZEN,
    DamagedCheckpoint,
    FileEntry,
    Manifest,
    UnsupportedFormat,
    divide_files,
    find_problems,
    hash_files,
    irregular_files,
    read_manifest,
    shorten,
    write_manifest,
)
from engine.cluster import group, output
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import LostPeer
from engine.run.atomic import write_text
from engine.run.lease import Lease
from engine.storage import background
from engine.storage.mounts import address_of_copy, shown

if TYPE_CHECKING:
    import numpy as np

BAD, DAMAGE = ".bad", "damage.txt"
LONGEST = 10  # digits of a step
REPORTED = 100  # problems that every process receives, and that the file DAMAGE lists


class DamagedCheckpoints(CheckpointError):
    """Some checkpoints of a run are damaged."""

    exit_code = ExitStatus.STOP


class NoUsableCheckpoint(CheckpointError):
    """Every checkpoint of the run is damaged. The user decides whether to start over."""

    exit_code = ExitStatus.STOP
    everywhere = True


class VerifyTimeout(CheckpointError):
    """A process has not verified its share of the files in time. Every process that waits for it raises it."""

    exit_code = ExitStatus.RETRY

    def __init__(self, directory: Path, process: int):
        self.process = process
        super().__init__(
            f"{directory}: process {process} has not checked its share of the files in time. Check that its storage "
            "answers, then start the same command again."
        )


def step_folders(directory: Path) -> list[Path]:
    """Returns the step directories, oldest first, including those without a manifest."""
    entries = directory.iterdir() if directory.is_dir() else ()
    return sorted((path for path in entries if _is_step(path)), key=lambda path: int(path.name))


def _is_step(path: Path) -> bool:
    """Returns whether a path is the folder of a step: "12", but not "012", digits of other scripts, or a file."""
    name = path.name
    is_number = name == "0" or (name.isascii() and name.isdecimal() and not name.startswith("0"))
    return is_number and len(name) <= LONGEST and path.is_dir()


class HashedPart(TypedDict):
    """The report of one process at the end of a save."""

    files: NotRequired[dict[str, FileEntry]]
    arrays: NotRequired[str]  # its part of the digests, uint32 `[arrays, 2]`, little-endian in base64
    error: NotRequired[str]


def hash_part(folder: Path, names: Sequence[str], digests: Callable[[], "np.ndarray"]) -> HashedPart:
    """Hashes a share of the files of a step. Returns errors instead of raising, to report them to the primary.

    Args:
        folder: where all processes write the step.
        names: names of the files of the share.
        digests: returns this process's part of the digests, uint32 `[arrays, 2]`; may wait for the device.
    """
    try:
        files = hash_files(folder, names)
        return {"files": files, "arrays": base64.b64encode(digests().astype("<u4").tobytes()).decode()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def write_merged_manifest(
    folder: Path, step: int, parts: Mapping[int, HashedPart], texts: Callable[["np.ndarray"], dict[str, str]]
) -> Manifest:
    """Writes the manifest of a step from the parts of all processes, and returns it.

    Args:
        folder: folder of the step.
        step: its number.
        parts: by process.
        texts: returns path -> digest, from the sum of all parts.

    Raises:
        CheckpointError: a process could not hash its part.
        RunError: the manifest cannot be written.
    """
    import numpy as np

    for process, part in sorted(parts.items()):
        if error := part.get("error"):
            raise CheckpointError(f"process {process}: {error}")
    files = {name: FileEntry(*entry) for part in parts.values() for name, entry in part.get("files", {}).items()}
    digests = [np.frombuffer(base64.b64decode(part.get("arrays", "")), "<u4") for part in parts.values()]
    total = np.sum(digests, 0, np.uint32).reshape(-1, 2)  # modulo 2^32
    manifest = Manifest(step, files, texts(total), WITH_FROZEN if FROZEN in files else FORMAT)
    write_manifest(folder, manifest)
    return manifest


def read_back(folder: Path, state: str) -> None:
    """Reads the manifest, the metadata and the smallest array of a step that was just written.

    Args:
        folder: folder of the step.
        state: name of the subfolder with the arrays.

    Raises:
        CheckpointError: one of them cannot be read or differs from what was written.
    """
    from engine.parallel.digest import Digests  # loads JAX

    with reraise(lambda text: f"it cannot be read back: {text}"):
        expected = read_manifest(folder).arrays
        path, array = read_smallest(folder / state)
        if (found := Digests(array).of(array)[""]) != expected.get(path):
            raise CheckpointError(
                f"it cannot be read back: array {path} has the digest {found}, expected {expected.get(path, 'none')}"
            )


def missing_files(directory: Path) -> list[str]:
    """Returns a sentence for each file of a step that is missing or has another size; reads the manifest only."""
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return [str(error)]
    return find_problems(directory, manifest, manifest.files, sizes_only=True)


def verify(
    directory: Path,
    timeout_s: float = timeouts.VERIFY_S,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Compares all files of a step with its manifest, and returns the manifest.

    All processes call it, and each reads its share of the files. The size of a manifest grows with the number of
    processes, so only the primary reads it. The other processes receive and return the entries of their share. Of
    a step in a bucket that is not mounted, only the copied files are compared (`bucket_arrays.py`).

    Args:
        directory: directory of the step.
        timeout_s: seconds until all processes must have finished.
        on_bytes: called with the bytes that this process has read, and its total.

    Raises:
        DamagedCheckpoint: some files differ, in any process.
        UnsupportedFormat: a newer version of Convoy saved the step.
        VerifyTimeout: a process has not answered.
    """
    end = time.monotonic() + timeout_s
    manifest, newer, problems = None, "", []
    try:
        manifest = read_manifest(directory) if group.is_primary() else None
        if manifest is not None and address_of_copy(directory) is not None:  # `bucket_arrays` compares the arrays
            copied = {name: entry for name, entry in manifest.files.items() if (directory / name).is_file()}
            manifest = replace(manifest, files=copied)
        problems = irregular_files(directory) if group.is_primary() else []
    except UnsupportedFormat as error:
        newer = str(error)
    except CheckpointError as error:
        problems = [str(error)]
    try:
        share = _scatter_files(manifest or Manifest(0, {}, {}), timeout_s)
        problems += _problems_of_share(directory, share, on_bytes)
        problems, late = group.decide((newer, problems), _judge, "verify", max(0.1, end - time.monotonic()))
    except LostPeer as error:
        raise VerifyTimeout(directory, 0) from error
    if late:
        raise VerifyTimeout(directory, late[0])
    if problems:
        raise DamagedCheckpoint(directory, problems)
    return manifest or share


def compare_arrays(directory: Path, manifest: Manifest, digests: Mapping[str, str]) -> None:
    """Compares the digests of restored arrays with the manifest.

    All processes call it with the same digests. The primary, which has the whole manifest, compares them.

    Raises:
        DamagedCheckpoint: some digests differ.
    """

    def compare() -> list[str]:
        expected = ((path, digest, manifest.arrays.get(path, "none")) for path, digest in digests.items())
        return [
            f"array {path}: found the digest {found}, expected {wanted}"
            for path, found, wanted in expected
            if found != wanted
        ]

    if problems := group.run_on_primary(compare, "the digests of the arrays"):
        raise DamagedCheckpoint(directory, problems)


def warn_of_incomplete(directory: Path, steps: Sequence[int]) -> None:
    """Prints, in the primary, which steps have no manifest: damaged ones, and some that a bucket is just receiving.

    Args:
        directory: directory of the step directories.
        steps: those with a manifest.
    """
    missing = [path.name for path in step_folders(directory) if int(path.name) not in steps]
    if missing and group.is_primary():
        text = (
            f"step{'s' * (len(missing) > 1)} {', '.join(missing)} cannot be used, since manifest.json is missing there"
        )
        output.show(f"warning: {shown(directory)}: {text} or is no regular file")


def set_aside(path: Path, problems: list[str], lease: Lease) -> str:
    """Renames a damaged step; returns its new name.

    Raises:
        CheckpointError: it cannot be renamed.
    """
    name, number = f"{path.name}{BAD}", 1
    while (path.parent / name).exists():
        number += 1
        name = f"{path.name}{BAD}-{number}"
    try:
        with lease.writing():
            background.bounded(lambda: path.rename(path.parent / name), timeouts.LIST_S)
            write_text(path.parent / name / DAMAGE, "".join(f"{problem}\n" for problem in problems))
    except OSError as error:
        raise CheckpointError(
            f"{path}: is damaged ({shorten(problems)}) and cannot be renamed to {name} "
            f"({error.strerror or error}). Move it away yourself to resume from an earlier checkpoint."
        ) from error
    return name


def list_set_aside(directory: Path) -> list[tuple[str, str]]:
    """Returns (name, problems) of each step that was set aside, the newest step first."""
    found = []
    for path in directory.glob(f"*{BAD}*"):
        if match := re.fullmatch(rf"(\d+){re.escape(BAD)}(?:-(\d+))?", path.name):
            why = "set aside earlier"
            with contextlib.suppress(OSError):
                why = read_text(path / DAMAGE, errors="replace").strip()
            found.append((int(match[1]), int(match[2] or 1), path.name, why.replace("\n", "; ")))
    return [(name, why) for _, _, name, why in sorted(found, reverse=True)]


def verify_all(
    directory: Path, say: Callable[[str], None], progress: Callable[[str], None] = lambda text: None
) -> None:
    """Verifies every step of a run, oldest first, without changing a file: `convoy checkpoints verify`. Needs no JAX.

    Args:
        directory: directory of the step directories.
        say: called with a line for each step.
        progress: called with a text about once a second while a step is read.

    Raises:
        DamagedCheckpoints: after all steps, if some are damaged.
        UnsupportedFormat: after all steps, if a newer version of Convoy saved some.
    """
    from engine.checkpoint import frozen

    folders, damaged, newer = [*frozen.folders(directory), *step_folders(directory)], 0, None
    for path in folders:
        begin = time.monotonic()
        try:
            manifest = verify(path, on_bytes=_Progress(path.name, progress))
            if damage := frozen.damage_of(path):
                raise damage
            size, seconds = manifest.bytes / 2**20, time.monotonic() - begin
            say(f"{_label(path)}  good     {len(manifest.files)} files, {size:.1f} MiB, {seconds:.1f} s")
        except DamagedCheckpoint as error:
            say(f"{_label(path)}  DAMAGED  {shorten(error.problems)}")
            damaged += 1
        except UnsupportedFormat as error:
            say(f"{_label(path)}  newer    not verified")
            newer = error
    for name, why in list_set_aside(directory):
        say(f"{name:>13}  set aside by an earlier start: {why}")
    if damaged:
        raise DamagedCheckpoints(
            f"{directory}: {damaged} of {len(folders)} checkpoints are damaged. Training sets them aside and resumes "
            "from the newest good checkpoint; to repair a checkpoint, copy its files from a backup."
        )
    if newer is not None:
        raise newer


def _label(path: Path) -> str:
    """Returns the name of a folder in the list: a step, or one with frozen parameters."""
    return f"step {path.name:>8}" if path.name.isdecimal() else f"{path.name:>13}"


class _Progress:
    """Reports how many bytes of a step are read, about once a second."""

    def __init__(self, step: str, report: Callable[[str], None]):
        self._step, self._report, self._last = step, report, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last >= timeouts.PROGRESS_S:
            self._last = time.monotonic()
            self._report(f"step {self._step}: {done / 2**30:.2f} of {total / 2**30:.2f} GiB")


def _scatter_files(manifest: Manifest, timeout_s: float) -> Manifest:
    """Returns the files that this process verifies, out of the manifest of the primary."""
    shares = []
    if group.is_primary():
        sizes = {name: entry.bytes for name, entry in manifest.files.items()}
        for names in divide_files(sizes, group.count()):
            shares.append((manifest.step, {name: manifest.files[name] for name in names}, manifest.format))
    step, files, version = group.scatter(shares, "the files to verify", timeout_s)
    return Manifest(step, {name: FileEntry(*entry) for name, entry in files.items()}, {}, version)


def _problems_of_share(directory: Path, share: Manifest, on_bytes: Callable[[int, int], None]) -> list[str]:
    total, done = share.bytes, 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        on_bytes(done, total)

    return find_problems(directory, share, share.files, add)


def _judge(values: Mapping[int, tuple[str, list[str]]], missing: list[int]) -> tuple[list[str], list[int]]:
    """Returns the problems that the processes found, without duplicates, and the processes that have not answered."""
    for newer, _ in values.values():
        if newer:
            raise UnsupportedFormat(newer)
    problems = list(dict.fromkeys(problem for _, found in values.values() for problem in found))
    # Every process receives the result, so its size must not grow with the number of processes.
    if len(problems) > REPORTED:
        problems[REPORTED:] = [f"and {len(problems) - REPORTED} more problems"]
    return problems, missing[:REPORTED]
