"""Tar shards in which samples lack members, compared with the webdataset library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged, plain, tree_difference
from benchmarks.references.rows import Row
from engine.readers import WebDataset

OPTIONAL = ("left.txt", "meta.json", "npy")


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for the samples of a shard, without entries for the members that they lack."""
    sets = [_sample(seed, np.random.default_rng(seed)) for seed in range(cases)]
    yield from compare_files(environment, {"sets": sets}, compared)


def compared(folder: Path) -> Iterator[Row]:
    """Yields the rows of a folder in which webdataset has written and read the shard."""
    sets, wanted = exchanged(folder)
    source = WebDataset(str(folder / "samples.tar"), ["cls"], optional=dict.fromkeys(OPTIONAL))
    found = [plain(source[index]) for index in range(len(source))]
    yield Row("samples with optional members", len(sets), tree_difference(found, wanted))


def _sample(seed: int, rng: np.random.Generator) -> dict[str, Any]:
    """Returns the members of a sample by suffix; the first sample has all of them."""
    members = {
        "left.txt": "".join(chr(code) for code in rng.integers(0xA1, 0x17F, 3)),
        "meta.json": {"speed": float(rng.normal()), "lanes": [[0.5], [float(rng.normal()), 2.0]], "city": "é"},
        "npy": rng.normal(size=(2, int(rng.integers(0, 3)))).astype(np.float32).tolist(),
    }
    kept = {name: value for name, value in members.items() if seed == 0 or rng.random() < 0.6}
    return {"__key__": f"{'a.b/' if seed % 2 else ''}{seed:05}", "cls": int(rng.integers(-5, 100)), **kept}
