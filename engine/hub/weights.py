"""Reads weights that other programs wrote as safetensors files: one file, or several with an index, as on Hugging Face.

Only headers are read at first; values are read slice by slice. A file is data: nothing in a folder is executed.
`safetensors` checks each header against the size of its file: shapes, types, offsets that overlap or leave gaps.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.base.errors import CheckpointError
from engine.checkpoint.warm_start import FOREIGN

SUFFIX = ".safetensors"
INDEXES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CONVERT = (
    "python -c \"import torch; from safetensors.torch import save_file; w = torch.load('{file}', weights_only=True, "
    "map_location='cpu'); save_file({{k: v.contiguous() for k, v in w.items()}}, 'model.safetensors')\""
)
"""The line that converts a file of PyTorch, in an environment that has torch and safetensors."""
LARGEST_INDEX = 64 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of a file: its shape, its type in the words of safetensors ("BF16"), and the file."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Weights:
    """The arrays of a folder of safetensors files, or of one file, by name.

    Args:
        path: the folder or the file.
        where: path of the config field that names it, for errors.
        name: what messages call the weights; "" for the path.

    Raises:
        CheckpointError: there are no safetensors files, or one is damaged, or two have an array of the same name.
    """

    def __init__(self, path: Path, where: str, name: str = ""):
        self.path, self.name, self._where = path, name or str(path), where
        self._opened: dict[Path, Any] = {}
        self.arrays: dict[str, Stored] = {}
        for file in _files(path, where):
            for name, stored in self._header(file):
                if name in self.arrays:
                    raise self._damaged(file, f"it and {self.arrays[name].file.name} both have an array {name!r}")
                self.arrays[name] = stored

    def read(self, name: str, index: Sequence[slice]) -> np.ndarray:
        """Returns a part of an array; the process holds only this part.

        Args:
            name: of the array.
            index: one slice for each dimension, with start and stop, without steps.

        Raises:
            CheckpointError: the file has changed or cannot be read.
        """
        stored = self.arrays[name]
        try:
            opened = self._open(stored.file)
            return opened.get_slice(name)[tuple(index)] if stored.shape else opened.get_tensor(name)
        except Exception as error:  # safetensors raises its own class, and OSError
            raise self._damaged(stored.file, f"{name}: {error}") from error

    def _header(self, file: Path) -> Iterator[tuple[str, Stored]]:
        try:
            opened = self._open(file)
            for name in opened.keys():  # noqa: SIM118, not a mapping
                part = opened.get_slice(name)
                yield name, Stored(tuple(part.get_shape()), part.get_dtype(), file)
        except Exception as error:  # safetensors raises its own class, and OSError
            raise self._damaged(file, str(error)) from error

    def _open(self, file: Path) -> Any:
        if file not in self._opened:
            from safetensors import safe_open

            self._opened[file] = safe_open(str(file), "np")
        return self._opened[file]

    def _damaged(self, file: Path, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {file}: cannot be read ({problem}). Copy or download the file again.")


def _files(path: Path, where: str) -> list[Path]:
    """Returns the files of safetensors: the file itself, those of the index, or all of the folder."""
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{where} = {FOREIGN}{path}: a file of PyTorch may hold code, so it is not read. Convert it, in an "
            f"environment with torch:\n  {CONVERT.format(file=path)}"
        )
    if path.is_file():
        return [path]
    for index in INDEXES:
        if (path / index).is_file():
            return _indexed(path / index, where)
    if found := sorted(path.glob(f"*{SUFFIX}")):
        return found
    others = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    if pickles := [name for name in others if name.endswith(PICKLES)]:
        raise CheckpointError(
            f"{where} = {FOREIGN}{path}: the folder has files of PyTorch only, which may hold code. Convert one, in an "
            f"environment with torch:\n  {CONVERT.format(file=path / pickles[0])}"
        )
    raise CheckpointError(
        f"{where} = {FOREIGN}{path}: no safetensors file found. The folder has: {', '.join(others[:8]) or 'no files'}."
    )


def _indexed(index: Path, where: str) -> list[Path]:
    """Returns the files that an index names, which lie in its folder."""
    try:
        if index.stat().st_size > LARGEST_INDEX:
            raise ValueError(f"larger than {LARGEST_INDEX >> 20} MiB")
        content = json.loads(index.read_text())
        names: Mapping[str, str] = content["weight_map"]
        files = sorted(set(names.values()))
        if outside := [name for name in files if not re.fullmatch(r"[\w.-]+" + re.escape(SUFFIX), name)]:
            raise ValueError(f"it names {outside[0]!r}, which is no safetensors file of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where}: {index}: is no index of safetensors files ({error!r}).") from error
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"{where}: {index.parent}: {len(missing)} of {len(files)} files of {index.name} are missing, such as "
            f"{missing[0]}. Copy or download them again."
        )
    return [index.parent / name for name in files]
