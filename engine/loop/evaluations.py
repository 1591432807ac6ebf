"""The evaluations of a config: builds them, and checks that the metrics which the config names exist."""

from collections.abc import Collection, Mapping, Sequence

from engine.base.errors import ConfigError, did_you_mean
from engine.compile.evaluation_program import EvaluationProgram
from engine.config.schema import Evaluation
from engine.data.source import BaseSource
from engine.loop.evaluation import Evaluator


def build_evaluations(
    sections: Mapping[str, Evaluation],
    sources: Mapping[str, BaseSource],
    program: EvaluationProgram,
    batch_size: int,
) -> list[Evaluator]:
    """Returns the evaluations of a config.

    Args:
        sections: config sections by name.
        sources: one source for each key of `sections`.
        program: program with the Task to evaluate.
        batch_size: rows per batch of evaluations that set none.
    """
    found = []
    for name, section in sections.items():
        found.append(Evaluator(name, section, sources[name], program, section.batch_size or batch_size))
    return found


def check_watched(watched: Mapping[str, str], evaluations: Sequence[Evaluator], hooks: Collection[str]) -> None:
    """Checks the metrics that the config names, as far as they are known before a run.

    Args:
        watched: metric -> the config field that names it.
        evaluations: the evaluations of the run.
        hooks: names of the hooks.

    Raises:
        ConfigError: no evaluation has the metric.
    """
    for metric, field in watched.items():
        if metric.partition("/")[0] in hooks or any(evaluation.gives(metric) for evaluation in evaluations):
            continue
        known = [item for evaluation in evaluations for item in evaluation.scalars.items()]
        names = [name for full, found in known for name in ((full,) if found is None else found)]
        raise ConfigError(
            f"{field} = {metric!r}: no evaluation has this metric.{did_you_mean(metric, names)} "
            f"Metrics here: {', '.join(names)}."
        )
