"""A source that draws those examples more often on which an earlier run was bad (`data.weights_from`).

The rule: the ratio of a score to the mean score, to a power, and not outside of 1 / bound and bound. The scores are
those that an evaluation has kept for each example (`engine/metrics/example_file.py`).
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from engine.base import json_text
from engine.base.errors import ConfigError, did_you_mean
from engine.checkpoint.policy import best_of, read_results
from engine.config.text import field_texts, from_text
from engine.data import dataset_summary
from engine.data.sampling.tags import TagsArgument
from engine.data.sampling.weighted import Weighted
from engine.data.source import SEPARATOR, Source
from engine.data.source_adapter import indexed
from engine.experiments.resampling import results
from engine.metrics.direction import higher_is_better
from engine.metrics.example_file import FOLDER, content_of, path_of, read_parquet
from engine.metrics.metric import Metric
from engine.metrics.results import named_results, scalars
from engine.metrics.slices import Examples
from engine.run.directory import RunDirectory
from engine.storage.mounts import local_text

EXAMPLE = "example"
"""Value of `by` for a weight of each example."""
LARGEST_BOUND = 1e6


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights come from.

    Attributes:
        run: the run directory.
        evaluation: name of the evaluation.
        step: step of the checkpoint that was evaluated.
        id: hash of the content of the file, as records of lineage have it.
    """

    run: Path
    evaluation: str
    step: int
    id: str

    @property
    def file(self) -> Path:
        """The file of the metrics of each example."""
        return self.run / FOLDER / self.evaluation / f"{self.step}.parquet"


class WeightedByRun(Weighted):
    """A source that draws those examples more often on which an earlier run was bad.

    The weight of an example is `(score / mean score) ** power`, and at least `1 / bound` and at most `bound`; for a
    score of which a larger value is better, `(mean score / score) ** power`. An example without a score has the weight
    1. How often an example is drawn follows from the weights as in `Weighted`.

    - By example: its own score decides. The evaluation must have read the same examples in the same order.
    - By slice or tag: the score over all examples of a slice decides, and the mean is that over all examples. So the
      evaluation may have read other examples, such as held-out ones.

    The weights are part of the fingerprint of the data: a resume refuses a file with other weights.
    """

    def __init__(
        self,
        source: Source,
        run: str,
        *,
        by: str = EXAMPLE,
        tags: TagsArgument = None,
        score: str = "loss",
        power: float = 1.0,
        bound: float = 4.0,
    ):
        """Reads the file of an evaluation with `per_example`, and computes the weights.

        Args:
            source: as for `Weighted`.
            run: a run directory, its folder per_example/EVALUATION, or a file per_example/EVALUATION/STEP.parquet. Of a
                run, its only evaluation with such files counts; by example, the only one that has read these examples.
                Without a step, the file of the best checkpoint counts if the run selects one and has it, and else the
                newest.
            by: "example"; or a name with slices NAME/VALUE, such as "digit" for digit/0 to digit/9; or a tag that the
                evaluation has kept, such as "city".
            tags: by slice: the VALUE of each example, as for `Weighted`. None: the entry NAME of the examples.
            score: number of a metric, such as "loss" or "ap/car". By example, it is that of this example alone.
            power: 0 draws all examples equally often; larger numbers draw bad ones more often.
            bound: the largest weight, and 1 / the smallest one; at least 1.

        Raises:
            ConfigError: an argument is invalid, or the run has no such evaluation of these examples.
            RunError: the file cannot be read.
        """
        if not (np.isfinite(power) and power >= 0) or not 1 <= bound <= LARGEST_BOUND:
            allowed = f"power is a number from 0, and bound one from 1 to {LARGEST_BOUND:g}"
            raise ConfigError(f"WeightedByRun: found power = {power}, bound = {bound}. Allowed: {allowed}.")
        given = indexed(source, "WeightedByRun: source")
        self.origin = origin = _find(run, given.fingerprint() if by == EXAMPLE else None)
        found = read_parquet(origin.file)
        rule = _Rule(found, score, power, bound, f"{origin.file}")
        if by == EXAMPLE:
            super().__init__(source, rule.of_examples(len(given)))
        else:
            super().__init__(source, rule.of_slices(by), tags=by if tags is None else tags)
        self._rule = f"by {by}, score {score}, power {power:g}, bound {bound:g}"

    def fingerprint(self) -> str:
        """Returns the fingerprint of the source, what the weights follow from, and a hash of them."""
        name = f"{self.origin.evaluation} of step {self.origin.step}"
        return f"{super().fingerprint()}, which follow from {name}, {self.origin.id}, {self._rule}"


