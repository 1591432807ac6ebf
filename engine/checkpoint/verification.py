"""Whether a step is what was saved: its files against its manifest, the restored arrays against their digests.

Owns: the verdict on which all processes agree, and the error that names what is wrong. Does not own: the comparison of
one file (`manifest.py`), what is done about a damaged step (`restore_latest.py`).
"""

import itertools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.checkpoint.manifest import Manifest, deal, problems, read_manifest
from engine.cluster import kv_store, processes
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import CheckpointError

SHOWN = 4  # problems that a sentence names
_SLACK_S = 10.0  # that the verdict of all comes later than that of each

_turns = itertools.count()


class DamagedCheckpoint(CheckpointError):
    """A step that is not what was saved; every process of a run raises it alike.

    Attributes:
        problems: a sentence for each, "state/d/1b0f: found 120 bytes, expected 158".
    """

    exit_code = ExitStatus.STOP
    everywhere = True

    def __init__(self, directory: Path, problems: list[str]):
        self.problems = problems
        super().__init__(
            f"{directory}: is damaged: {in_short(problems)}. Choose another step; training sets a damaged one aside "
            "and goes on from the newest that is good."
        )


class NotInTime(CheckpointError):
    """A process has not checked its share of the files in time; every process that waits for it raises it."""

    exit_code = ExitStatus.RETRY

    def __init__(self, directory: Path, process: int):
        self.process = process
        super().__init__(
            f"{directory}: process {process} has not checked its share of the files in time. See that the storage "
            "answers there, then start the same command again."
        )


def in_short(problems: list[str]) -> str:
    """Returns the first problems in one line."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def verify(
    directory: Path, timeout_s: float = 600.0, on_bytes: Callable[[int, int], None] = lambda done, total: None
) -> Manifest:
    """Returns the manifest of a step whose files are all as it says.

    With several processes all call it, and each looks at its share of the files.

    Args:
        directory: of the step.
        timeout_s: seconds that all processes together may take.
        on_bytes: called with the bytes that this process has read and will have read, time and again.

    Raises:
        DamagedCheckpoint: they are not, in whichever process.
        NotInTime: a process has not said anything.
    """
    manifest, found = _own_part(directory, on_bytes)
    if found := _of_all(found, timeout_s, directory):
        raise DamagedCheckpoint(directory, found)
    assert manifest is not None
    return manifest


def compare(directory: Path, manifest: Manifest, digests: Mapping[str, str]) -> None:
    """Holds the digests of restored arrays against those of the manifest; the same in every process.

    Raises:
        DamagedCheckpoint: some differ.
    """
    found = [
        f"array {path}: found the digest {digest}, expected {manifest.arrays.get(path, 'one')}"
        for path, digest in digests.items()
        if manifest.arrays.get(path) != digest
    ]
    if found:
        raise DamagedCheckpoint(directory, found)


def _own_part(directory: Path, on_bytes: Callable[[int, int], None]) -> tuple[Manifest | None, list[str]]:
    """The manifest, if it can be read, and what is wrong with this process's share of the files."""
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return None, [str(error)]
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    names = deal(sizes, processes.count())[processes.index()]
    total, read = sum(sizes[name] for name in names), 0

    def add(count: int) -> None:
        nonlocal read
        read += count
        on_bytes(read, total)

    return manifest, problems(directory, manifest, names, add)


def _of_all(found: list[str], timeout_s: float, directory: Path) -> list[str]:
    """The problems that all processes found, the same list in each of them: the first one collects."""
    if processes.count() == 1:
        return found
    key = f"verification/{next(_turns)}"
    if processes.is_primary():
        verdict = _collected(found, key, timeout_s)
        kv_store.put(f"{key}/verdict", json.dumps(verdict))
    else:
        kv_store.put(f"{key}/{processes.index()}", json.dumps(found))
        text = kv_store.get(f"{key}/verdict", timeout_s + _SLACK_S)
        verdict = (None, 0) if text is None else json.loads(text)
    problems_of_all, late = verdict
    if problems_of_all is None:
        raise NotInTime(directory, late)
    return problems_of_all


def _collected(found: list[str], key: str, timeout_s: float) -> tuple[list[str] | None, int]:
    """The problems; or None and the process that has told none in time."""
    end, everything = time.monotonic() + timeout_s, list(found)
    for other in range(1, processes.count()):
        text = kv_store.get(f"{key}/{other}", max(0.001, end - time.monotonic()))
        if text is None:
            return None, other
        everything += [problem for problem in json.loads(text) if problem not in everything]
    return everything, 0
