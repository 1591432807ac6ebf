"""Run directories that tests write: the files that a list of runs reads, with the writers of the engine.

Some have the metrics of their examples, which gates judge.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.base import json_text
from engine.checkpoint.policy import RESULTS
from engine.config import to_text
from engine.experiments import gates
from engine.experiments.gates import RuleResult
from engine.metrics import Mean, Metric
from engine.metrics.example_file import path_of, to_parquet
from engine.metrics.slices import Examples
from engine.run import status
from tests import runs

COUNT = 200
"""Examples of the runs that `make_evaluated` writes."""


def make_run(folder: Path, results: dict[int, dict[str, float]] | None = None, **values: Any) -> Path:
    """Writes a run directory and returns it.

    Args:
        folder: the run directory.
        results: step -> results of an evaluation.
        values: fields of the status; and settings, whose names contain `__`: `train__seed=3`.
    """
    settings = {name: value for name, value in values.items() if "__" in name}
    found = {name: value for name, value in values.items() if name not in settings}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.txt").write_text(to_text(runs.config(**settings)))
    if results is not None:
        (folder / "checkpoints" / RESULTS).write_text(json_text.dumps({str(step): x for step, x in results.items()}))
    status.write(folder / "status.json", status.Status(**{"state": "done", **found}))
    return folder


def errors(shift: float, noise_seed: int = 1) -> np.ndarray:
    """Returns errors of examples, most of which two runs share: the runs are compared in pairs."""
    hard = np.random.default_rng(0).exponential(1.0, COUNT)
    return hard + shift + 0.1 * np.random.default_rng(noise_seed).normal(size=COUNT)


def mean_of(values: np.ndarray) -> Mean:
    """Returns a mean of one value for each example."""
    x: Any = np.asarray(values, np.float32)
    return Mean(x, np.ones_like(x))


def write_examples(run: Path, found: Examples, evaluation: str = "heldout", step: int = 10) -> None:
    """Writes the metrics of the examples of a run."""
    path = run / path_of(evaluation, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_parquet(found))


def make_evaluated(
    folder: Path,
    values: np.ndarray | None,
    content: str = "same",
    tags: Mapping[str, np.ndarray] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    **settings: Any,
) -> Path:
    """Writes a run with the metric "error" of its examples, in the slices near, far and rare, and returns it.

    Args:
        folder: the run directory.
        values: the error of each example; None for a run that kept none.
        content: fingerprint of the dataset.
        tags: tags of the examples.
        metrics: other metrics of the examples.
        settings: as for `make_run`.
    """
    run = make_run(folder, metrics={"heldout/error": 1.0 if values is None else float(values.mean())}, **settings)
    (run / "data.json").write_text(
        json_text.dumps({"evaluations.heldout.data": {"content": content, "examples": "200"}})
    )
    if values is not None:
        count = len(values)
        slices = {"near": np.arange(count) % 2 == 0, "far": np.arange(count) % 2 == 1, "rare": np.arange(count) < 5}
        found = {"error": mean_of(values), **(metrics or {})}
        write_examples(run, Examples(np.arange(count), slices, found, tags or {}))
    return run


def kept(folder: Path, values: np.ndarray, **settings: Any) -> Path:
    """A run with the metrics of its examples, and slices of them."""
    run = make_run(folder, metrics={"val/collision_rate": float(values.mean())}, **settings)
    of_numpy: Any = values.astype(np.float32)
    size = len(values)
    parts = {"near": np.arange(size) % 2 == 0, "rare": np.arange(size) < 5, "none": np.zeros(size, bool)}
    path = run / "per_example" / "val" / "10.parquet"
    path.parent.mkdir(parents=True)
    tags = {"scene": np.arange(size) // 10}
    metrics = {"collision_rate": Mean(of_numpy, np.ones_like(of_numpy))}
    path.write_bytes(to_parquet(Examples(np.arange(size), parts, metrics, tags)))
    return run


def verdicts(run: Path, text: str, **options: Any) -> RuleResult:
    """Returns what a gate with a single rule says of a run."""
    path = run.parent / "gate.toml"
    path.write_text(f"[rules.r]\n{text}\n")
    [result] = gates.check(run, path, **options).rules
    return result