def _find(run: str, content: str | None) -> Origin:
    """Returns the file of an evaluation of a run.

    Args:
        run: as for `WeightedByRun`.
        content: fingerprint of the examples that it must have read; None: any.
    """
    import xxhash

    path = Path(local_text(run))
    evaluation, only = None, None
    if path.suffix == ".parquet" and path.stem.isdecimal() and path.parent.parent.name == FOLDER:
        evaluation, only, path = path.parent.name, int(path.stem), path.parents[2]
    elif path.parent.name == FOLDER:
        evaluation, path = path.name, path.parents[1]
    if not RunDirectory(path).exists():
        raise ConfigError(f"data.weights_from: {run} is no run directory, and no folder or file of its {FOLDER}.")
    steps = {below.name: _steps(below) for below in sorted((path / FOLDER).glob("*")) if _steps(below)}
    flags = "convoy evaluate {} --evaluations.{}.per_example=True"
    if not steps:
        raise ConfigError(
            f"data.weights_from: {path} has no metrics of single examples. Write them: "
            f"{flags.format(path, evaluation or 'NAME')}"
        )
    if evaluation is not None and evaluation not in steps:
        near = did_you_mean(evaluation, steps)
        raise ConfigError(
            f"data.weights_from: {path} has no metrics of single examples of {evaluation!r}, only of "
            f"{', '.join(steps)}.{near} Write them: {flags.format(path, evaluation)}"
        )
    names = [evaluation] if evaluation is not None else list(steps)
    if content is not None:
        files = {name: path / path_of(name, _chosen(path, steps[name]) if only is None else only) for name in names}
        reads = {name: (content_of(x) if x.exists() else "") or _content(path, name) for name, x in files.items()}
        names = [name for name in names if _same_examples(reads[name], content)]
        if not names:
            raise ConfigError(
                f"data.weights_from: no evaluation of {path} is known to have read the examples of `data` (found: "
                f"{', '.join(reads)}). Evaluate these with per_example=True, by the same target and arguments as in "
                f"`data` of that run, or weight by slices: engine.WeightedByRun(by=NAME)."
            )
    if len(names) > 1:
        raise ConfigError(
            f"data.weights_from: {path} has the metrics of examples of {', '.join(names)}. Name one: "
            f"{path}/{FOLDER}/{names[0]}"
        )
    [name] = names
    if only is not None and only not in steps[name]:
        raise ConfigError(f"data.weights_from: {run} does not exist. Steps: {', '.join(map(str, steps[name]))}.")
    step = only if only is not None else _chosen(path, steps[name])
    origin = Origin(path, name, step, "")
    return dataclasses.replace(origin, id=f"xxh3_128:{xxhash.xxh3_128_hexdigest(origin.file.read_bytes())}")


def _steps(folder: Path) -> list[int]:
    return sorted(int(file.stem) for file in folder.glob("*.parquet") if file.stem.isdecimal())


def _chosen(run: Path, steps: list[int]) -> int:
    checkpoint = from_text(RunDirectory(run).read_config_text(), str(run)).checkpoint
    best = best_of(read_results(run / "checkpoints"), checkpoint.best, checkpoint.best_mode)
    return best[0] if best is not None and best[0] in steps else steps[-1]


def _content(run: Path, evaluation: str) -> str:
    """Returns the fingerprint of the examples that an evaluation of a run has read; "" if it is not known.

    It is stored for an evaluation of the config. `convoy evaluate` stores the settings of another one, which may be
    those of the training data.
    """
    directory = RunDirectory(run)
    stored = dataset_summary.read(directory.data)
    if (found := stored.get(f"evaluations.{evaluation}.data")) is not None:
        return found["content"]
    trained = _settings(field_texts(from_text(directory.read_config_text(), str(directory.config))), "data.")
    try:
        lines = json_text.read_lines(directory.evaluations, {"evaluation": str, "section?": {str: str}, str: object})
    except OSError:
        return ""
    for line in reversed(lines.values):
        if line["evaluation"] == evaluation:
            same = _settings(line.get("section", {}), "data.") == trained
            return stored.get("data", {}).get("content", "") if same else ""
    return ""


