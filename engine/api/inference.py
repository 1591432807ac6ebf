"""Uses a trained run as functions: evaluate it, predict with it, export its weights, list its checkpoints.

These functions read a run directory and need no training data. They do not take the lease of the run.
"""

import contextlib
import functools
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.lineage import PredictionLineage, record_export, remove_record
from engine.api.prediction_files import PredictionFile, check_prediction_file, open_prediction_file
from engine.api.predictions import EXAMPLE, Columns, Predictor
from engine.api.results import Results, StepResults
from engine.api.saved_evaluations import ReducedElsewhere, SavedEvaluations, choose_steps, log
from engine.api.saved_predictor import Request, SavedPredictor
from engine.api.saved_program import open_program
from engine.api.saved_run import SavedRun
from engine.base.errors import ConfigError, DataError
from engine.checkpoint.export import export_safetensors
from engine.checkpoint.store import StepInfo
from engine.cluster import group, peer_failure
from engine.data.adapt import Readable
from engine.metrics.results import Result
from engine.observe.figure_files import remove_figures, write_figures
from engine.storage.mounts import local_path
from engine.training.figures import draw_example
from engine.training.task import Task

SUBMISSIONS = "engine.submissions.files"
"""The extension that writes the formats of benchmarks, which is imported only for them."""
type Compute = Callable[[SavedPredictor, Callable[[int], None]], AbstractContextManager[Iterable[Columns]]]
"""Computes predictions: gets what to compute, and a function to call with the number of finished examples."""
type ComputeEvaluations = Callable[[SavedEvaluations, Sequence[int]], AbstractContextManager[ReducedElsewhere]]
"""Computes evaluations of checkpoints of these steps, in this order."""
FIGURE = re.compile(r"example-\d+\.png")  # name of a figure of `predict`


def evaluate(
    run: str | Path,
    *,
    step: int | str | None = None,
    task: Task | None = None,
    evaluation_data: Mapping[str, Readable] | None = None,
    overrides: Sequence[str] = (),
) -> Results:
    """Runs all evaluations of a run on one checkpoint; returns "step" and the metrics. Needs no training data.

    The results are also appended to `evaluations.jsonl` in the run directory.

    Args:
        run: the run directory.
        step: step of the checkpoint, "latest", or "best". None, like "best": the best checkpoint if the run selects
            one, else the newest.
        task: the Task, if the run was started with a Task object.
        evaluation_data: name of an evaluation -> its source; a new name is a new evaluation. Fields of the engine, such
            as `data.limit`, stay as the config sets them.
        overrides: changes of the run's config, each "evaluations.test.batch_size=64" or "mesh.data=2".

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: the config of the run has no evaluations, or an override changes something else.
    """
    steps = [step]
    [results] = evaluate_steps(run, steps, task=task, evaluation_data=evaluation_data, overrides=overrides)
    return results


def evaluate_steps(
    run: str | Path,
    steps: str | Sequence[int | str | None],
    *,
    task: Task | None = None,
    evaluation_data: Mapping[str, Readable] | None = None,
    overrides: Sequence[str] = (),
    on_results: Callable[[dict[str, Result]], None] = lambda results: None,
    on_message: Callable[[str], None] = log,
) -> StepResults:
    """Runs all evaluations of a run on several checkpoints; compiles them once. Otherwise as `evaluate`.

    Args:
        run: the run directory.
        steps: "all", a text such as "100,200,latest", or a list of steps.
        task: as for `evaluate`.
        evaluation_data: as for `evaluate`.
        overrides: as for `evaluate`.
        on_results: called with "step" and the metrics of each step.
        on_message: called with sentences for the user.
    """
    evaluations = SavedEvaluations(run, task=task, overrides=overrides, data=evaluation_data, on_message=on_message)
    return run_steps(evaluations, steps, on_results)


