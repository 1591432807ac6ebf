"""Text that every machine has: the source files of Python's own standard library, as bytes.

A byte is a token (256 of them, and no others). The first byte of a file is no target, as nothing comes before it. The
text differs between releases of Python; compare losses of one release only.
"""

import bz2
import hashlib
import math
import platform
import sysconfig
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from engine import DataError, Packed

VOCABULARY = 256
# Folders: what is not the library's own, tests, and half a megabyte of manual inside one string.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "pydoc_data"}
OF_THE_MACHINE = "_sysconfigdata"  # files with how this Python was compiled
ONE_IN = 16  # files of which one is for validation

Split = Literal["train", "validation"]


class Files:
    """The files of a split, train or validation, by relative path: documents `tokens` uint8 `[bytes]`."""

    def __init__(self, split: Split = "train"):
        if split not in get_args(Split):
            raise DataError(f"models.stdlib_text: split = {split!r}, allowed are {' and '.join(get_args(Split))}.")
        folder = Path(sysconfig.get_path("stdlib"))
        found = (path.relative_to(folder) for path in folder.rglob("*.py"))
        paths = sorted(
            path.as_posix()
            for path in found
            if not LEFT_OUT & set(path.parts) and not path.name.startswith(OF_THE_MACHINE)
        )
        self.paths = [path for path in paths if _is_validation(path) == (split == "validation")]
        if not self.paths:
            raise DataError(
                f"{folder}: no .py files for {split}. Use a Python whose library lies there as source files."
            )
        self._tokens = [np.frombuffer((folder / path).read_bytes(), np.uint8) for path in self.paths]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return {"tokens": self._tokens[index]}

    def lengths(self):
        """Bytes of each file, int64 `[files]`."""
        return np.array([len(tokens) for tokens in self._tokens])


class StdlibText(Packed):
    """Rows of `length` bytes of a split; see engine.Packed for their arrays."""

    def __init__(self, split: Split = "train", length: int = 256):
        super().__init__(Files(split), length)


def validation_bytes() -> bytes:
    """All files of the validation split, one after the other."""
    files = Files("validation")
    return b"".join(files[index]["tokens"].tobytes() for index in range(len(files)))


def bz2_nats_per_byte(text: bytes) -> float:
    """What `bzip2 -9` needs for a text, in nats per byte: the scale of a model's loss."""
    return 8 * math.log(2) * len(bz2.compress(text, 9)) / len(text)


class Scale:
    """A hook: says the validation loss beside what bzip2 needs for the same files."""

    def __init__(self, metric: str = "validation/loss"):
        self.metric = metric

    def run(self, trainer, state, step):
        loss, scale = trainer.summary().metrics.get(self.metric), bz2_nats_per_byte(validation_bytes())
        if loss is None:
            return trainer.say(f"step {step}: no {self.metric} yet. Give its evaluation and this hook one period.")
        version = platform.python_version()
        trainer.say(f"step {step}: validation {loss:.4f} nats a byte; bzip2 -9 {scale:.4f} (Python {version})")


def _is_validation(path: str) -> bool:
    """Decided by the path alone, so that a file keeps its split when others come or go."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest()) % ONE_IN == 0
