"""Examples that can be read only after a file exists."""

import time
from pathlib import Path

from tests.predicting import Unreadable


class Gated(Unreadable):
    """From example `wait_from` on, reading waits until the file `open` is in the folder `gate`."""

    def __init__(self, gate: str, wait_from: int, n: int = 37):
        super().__init__(n=n)
        self._gate, self._wait_from = Path(gate), wait_from

    def __getitem__(self, index):
        end = time.monotonic() + 600
        while index >= self._wait_from and not (self._gate / "open").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return super().__getitem__(index)

    def fingerprint(self) -> str:
        return f"{self.n} examples"


def is_one(batch):
    """A slice."""
    return batch["y"] == 1
