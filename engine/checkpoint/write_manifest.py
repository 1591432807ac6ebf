"""The last part of a save: from files that are written to a manifest that says what they are.

Owns: what the processes tell each other about it. Does not own: the writing of the files and the rename that makes them
a step (`saving.py`), what a manifest says (`manifest.py`).

Each process hashes the files that the first one deals out to it, and hands over what it found together with the
digests of its part of the arrays. The first one merges, and writes the manifest. Nothing here is a collective, so it
runs in a thread beside the training.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.manifest import Entry, Manifest, deal, files_of, hash_files, write_manifest
from engine.cluster import kv_store, processes
from engine.config.errors import CheckpointError

HASHED = "hashed"  # the folder of keys in which each process but the first says what it found

_LOOK_S = 1.0  # between two looks whether the save has ended otherwise


class Seal:
    """What becomes the manifest of one step.

    Args:
        folder: where all processes write the step.
        step: its number.
        key: below which processes tell each other about this save.
        digests: returns this process's part of the digests, uint32 `[arrays, 2]`; may wait for the device.
        texts: makes path -> digest of the sum of all parts.
        going: whether the save has not ended; where it has, nobody is waited for.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        key: str,
        digests: Callable[[], np.ndarray],
        texts: Callable[[np.ndarray], dict[str, str]],
        going: Callable[[], bool],
    ):
        self._folder, self._step, self._key = folder, step, key
        self._digests, self._texts, self._going = digests, texts, going

    def write(self, on_own_part: Callable[[], None] = lambda: None) -> None:
        """Writes the manifest; called by the first process, when all files of the step are there.

        Args:
            on_own_part: called when this process has hashed its part, and waits for the others.

        Raises:
            CheckpointError: another process could not hash its part, or the save has ended.
            RunError, OSError: this process could not hash or write.
        """
        hands = deal(files_of(self._folder), processes.count())
        for other, names in list(enumerate(hands))[1:]:
            kv_store.put(f"{self._key}/files/{other}", json.dumps(names))
        parts = [self._part(hands[0])]
        on_own_part()
        for other in range(1, processes.count()):
            parts.append(part := self._wait_for(f"{HASHED}/{other}"))
            if "error" in part:
                raise CheckpointError(f"process {other}: {part['error']}")
        files = {name: Entry(*entry) for part in parts for name, entry in part["files"].items()}
        total = sum(np.array(part["arrays"], np.uint32).reshape(-1, 2) for part in parts)  # modulo 2^32
        write_manifest(self._folder, Manifest(self._step, files, self._texts(np.asarray(total))))

    def hand_over(self) -> None:
        """Hashes what the first process deals out, and tells it what was found or what failed; for all the others."""
        try:
            part = self._part(self._wait_for(f"files/{processes.index()}"))
        except Exception as error:
            part = {"error": f"{type(error).__name__}: {error}"}
        kv_store.put(f"{self._key}/{HASHED}/{processes.index()}", json.dumps(part))

    def _part(self, names: list[str]) -> dict[str, Any]:
        return {"files": hash_files(self._folder, names), "arrays": self._digests().tolist()}

    def _wait_for(self, key: str) -> Any:
        while self._going():
            if (text := kv_store.get(f"{self._key}/{key}", _LOOK_S)) is not None:
                return json.loads(text)
        raise CheckpointError("the save has ended otherwise")