def run_steps(
    evaluations: SavedEvaluations,
    steps: str | Sequence[int | str | None],
    on_results: Callable[[dict[str, Result]], None],
    compute: ComputeEvaluations | None = None,
) -> StepResults:
    """Runs evaluations on several checkpoints, as `evaluate_steps` does, and says which.

    Args:
        evaluations: the evaluations.
        steps: as for `evaluate_steps`.
        on_results: as for `evaluate_steps`.
        compute: computes the metrics of the batches elsewhere, such as `engine.ray.inference.RayEvaluations`. None: in
            this process.
    """
    saved, found = evaluations.saved, StepResults()
    chosen = group.run_on_primary(lambda: choose_steps(saved, steps), "the choice of the checkpoints")
    words = steps.split(",") if isinstance(steps, str) else steps
    with contextlib.nullcontext() if compute is None else compute(evaluations, chosen) as reduced:
        for step in chosen:
            if group.is_primary():
                text = saved.describe_choice(step, words[0] if len(words) == 1 else step)
                evaluations.say(f"evaluating {saved.directory} at {text}")
            found.append(Results(evaluations.run(step, reduced=reduced)))
            on_results(found[-1])
    return found


def predict(
    run: str | Path,
    *,
    data: Readable | Mapping[str, Any] | None = None,
    evaluation: str | None = None,
    step: int | str | None = None,
    task: Task | None = None,
    batch_size: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    figures: int = 0,
    fields: Sequence[str] = (),
    format: str | None = None,
    compute: Compute | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_message: Callable[[str], None] = log,
) -> dict[str, np.ndarray]:
    """Runs `Task.predict` of a run over a dataset, each example once and in order. Needs no training data.

    Returns the columns by name, one row per example: `example` (its index in the dataset), `example/key`, the
    predictions, and the text of the examples, such as their identifiers; of ragged examples also which elements are
    real. In a run of several processes, only the primary has the text. All
    rows are kept in memory, unless they are written to `out`; then the result is empty.

    Args:
        run: the run directory.
        data: a source, or a config section such as {"target": "package.module.Name", "split": "test"}. None: the data
            of an evaluation of the run.
        evaluation: name of that evaluation; needed if the run has several.
        step: step of the checkpoint, "latest", or "best". None, like "best": the best checkpoint if the run selects
            one, else the newest.
        task: the Task, if the run was started with a Task object.
        batch_size: rows per batch; None: that of the evaluation, or `train.global_batch_size`.
        overrides: changes of the run's config, each "mesh.data=2" or "data.limit=100".
        out: file to write, `.npz` or `.parquet`. It appears once it is complete. `OUT.lineage.json` next to it says
            from which checkpoint and data it is.
        overwrite: replace an existing file `out`.
        figures: number of examples, the first ones, whose predictions `Task.figure` draws as PNG files into the folder
            `<out without suffix>_figures`.
        fields: entries of the examples, such as "label", that become columns, such as `batch/label`.
        format: name of the format of a public benchmark (a module of `engine/submissions/`, such as "nuscenes") in
            which `out` is written, instead of a table of columns.
        compute: computes the batches elsewhere, such as `engine.ray.inference.RayPredictions`. None: in this process.
        on_progress: called with the number of finished examples and of all examples.
        on_message: called with sentences for the user.

    Raises:
        CheckpointError: there is no such checkpoint.
        TaskError: the Task has no valid `predict`, or an entry does not exist.
        ConfigError, DataError: the data cannot be chosen or read, or the file cannot be written.
    """
    path = None if out is None else local_path(out)
    if figures < 0:
        raise ConfigError(f"figures = {figures}: allowed is a whole number from 0.")
    if figures and path is None:
        raise ConfigError(f"figures = {figures}: they are written next to the file `out`. Set it, too.")
    if group.is_primary():
        _check_output(path, overwrite, format, fields)
    request = Request(run, data, evaluation, step, task, batch_size, overrides, fields)
    opened = SavedPredictor(request, figures, on_message)
    predictor, total = opened.predictor, opened.predictor.examples
    compute = in_this_process if compute is None else compute
    with opened.errors_reported(), contextlib.ExitStack() as stack:
        batches = stack.enter_context(compute(opened, lambda done: on_progress(done, total)))
        if path is None:
            parts = list(batches)
            return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
        folder, drawn = path.with_name(f"{path.stem}_figures"), set[str]()
        lineage = PredictionLineage(path, opened) if group.is_primary() else None
        output = _open_output(path, overwrite, format, predictor) if group.is_primary() else contextlib.nullcontext()
        with output as file:
            for columns in batches:
                drawn |= _draw(columns, predictor, opened.task, figures - len(drawn), folder)
                if file is not None and lineage is not None:
                    file.add(columns)
                    lineage.add(columns)
            if lineage is not None:
                remove_record(path)  # the file that it belongs to is replaced now
        if lineage is not None:
            lineage.write()
            with write_errors_reported(folder):
                remove_figures(folder, FIGURE, drawn)  # those of earlier predictions
            if drawn:
                on_message(f"figures: {folder}")
    return {}


