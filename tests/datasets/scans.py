"""A dataset of scans with text, labels and points of any length; some of its examples may be bad or wait."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.data.source import BaseSource

WAIT_S = 600.0  # longest wait for a gate: longer than any test


class Scans(BaseSource):
    """Examples with `points` [1 to 9, 3], `label` 0 to 2 and `name`.

    Args:
        count: number of examples.
        bad: indices of the examples whose file is damaged.
        gate: a folder. From example `wait_from` on, reading waits until the file `open` is in it. Each process that
            reads creates a file with its process id there.
    """

    def __init__(self, count: int = 60, bad: Sequence[int] = (), gate: str | None = None, wait_from: int = 0):
        self.count, self.bad, self.gate, self.wait_from = count, tuple(bad), gate, wait_from

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        if self.gate is not None:
            self._wait(Path(self.gate), index)
        if index in self.bad:
            raise OSError(f"scan {index} is damaged")
        rng = np.random.default_rng(index)
        points = rng.random((index % 9 + 1, 3), dtype=np.float32)
        return {"points": points, "label": np.int32(index % 3), "name": f"scan {index}"}

    def fingerprint(self) -> str:
        return f"{self.count} scans without {self.bad}"

    def _wait(self, gate: Path, index: int) -> None:
        (gate / str(os.getpid())).touch()
        end = time.monotonic() + WAIT_S
        while index >= self.wait_from and not (gate / "open").exists() and time.monotonic() < end:
            time.sleep(0.01)


class Transformed(Scans):
    """Scans whose transform fails for one label."""

    def transform(self, example, rng):
        if example["label"] == 2:
            raise ValueError("no such label")
        return {**example, "points": example["points"] + rng.random()}


def content(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of each file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def work(job, report):
    """A job of `pool.py`: an integer to double, or what goes wrong."""
    report(1)
    if job == "kill":
        os.kill(os.getpid(), 9)
    if job == "exit":
        os._exit(3)
    if job == "fail":
        raise ValueError("no such job")
    return 2 * job
