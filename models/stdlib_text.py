"""A text dataset that every machine has: the source files of Python's standard library, as bytes.

Each byte is a token, so the vocabulary is 256. The text differs between releases of Python, so compare losses of the
same release only.
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
# Folders to skip: third-party packages, tests, and half a megabyte of manual inside one string.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "pydoc_data"}
MACHINE_SPECIFIC = "_sysconfigdata"  # prefix of files that describe how this Python was compiled
VALIDATION_ONE_IN = 16  # one in so many files is for validation

Split = Literal["train", "validation"]


class Files:
    """The files of a split, sorted by relative path, as documents with `tokens` uint8 `[bytes]`."""

    def __init__(self, split: Split = "train"):
        if split not in get_args(Split):
            raise DataError(
                f"convoy_zoo.models.stdlib_text: split = {split!r}: allowed are {' and '.join(get_args(Split))}."
            )
        folder = Path(sysconfig.get_path("stdlib"))
        found = (path.relative_to(folder) for path in folder.rglob("*.py"))
        paths = sorted(
            path.as_posix()
            for path in found
            if not LEFT_OUT & set(path.parts) and not path.name.startswith(MACHINE_SPECIFIC)
        )
        self.paths = [path for path in paths if _is_validation(path) == (split == "validation")]
        if not self.paths:
            raise DataError(
                f"{folder}: no .py files for {split}. Use a Python whose standard library is installed as source files."
            )
        self._tokens = [np.frombuffer((folder / path).read_bytes(), np.uint8) for path in self.paths]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return {"tokens": self._tokens[index]}

    def lengths(self):
        """Returns the bytes per file, int64 `[files]`."""
        return np.array([len(tokens) for tokens in self._tokens])


class StdlibText(Packed):
    """A split packed into rows of `length` bytes; `engine.Packed` documents the arrays."""

    def __init__(self, split: Split = "train", length: int = 256):
        super().__init__(Files(split), length)


def validation_bytes() -> bytes:
    """Returns the concatenated files of the validation split."""
    files = Files("validation")
    return b"".join(files[index]["tokens"].tobytes() for index in range(len(files)))


def bz2_nats_per_byte(text: bytes) -> float:
    """Returns the size of a text under `bzip2 -9` in nats per byte, as a reference for a model's loss."""
    return 8 * math.log(2) * len(bz2.compress(text, 9)) / len(text)


class Scale:
    """A hook that prints the validation loss next to the size of the same files under bzip2."""

    def __init__(self, metric: str = "validation/loss"):
        self.metric = metric

    def run(self, trainer, state, step):
        loss, scale = trainer.summary().metrics.get(self.metric), bz2_nats_per_byte(validation_bytes())
        if loss is None:
            return trainer.say(f"step {step}: no {self.metric} yet. Give its evaluation and this hook one period.")
        version = platform.python_version()
        trainer.say(f"step {step}: validation {loss:.4f} nats a byte; bzip2 -9 {scale:.4f} (Python {version})")


def _is_validation(path: str) -> bool:
    """Returns whether a file is for validation; depends on its path alone, so that files keep their split."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest()) % VALIDATION_ONE_IN == 0