@contextlib.contextmanager
def in_this_process(opened: SavedPredictor, on_examples: Callable[[int], None]) -> Iterator[Iterable[Columns]]:
    """Computes predictions here, with the other processes of the run, if any."""
    yield opened.run(on_examples)


def _check_output(path: Path | None, overwrite: bool, format: str | None, fields: Sequence[str]) -> None:
    """Raises ConfigError if predictions cannot be written to a file: to a table, or in the format of a benchmark."""
    if format is not None:
        importlib.import_module(SUBMISSIONS).check_submission_file(path, overwrite, format, fields)
    elif path is not None:
        check_prediction_file(path, overwrite)


def _open_output(path: Path, overwrite: bool, format: str | None, predictor: Predictor) -> PredictionFile:
    """Returns the file to write after `_check_output`."""
    if format is None:
        return open_prediction_file(path, overwrite)
    return importlib.import_module(SUBMISSIONS).SubmissionFile(path, format, predictor)


def _draw(columns: Columns, predictor: Predictor, task: Task, count: int, folder: Path) -> set[str]:
    """Draws at most `count` rows of a batch into a folder, in the primary; returns the names of the files.

    Every process calls it, and waits for each figure by itself. If one cannot be drawn, every process raises the error.
    """

    def draw(row: int, index: int) -> str:
        prediction = {name: columns[name][row] for name in predictor.names}
        image = draw_example(task, predictor.source, index, prediction, f"example-{index}.png")
        with write_errors_reported(folder):
            write_figures(folder, {"figure": image})
        return image.file

    chosen = enumerate(columns[EXAMPLE][:count].tolist())
    return {group.run_on_primary(functools.partial(draw, row, index), "a figure") for row, index in chosen}


@contextlib.contextmanager
def write_errors_reported(folder: Path) -> Iterator[None]:
    """Raises an OSError of the block as a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}). Free space there.") from error


def export(run: str | Path, file: str | Path, *, step: int | str | None = None, task: Task | None = None) -> list[str]:
    """Writes the weights of a checkpoint as safetensors; the averaged weights if the run has them. Needs no data.

    `FILE.lineage.json` next to the file says from which checkpoint they are.

    Returns:
        The names of the arrays.
    """
    saved = SavedRun(run)
    task = saved.build_task() if task is None else task
    _, program = open_program(task, saved.config, (), (), log)
    with peer_failure.lost_peers_reported():
        chosen = group.run_on_primary(lambda: saved.choose(step), "the choice of the checkpoint")
        weights = saved.weights(chosen, program).to_tree()
        names = export_safetensors(weights, file)
        if group.is_primary():
            record_export(Path(file), saved, chosen, averaged=bool(weights.get("ema")))
        return names


def checkpoints(run: str | Path) -> list[StepInfo]:
    """Returns step, size, time and results of each checkpoint of a run, oldest first; does not initialize devices.

    In a bucket that is read without a mount, a step with a damaged manifest has an `error`.
    """
    return SavedRun(run).checkpoints()
