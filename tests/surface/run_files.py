"""The files of a tiny run and of its results, as text: paths, the keys of JSON with their types, dtypes of arrays.

Names that depend on the machine, the time, or the release of Orbax, Optax and tensorboardX are replaced by `*`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from safetensors.numpy import load_file

import engine
from tests import runs

DATA = {"target": "tests.zoo.source", "n": 37}
REPLACED = [
    (r"(checkpoints/\d+/state/).*", r"\1*"),  # files of Orbax
    (r"(tensorboard/events\.out\.tfevents\.).*", r"\1*"),
]
REPLACED_KEYS = [(r"^state/.*", "state/*"), (r"^opt_state/.*", "opt_state/*"), (r"^\d+$", "<number>")]
# Missing where a machine cannot measure them, and where the time is too short to be measured.
UNSURE = re.compile(r"data_\w+_s|flop_per_s|mfu|hfu|host_rss_gib|device_peak_gib|stages_s|advice")
EMPTY = {"NoneType": "null", "dict": "empty object", "list": "empty list"}  # what a type without content is called


class Norms:
    """Hook that returns a metric, and ends the run at step 4."""

    def run(self, trainer: Any, state: Any, step: int) -> Any:
        """Returns a metric, at last with the end of the run."""
        metrics = {"norm": float(step)}
        return engine.Stop("the test has what it needs", metrics) if step == 4 else metrics


def make(folder: Path) -> None:
    """Writes a run with evaluations, a hook and its examples; and its predictions, weights and further results."""
    run = folder / "run"
    config = runs.config(
        task={"target": "tests.predicting.Predict"},
        train__total="6 steps",
        checkpoint__every="2 steps",
        checkpoint__best="heldout/loss",
        checkpoint__best_mode="min",
        evaluations__heldout__every="2 steps",
        evaluations__heldout__worst=2,
        hooks__norms={"target": "tests.surface.run_files.Norms", "every": "2 steps"},
        log__examples=True,
        log__tensorboard=True,
    )
    engine.train(config, workdir=run)
    engine.evaluate(run)
    engine.export(run, folder / "weights.safetensors")
    for suffix in ("npz", "parquet"):
        engine.predict(run, evaluation="heldout", out=folder / f"predictions.{suffix}")
    engine.write_dataset(DATA, folder / "dataset.arrayrecord", processes=1)
    report = engine.check_dataset(DATA, processes=1)
    (folder / "dataset_report.json").write_text(report.to_json(), encoding="utf-8")


def text(folder: Path) -> str:
    """Returns a block for each path in a folder; files with the same name but for digits share one."""
    blocks: dict[str, list[Path]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        for pattern, by in REPLACED:
            name = re.sub(pattern, by, name)
        blocks.setdefault(re.sub(r"(?<=/)\d+(?=[/.])", "<number>", name), []).append(file)
    lines = []
    for name, files in sorted(blocks.items()):
        lines += [name, *(f"    {line}" for line in sorted({line for file in files for line in _lines(file)}))]
    return "\n".join(lines) + "\n"


def _lines(file: Path) -> Iterator[str]:
    """Yields the lines about the content of a file; none of a format that this module does not read."""
    if file.suffix == ".json":
        yield from _merged([json.loads(file.read_text(encoding="utf-8"))])
    elif file.suffix == ".jsonl":
        yield from _merged([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
    elif file.name == "config.txt":
        yield from (line.partition(": ")[0] for line in file.read_text(encoding="utf-8").splitlines())
    elif file.suffix == ".npz":
        with np.load(file) as arrays:
            yield from (_array(name, arrays[name]) for name in arrays.files)
    elif file.suffix == ".parquet":
        yield from (f"{field.name}: {field.type}" for field in pyarrow.parquet.read_schema(file))
    elif file.suffix == ".safetensors":
        yield from (_array(name, array) for name, array in load_file(file).items())


def _array(name: str, array: np.ndarray) -> str:
    return f"{name}: {array.dtype.name} {list(array.shape)}"


def _merged(values: list[Any]) -> Iterator[str]:
    """Yields `key.key[]: types` for every key in JSON values, with all types that occur."""
    types: dict[str, set[str]] = {}
    for value in values:
        for key, kind in _keys(value, ""):
            types.setdefault(key, set()).add(kind)
    yield from (f"{key}: {' | '.join(sorted(kinds))}" for key, kinds in types.items())


def _keys(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if not UNSURE.fullmatch(key):
                for pattern, by in REPLACED_KEYS:
                    key = re.sub(pattern, by, key)
                yield from _keys(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _keys(inner, f"{path}[]")
    else:
        name = type(value).__name__
        yield path, EMPTY.get(name, name)
