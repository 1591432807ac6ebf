"""Batch statistics that do not move (`optimizer.frozen_statistics`), and those that move in a frozen layer."""

import re

from flax import nnx

from engine.base.errors import FieldError
from engine.training.model import Model
from engine.training.step_spec import StepSpec

SHOWN = 3  # layers that a warning names


def frozen_norms(model: Model, expression: str) -> tuple[str, ...]:
    """Returns the paths of the modules whose batch statistics match `optimizer.frozen_statistics`.

    Args:
        model: the model.
        expression: a regular expression, searched in the paths of batch statistics.

    Raises:
        FieldError: it matches nothing, or a module that has no attribute `use_running_average`.
    """
    paths = [path for path in model.model_state if path not in model.own_state]
    found = sorted({path.rpartition("/")[0] for path in paths if re.search(expression, path)})
    if not found:
        problem = f"{expression!r} matches no batch statistics"
        raise FieldError("optimizer.frozen_statistics", problem, f"They are: {', '.join(paths) or 'none'}.")
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model.without_values())}
    for path in found:
        if not hasattr(modules[path], "use_running_average"):
            kind = type(modules[path]).__name__
            problem = f"matches {path}, a {kind}, which has no attribute use_running_average"
            raise FieldError("optimizer.frozen_statistics", problem, "Use an nnx.BatchNorm, or leave it out.")
    return tuple(found)


def moving_warnings(spec: StepSpec) -> tuple[str, ...]:
    """Returns a warning if the loss changes batch statistics of layers whose parameters are frozen.

    A frozen layer then still changes its function, and its statistics are those of the new data.
    """
    model = spec.model
    moving = {path.rpartition("/")[0] for path in spec.changed_state if path not in model.own_state}
    found = sorted(path for path in moving if _is_frozen(model, path))
    if not found:
        return ()
    parts = "|".join(sorted({re.escape(path.partition("/")[0]) for path in found}))
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"the parameters of {', '.join(found[:SHOWN])}{more} are frozen, but the batch statistics move with the data, "
        "so that these layers change. To normalise by the statistics of the checkpoint, set "
        f'optimizer.frozen_statistics="^({parts})/".',
    )


def _is_frozen(model: Model, module: str) -> bool:
    """Whether all parameters of a module are frozen; of one without parameters, those of the module that has it."""
    while True:
        below = [path for path in model.params if path.startswith(f"{module}/") or not module]
        if below or not module:
            return not set(below) & set(model.trained)
        module = module.rpartition("/")[0]
