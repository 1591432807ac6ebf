"""A hook that holds a run at some steps, so that a test can act before it continues."""

import time
from collections.abc import Sequence
from pathlib import Path


class Gate:
    """Waits at each of some steps until a file with the number of the step is in a folder."""

    def __init__(self, folder: str, steps: Sequence[int]):
        self._folder, self._steps = Path(folder), steps

    def run(self, trainer, state, step: int) -> None:
        end = time.monotonic() + 600
        while step in self._steps and not (self._folder / str(step)).exists() and time.monotonic() < end:
            time.sleep(0.01)


def flags(folder: Path, *steps: int) -> list[str]:
    """Returns the flags of `convoy train` for this hook."""
    hook = "--config.hooks.gate."
    return [
        f"{hook}target={__name__}.{Gate.__name__}",
        f"{hook}every=1 step",
        f"{hook}folder={folder}",
        f"{hook}steps={steps}",
    ]
