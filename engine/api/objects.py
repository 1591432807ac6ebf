"""Objects that a Python program passes to `engine.train`: a Task, sources and hooks, instead of dotted paths.

The config of the run describes them (`config/instances.py`); the engine uses the objects.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from engine.base.errors import ConfigError
from engine.config.draft import draft_of
from engine.config.schema import Config, Data, Evaluation, Target, Train, field_names
from engine.config.schema import Hook as HookConfig
from engine.config.target import INSTANCE, build
from engine.config.validation import validate
from engine.data.adapt import Readable, build_source, check_readable, for_run, limit_source
from engine.data.source import BaseSource
from engine.loop.hooks import Hook, build_hooks
from engine.metrics.values import describe_value
from engine.training.task import Task

WEIGHTED_BY_RUN = "engine.experiments.example_weights.WeightedByRun"
"""The source of `data.weights_from`, a class of an extension package."""

type Given = object | str | Mapping[str, Any]
"""An object, a dotted path, or a config section with a target."""


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of a run, each None or absent where the config names a target."""

    task: Task | None = None
    data: Readable | None = None
    evaluation_data: Mapping[str, Readable] = dataclasses.field(default_factory=dict)
    hooks: Mapping[str, Hook[Any]] = dataclasses.field(default_factory=dict)

    def build_sources(
        self, data: Data, evaluations: Mapping[str, Evaluation], train: Train
    ) -> tuple[BaseSource, dict[str, BaseSource]]:
        """Returns the training source, weighted, and evaluation name -> source; `data.limit` is applied to each."""
        evaluation_sources = {
            name: _source(self.evaluation_data.get(name), section.data, f"evaluations.{name}.data", finite=True)
            for name, section in evaluations.items()
        }
        source = _source(self.data, data, "data")
        if data.weights_from is not None:
            section = Target(target=WEIGHTED_BY_RUN, arguments={"run": data.weights_from})
            source = build(section, "data.weights_from", source=source)
        return for_run(source, train), evaluation_sources

    def build_hooks(self, sections: Mapping[str, HookConfig]) -> dict[str, Hook[Any]]:
        """Returns the hooks by name, in the order of the config."""
        built = build_hooks({name: section for name, section in sections.items() if name not in self.hooks})
        return {name: self.hooks[name] if name in self.hooks else built[name] for name in sections}

    def check(self, targets: Mapping[str, Target]) -> None:
        """Raises ConfigError if a section of a config, by its path, describes an object that was not passed."""
        passed: dict[str, object] = {"task": self.task, "data": self.data}
        passed |= {f"evaluations.{name}.data": found for name, found in self.evaluation_data.items()}
        passed |= {f"hooks.{name}": found for name, found in self.hooks.items()}
        for path, section in targets.items():
            if section.target == INSTANCE and passed.get(path) is None:
                from engine.config.instances import missing

                missing(str(section.arguments.get("type")))


def _found(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else describe_value(value)


def _source(found: Readable | None, section: Data, where: str, finite: bool = False) -> BaseSource:
    if found is None:
        return build_source(section, where, finite=finite)
    return limit_source(found, section, where, finite)


def with_objects(
    config: Config | ml_collections.ConfigDict | Mapping[str, Any],
    task: Given | None,
    data: Given | None,
    evaluation_data: Mapping[str, Given],
    hooks: Mapping[str, Given],
) -> tuple[Config, Objects]:
    """Returns the config with the sections of what is given, and the objects among them.

    Fields of the engine, such as `data.limit` and `hooks.<name>.every`, stay as the config sets them.

    Raises:
        ConfigError, DataError: a Task, a source or a hook is not one.
    """
    draft = draft_of(config)
    if task is not None:
        draft.task = _section(task, {})
        if not _is_named(task) and not isinstance(task, Task):
            raise ConfigError(f"task: found {_found(task)}. Pass an object of a subclass of engine.Task.")
    for name, given, section in (("task", task, draft.task), ("data", data, draft.data)):
        if given is None and not section.get("target"):
            raise ConfigError(f"{name}: is missing. Pass {name}=..., or name a class or function in {name}.target.")
    if data is not None:
        draft.data = _section(data, _fields(draft.data, Data))
    for name, source in evaluation_data.items():
        before = draft.evaluations.get(name, {})
        draft.evaluations[name] = {**before, "data": _section(source, _fields(before.get("data", {}), Data))}
    for name, hook in hooks.items():
        draft.hooks[name] = _section(hook, _fields(draft.hooks.get(name, {}), HookConfig))
        if not _is_named(hook) and (isinstance(hook, type) or not callable(getattr(hook, "run", None))):
            raise ConfigError(
                f"hooks[{name!r}]: found {_found(hook)}. Pass an object with a method run(trainer, state, step)."
            )
    for where, source in {"data": data, **{f"evaluation_data[{n!r}]": s for n, s in evaluation_data.items()}}.items():
        if source is not None and not _is_named(source):
            check_readable(source, where)
    objects = Objects(
        task=_object(task),
        data=_object(data),
        evaluation_data={name: source for name, source in evaluation_data.items() if not _is_named(source)},  # pyright: ignore[reportArgumentType]
        hooks={name: hook for name, hook in hooks.items() if not _is_named(hook)},  # pyright: ignore[reportArgumentType]
    )
    return validate(draft, "engine.train"), objects


def _is_named(value: Given) -> bool:
    """Whether a value is a dotted path, or a section with a target."""
    return isinstance(value, str) or (isinstance(value, Mapping | ml_collections.ConfigDict) and "target" in value)


def _object(value: Given | None) -> Any:
    return None if value is None or _is_named(value) else value


def _section(value: Given, kept: dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, str):
        return {**kept, "target": value}
    if isinstance(value, Mapping | ml_collections.ConfigDict) and "target" in value:
        return {**kept, **value}
    from engine.config.instances import section_of

    return {**kept, **section_of(value)}


def _fields(section: Mapping[str, Any], kind: type[Target]) -> dict[str, Any]:
    """Returns the fields of the engine in a section, without its target and its arguments."""
    return {name: section[name] for name in field_names(kind) if name != "target" and name in section}
