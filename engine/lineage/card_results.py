"""The results of a checkpoint for its model card: with intervals where the metrics of single examples are stored."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.api.saved_evaluations import read_results as read_evaluations
from engine.base.errors import ConfigError, ConvoyError, did_you_mean
from engine.checkpoint.policy import read_results
from engine.experiments.variants import contents
from engine.lineage.scores import WHOLE, Score, scores
from engine.lineage.things import Thing, thing_at
from engine.metrics.direction import higher_is_better
from engine.metrics.example_file import path_of, read_parquet
from engine.metrics.slices import Examples
from engine.storage.mounts import address_of_copy

_SPECIAL = ("NaN", "Infinity", "-Infinity")  # how JSON files of the engine store them


@dataclass
class Results:
    """The results of a checkpoint.

    Attributes:
        evaluations: names of the evaluations, sorted.
        scores: their numbers, those of whole evaluations and of slices.
        notes: evaluation -> a sentence that says from what its numbers are.
    """

    evaluations: list[str] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def read_results_of(run: Thing, step: int, group: str, on_part: Callable[[int, int], None]) -> Results:
    """Returns the results of a step of a run.

    Args:
        run: the run.
        step: step of the checkpoint.
        group: tag whose values are resampled; "" for single examples.
        on_part: called with the number of finished parts of an evaluation and of all.

    Raises:
        ConfigError: no evaluation has such a tag.
    """
    assert run.run is not None
    config, found = run.run.config, Results()
    stored, problems = _stored(run, step)
    found.evaluations = _evaluations(run, stored)
    tags: set[str] = set()
    for name in found.evaluations:
        path = run.path / path_of(name, step)
        if path.is_file():
            examples = _read(path, run.path, name)
            if isinstance(examples, Examples):
                tags |= {*examples.tags}
                found.scores += scores(name, examples, group, on_part=on_part)
                found.notes[name] = _note(len(examples.indices), step, group if group in examples.tags else "")
                continue
            problems[name] = examples
        slices = _slices(config, name)
        own = [_score(name, full, value, slices) for full, value in stored.items() if full.startswith(f"{name}/")]
        found.scores += own
        problem = problems.get(name, "")
        if not problem and address_of_copy(run.path) is not None:
            problem = "the run is in a bucket, of which only small files are read."
        if own:
            found.notes[name] = f"Step {step}. No intervals: {problem or 'the metrics of its examples were not kept.'}"
        else:
            found.notes[name] = problem or f"No result of step {step} is stored."
    _check_tag(group, tags, step)
    return found


def check_group(run: Path, step: int, group: str) -> None:
    """Raises ConfigError if a card could not be written with this `--group`, for the arguments of `read_results_of`."""
    found = thing_at(run)
    if not group or found is None or found.run is None:
        return
    paths = {name: run / path_of(name, step) for name in _evaluations(found, _stored(found, step)[0])}
    examples = [_read(path, run, name) for name, path in paths.items() if path.is_file()]
    _check_tag(group, {tag for one in examples if isinstance(one, Examples) for tag in one.tags}, step)


def _check_tag(group: str, tags: Collection[str], step: int) -> None:
    if group and group not in tags:
        raise ConfigError(
            f"--group={group}: no stored evaluation of step {step} has such a tag.{did_you_mean(group, tags)} Tags: "
            f"{', '.join(sorted(tags)) or 'none'}."
        )


def _evaluations(run: Thing, stored: Collection[str]) -> list[str]:
    """Returns the names of the evaluations in the config of a run, or with a stored result, sorted."""
    assert run.run is not None
    names = {name.split(".")[1] for name in run.run.config if name.startswith("evaluations.")}
    return sorted(names | {name.partition("/")[0] for name in stored if "/" in name})


def _read(path: Path, run: Path, evaluation: str) -> Examples | str:
    """Returns the metrics of the examples of an evaluation of a run, or a sentence that says why they do not count."""
    try:
        found = read_parquet(path)
    except ConvoyError as error:  # damaged, or pyarrow is missing
        return str(error)
    content = contents(run)[0].get(f"evaluations.{evaluation}.data", "")
    if found.content and content and found.content != content:
        flag = f"--evaluations.{evaluation}.per_example=True"
        return f"the metrics of examples that are stored are of other data; convoy evaluate {run} {flag} replaces them."
    return found


def _note(examples: int, step: int, group: str) -> str:
    by = f"groups of equal {group}" if group else "single examples, taken as independent"
    return f"Step {step}, {examples:,} examples. Intervals: bootstrap over {by}."


def _slices(config: Mapping[str, object], name: str) -> list[str]:
    prefix = f"evaluations.{name}.slices."
    found = {key.removeprefix(prefix).partition(".")[0] for key in config if key.startswith(prefix)}
    return sorted(found, key=len, reverse=True)


def _score(evaluation: str, full: str, value: float, slices: list[str]) -> Score:
    rest = full.partition("/")[2]
    part = next((name for name in slices if rest.startswith(f"{name}/")), WHOLE)
    metric = rest.removeprefix(f"{part}/") if part else rest
    return Score(evaluation, part, metric, value, higher_is_better=higher_is_better(metric))


def _stored(run: Thing, step: int) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the stored results of a step, by full name, and evaluation -> what cannot be read."""
    assert run.run is not None
    found: dict[str, float] = {}
    problems: dict[str, str] = {}
    try:
        found |= read_results(run.path / "checkpoints").get(step, {})
        for line in read_evaluations(run.path / "evaluations.jsonl"):
            if line.step == step and not line.settings:  # others were made with changed settings
                found |= {
                    name: float(x) for name, x in line.metrics.items() if type(x) in (int, float) or x in _SPECIAL
                }
    except ConvoyError as error:
        problems = {name.split(".")[1]: str(error) for name in run.run.config if name.startswith("evaluations.")}
    return dict(sorted(found.items())), problems
