"""`adapted`, which wraps the Task of a config so that its model has adapters and only these are trained."""

import copy
import re
from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from engine.adapters import modules
from engine.adapters.quantized import KINDS
from engine.adapters.settings import Adapter
from engine.base.errors import ConfigError
from engine.metrics.values import describe_value
from engine.training.task import Task

NAME = "lora"
"""Name of the adapter of a config with only one."""


def adapted(
    task: Task,
    train: str = "",
    base: Literal["float32", "bfloat16", "int8", "nf4"] | None = None,
    adapters: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Task:
    """Returns a Task like `task`, whose model has adapters (Hu et al. 2021, arXiv:2106.09685).

    All methods are those of `task`. The parameters of its model keep their paths and are frozen, unless
    `optimizer.trainable` says otherwise. The matrices of a kernel at PATH are PATH_lora_a and PATH_lora_b. They have
    no effect at first, and stay as they are if `init.checkpoint` lacks them.

    Args:
        task: a Task, in a config a section with a target.
        train: regular expression of parameters of the model that are trained, too, such as "^head/".
        base: how parameters that are not trained are stored; None for the dtype of the model. With "int8" or "nf4",
            kernels without adapters and other parameters are stored in bfloat16.
        adapters: instead of `settings`, those of several adapters: name -> dict. Where several match a kernel, their
            products are added.
        **settings: match, rank, alpha, dropout, rslora, dora: as for `Adapter`.

    Raises:
        ConfigError: a setting has a wrong value.
    """
    if not isinstance(task, Task):
        raise ConfigError(
            f"task.task: found {describe_value(task)}. Give the Task as a section: task=dict(target='package.Name')."
        )
    if adapters is not None and settings:
        raise ConfigError(f"task: {next(iter(settings))} and adapters are both set. Give each adapter its settings.")
    found = {NAME: Adapter.of(settings, "task")} if adapters is None else _several(adapters)
    _check_expression(train)
    if base not in (None, "float32", "bfloat16", *KINDS):
        raise ConfigError(f"task.base = {base!r}. Allowed: float32, bfloat16, int8, nf4, or None: as in the model.")
    kind = type(task)

    def build(self: Any, rngs: nnx.Rngs) -> nnx.Module:
        model = kind.build(self, rngs)
        modules.add(model, found, train, rngs, base)
        return model

    members = {"build": build, "__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__}
    result = copy.copy(task)
    object.__setattr__(result, "__class__", type(kind.__name__, (kind,), members))
    return result


def _several(adapters: Mapping[str, Any]) -> dict[str, Adapter]:
    """Returns the settings of several adapters by name."""
    if not adapters:
        raise ConfigError("task.adapters: is empty. Name an adapter, or remove it and set task.match.")
    for name, settings in adapters.items():
        if not str(name).isidentifier() or not isinstance(settings, Mapping):
            raise ConfigError(
                f"task.adapters: found {name!r}: {describe_value(settings)}. Give a name of letters and digits, and a "
                "dict of settings."
            )
    return {name: Adapter.of(settings, f"task.adapters.{name}") for name, settings in adapters.items()}


def _check_expression(train: str) -> None:
    try:
        re.compile(train)
    except re.error as error:
        raise ConfigError(f"task.train = {train!r} is no regular expression: {error}.") from None
