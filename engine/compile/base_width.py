"""Applies `optimizer.mup`: builds the base model and gives the optimizer and the initial weights their factors."""

import dataclasses

from engine.base.duration import RunSize
from engine.base.errors import ConfigError, FieldError
from engine.config.schema import Config
from engine.config.target import INSTANCE
from engine.parallel.layout import active
from engine.training import mup
from engine.training.model import describe
from engine.training.optimizer import build_optimizer, group_labels
from engine.training.step_spec import StepSpec


def with_base_width(spec: StepSpec, config: Config, size: RunSize) -> StepSpec:
    """Returns the parts of a step with the factors of muP (`training/mup.py`).

    Args:
        spec: parts of the step, with roles from a trace.
        config: the config.
        size: sizes of the run.

    Raises:
        FieldError: the base model cannot be built, or does not fit the model.
    """
    from engine.compile.build import build_task

    if config.task.target == INSTANCE:
        problem = "is set, but the Task is an object, whose arguments the engine cannot change"
        raise FieldError(mup.WHERE, problem, "Name the Task in the config, with its widths as arguments.")
    arguments = {**config.task.arguments, **config.optimizer.mup}
    try:
        task = build_task(dataclasses.replace(config.task, arguments=arguments))
        with active(spec.layout):
            base = describe(task)
    except ConfigError as error:
        raise FieldError(mup.WHERE, f"the base model: {error}", "") from error
    model, roles = spec.model, spec.optimizer.roles
    trained = {path: model.params[path] for path in model.trained}
    found = mup.factors(config.optimizer, model, base, roles, group_labels(config.optimizer, trained, roles))
    optimizer = build_optimizer(config.optimizer, size, trained, model.names, roles, factors=found.rates)
    details = (*optimizer.details, mup.table(model, base, found))
    optimizer = dataclasses.replace(optimizer, details=details)
    return dataclasses.replace(spec, optimizer=optimizer, model=mup.with_inits(model, found))