def _settings(texts: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Returns the settings of a section that decide which examples it has: its target and arguments."""
    read = ("shuffle", "shuffle_window", "limit", "threads", "workers", "prefetch", "on_error", "on_change")
    found = {name.removeprefix(prefix): text for name, text in texts.items() if name.startswith(prefix)}
    return {name: text for name, text in found.items() if name not in (*read, "weights_from")}


def _same_examples(stored: str, content: str) -> bool:
    """Returns whether two fingerprints begin with that of the same examples, with or without a limit and weights."""
    parts = [[re.sub(r"\[:\d+\]$", "", part) for part in text.split(SEPARATOR)] for text in (stored, content)]
    count = min(map(len, parts))
    return bool(stored) and parts[0][:count] == parts[1][:count]


@dataclasses.dataclass(frozen=True)
class _Rule:
    """Computes weights from the metrics of examples."""

    found: Examples
    score: str
    power: float
    bound: float
    file: str

    @property
    def metric_name(self) -> str:
        """The metric that gives the score. Raises ConfigError if there is none."""
        names = [name for name in self.found.metrics if f"{self.score}/".startswith(f"{name}/")]
        if not names:
            near = did_you_mean(self.score, self.found.metrics)
            allowed = f"Metrics there: {', '.join(self.found.metrics)}"
            raise ConfigError(f"{self.file}: there is no score {self.score!r}.{near} {allowed}.")
        return max(names, key=len)

    @property
    def metric(self) -> Metric:
        return self.found.metrics[self.metric_name]

    def of_examples(self, count: int) -> np.ndarray:
        """Returns the weights of the first `count` examples of the dataset, float64 `[count]`."""
        last = int(self.found.indices[-1]) + 1 if len(self.found.indices) else 0
        if last < count:
            raise ConfigError(
                f"{self.file}: it has the metrics of the first {last} examples, but `data` has {count}. Evaluate all "
                "of them, or set data.limit."
            )
        scores = np.full(max(last, count), np.nan)
        scores[self.found.indices] = self._scores()
        known = scores[:count]
        return self._weights(known, float(np.mean(known[np.isfinite(known)])))

    def of_slices(self, name: str) -> dict[str, float]:
        """Returns the weight of each VALUE of the slices NAME/VALUE, or else of the tag NAME."""
        masks = {
            each.removeprefix(f"{name}/"): mask
            for each, mask in self.found.slices.items()
            if each.startswith(f"{name}/") and mask.any()
        }
        if not masks and (values := self.found.tags.get(name)) is not None:
            masks = {str(value): values == value for value in np.unique(values).tolist()}
        if not masks:
            groups = sorted({*(each.partition("/")[0] for each in self.found.slices if "/" in each), *self.found.tags})
            raise ConfigError(
                f"{self.file}: there is no slice {name}/VALUE and no tag {name}.{did_you_mean(name, groups)} Names "
                f"there: {', '.join(groups) or 'none'}. Add evaluations.NAME.slices or tags."
            )
        whole = self._over(np.ones(len(self.found.indices), bool))
        weights = self._weights(np.array([self._over(mask) for mask in masks.values()]), whole)
        return dict(zip(masks, weights.tolist(), strict=True))

    def _over(self, mask: np.ndarray) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return results(self.metric_name, self.metric, mask).get(self.score, float("nan"))

    def _scores(self) -> np.ndarray:
        """Returns the score of each example alone, NaN for none."""
        name, metric = self.metric_name, cast(Any, self.metric)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            each = metric.compute_each(self.score[len(name) + 1 :])
            return np.array([scalars(named_results(name, one, name)).get(self.score, np.nan) for one in each])

    def _weights(self, scores: np.ndarray, mean: float) -> np.ndarray:
        """Returns the weights of scores, 1 for NaN. Raises ConfigError for scores without a ratio."""
        known = scores[np.isfinite(scores)]
        if not len(known) or known.min() < 0 or not 0 < mean < np.inf:
            found = f"from {known.min():g} to {known.max():g}" if len(known) else "none"
            raise ConfigError(
                f"{self.file}: the scores {self.score!r} are {found}, and their mean is {mean:g}. A ratio to the mean "
                "needs scores of at least 0, and a mean above 0 that is finite. Choose another score."
            )
        better = higher_is_better(self.score, self.metric)
        with np.errstate(divide="ignore"):
            ratio = mean / scores if better else scores / mean
        weights = np.clip(np.float_power(ratio, self.power), 1 / self.bound, self.bound)
        return np.where(np.isnan(scores), 1.0, weights)
