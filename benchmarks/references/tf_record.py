"""TFRecord files of tf.train.SequenceExample, plain and compressed, compared with TensorFlow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged, plain, tree_difference
from benchmarks.references.rows import Row
from engine.readers import TFExample, TFRecord

FEATURES = {"id": "int64", "name": "bytes", "pose": ("float32", [3])}
SEQUENCES = {"speed": "float32", "box": ("int64", [4]), "ids": ("int64", [None]), "tag": ("bytes", [])}


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each kind of compression, with the features named and inferred."""
    sets = [_record(np.random.default_rng(seed)) for seed in range(cases)]
    yield from compare_files(environment, {"sets": sets}, compared)


def compared(folder: Path) -> Iterator[Row]:
    """Yields the rows of a folder in which TensorFlow has written and read the files."""
    _, results = exchanged(folder)
    for kind, wanted in results.items():
        path = str(folder / f"{kind or 'plain'}.tfrecord")
        for how, decoder in (("named", TFExample(FEATURES, SEQUENCES)), ("inferred", None)):
            source = TFRecord(path, decoder)
            found = [plain(source[index]) for index in range(len(source))]
            item = f"SequenceExample, compression {kind or 'none'}, features {how}"
            yield Row(item, len(wanted), tree_difference(found, wanted))


def _record(rng: np.random.Generator) -> dict[str, Any]:
    """Returns the context and the steps of the sequences of a record; some sequences have no steps."""

    def steps(make: Any) -> list[Any]:
        return [make() for _ in range(rng.integers(0, 5))]

    def numbers(count: int) -> list[int]:
        return rng.integers(-(2**62), 2**62, count).tolist()

    def floats(count: int) -> list[float]:
        return rng.normal(size=count).astype(np.float32).tolist()

    def text() -> str:
        return rng.bytes(int(rng.integers(0, 4))).decode("latin-1")

    return {
        "context": {"id": numbers(1)[0], "name": text(), "pose": floats(3)},
        "sequences": {
            "speed": [0.5, *steps(lambda: floats(1)[0])],
            "box": [numbers(4), *steps(lambda: numbers(4))],
            "ids": [numbers(1), *steps(lambda: numbers(int(rng.integers(1, 4))))],
            "tag": steps(text),
        },
    }
