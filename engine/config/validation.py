"""Turns a draft into a frozen Config: checks combinations of fields and parses durations.

`draft.py` checks single fields when they are assigned. `target.py` checks the arguments of targets, which requires
importing the target and therefore jax.
"""

import copyreg
import math
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from engine.base.duration import Duration
from engine.base.errors import FieldError, did_you_mean
from engine.config import schema, zoo
from engine.config.draft import Draft, draft_of, unfreeze
from engine.config.fields import check_value, join, slots
from engine.config.hardware import AXES
from engine.config.override import locate
from engine.config.schedules import check_schedules, sections
from engine.config.schema import Config, Group, InitSource, Target
from engine.config.setting import AUTO, MAX_NUMBER, regular_expression
from engine.config.target import user_targets


def validate(config: ConfigDict | Mapping[str, object] | Config, origin: str = "") -> Config:
    """Returns the frozen Config: dataclasses, read-only mappings and tuples.

    Args:
        config: a draft, or dicts in the shape of the schema; missing fields get their defaults.
        origin: the file that it comes from, for the errors.

    Raises:
        FieldError: an unknown field, a wrong type or value, a missing target, or a conflict between fields.
    """
    try:
        draft = config if isinstance(config, Draft) else draft_of(config)
        frozen = _freeze(Config, draft)
        _check_targets({**user_targets(frozen), "optimizer": frozen.optimizer})
        _check_groups(frozen.optimizer.groups)
        _check_sizes(frozen.train)
        _check_learning_rate(frozen.optimizer)
        _check_axes(frozen.mesh, frozen.sharding)
        check_schedules(frozen.optimizer)
        diagnosis = [] if frozen.log.layers is None else [schema.LAYERS]
        _check_metrics(frozen.stop, frozen.checkpoint.best, [*frozen.evaluations, *frozen.hooks, *diagnosis])
        _check_periods(frozen.evaluations, frozen.hooks)
        _check_weights(frozen.evaluations)
        _check_diagnosis(diagnosis, frozen.evaluations, frozen.hooks)
        _check_init(frozen.init)
        _check_tiny(frozen.tiny)
    except FieldError as error:
        raise error.at(origin) from None
    return frozen


def _freeze(section: type, draft: Any) -> Any:
    """Builds the dataclass of a section from its draft."""
    fields: dict[str, Any] = {}
    for name, slot in slots(section).items():
        value = draft[name]
        if slot.section is not None:
            fields[name] = _freeze(slot.section, value)
        elif slot.entries is not None:
            fields[name] = read_only({key: _freeze(slot.entries, entry) for key, entry in value.items()})
        elif Duration in slot.types and value is not None:
            fields[name] = Duration.parse(value)
        else:
            fields[name] = _frozen(value)
    if issubclass(section, Target):
        fields["arguments"] = read_only({key: _frozen(value) for key, value in draft.items() if key not in fields})
        fields["target"] = zoo.canonical(fields["target"])
    return section(**fields)


def _frozen(value: object) -> object:
    if isinstance(value, Mapping | ConfigDict):
        values = {key: _frozen(item) for key, item in value.items()}
        if isinstance(target := values.get("target"), str):
            values["target"] = zoo.canonical(target)
        return read_only(values)
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def read_only[K, V](values: dict[K, V]) -> MappingProxyType[K, V]:
    """Returns a read-only view of a dict; the caller must not keep another reference to the dict."""
    return MappingProxyType(values)


# A Config is sent to other processes (Ray, reader workers), but Python cannot pickle a MappingProxyType.
copyreg.pickle(MappingProxyType, lambda mapping: (read_only, (dict(mapping),)))


def _check_targets(sections: Mapping[str, Target]) -> None:
    """Checks that every target is set."""
    for path, section in sections.items():
        if not section.target:
            near = ""
            if "." in path:  # the new entry may be a misspelt existing entry
                kind, name, *_ = path.split(".")
                entries = [".".join(other.split(".")[:2]) for other in sections if other.startswith(f"{kind}.")]
                near = did_you_mean(f"{kind}.{name}", [entry for entry in entries if entry != f"{kind}.{name}"])
            advice = f"Name a class or function by dotted path, such as 'package.module.Name'.{near}"
            raise FieldError(f"{path}.target", "is empty", advice)


def _check_groups(groups: Mapping[str, Group]) -> None:
    """Checks that every parameter group has a pattern or roles."""
    for name, group in groups.items():
        if not (group.match or group.roles):
            path = f"optimizer.groups.{name}.match"
            raise FieldError(
                path, "is empty", "Give a regular expression of parameter paths, such as '^head/', or roles."
            )


def _divisors(number: int) -> set[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return {*small, *(number // n for n in small)}


def _check_sizes(train: schema.Train) -> None:
    examples = {"global_batch_size": "a number", "accumulate": "a number, such as 1", "remat": "a value, such as full"}
    automatic = [name for name in examples if getattr(train, name) == AUTO]
    if len(automatic) > 1:
        first, second, *_ = automatic
        advice = f"Only one of them can be auto. Give train.{second} {examples[second]}."
        raise FieldError(f"train.{second}", f"found auto, but train.{first} is auto too", advice)
    if AUTO not in (train.global_batch_size, train.accumulate) and train.global_batch_size % train.accumulate:
        near = sorted(sorted(_divisors(train.global_batch_size), key=lambda n: abs(n - train.accumulate))[:3])
        raise FieldError(
            "train.accumulate",
            f"found {train.accumulate}, which does not divide train.global_batch_size = {train.global_batch_size}",
            f"Near divisors: {', '.join(map(str, near))}.",
        )


def _check_axes(mesh: schema.MeshSpec, sharding: schema.Sharding) -> None:
    for path, section in (("mesh", mesh), ("mesh.dcn", mesh.dcn)):
        free = [f"{path}.{name}" for name in AXES if getattr(section, name) == -1]
        if len(free) > 1:
            advice = "Only one axis can take all remaining devices."
            raise FieldError(free[-1], f"found -1, but {free[0]} is -1 too", advice)
    for name, axes in sharding.rules.items():
        if not name.isidentifier():
            raise FieldError(f"sharding.rules.{name}", "is not a valid name of an axis", "Use letters, digits and '_'.")
        texts = axes if isinstance(axes, tuple) else (axes,)
        if axes is not None and not all(isinstance(axis, str) for axis in texts):
            advice = "Allowed: a mesh axis, a tuple of mesh axes, or None."
            raise FieldError(f"sharding.rules.{name}", f"found {unfreeze(axes)!r}", advice)


def _check_learning_rate(optimizer: schema.Optimizer) -> None:
    """Checks the numbers that are multiplied: a product that float32 cannot hold would be infinite or NaN."""
    factors = {"optimizer.final_scale": optimizer.final_scale}
    factors |= {f"optimizer.groups.{n}.learning_rate_scale": g.learning_rate_scale for n, g in optimizer.groups.items()}
    for path, factor in factors.items():
        group = optimizer.of_group(path.split(".")[2]) if "groups" in path else optimizer
        if factor * group.learning_rate * max(1.0, group.final_scale) > MAX_NUMBER:
            problem = f"found {factor}, which is too large with optimizer.learning_rate = {group.learning_rate}"
            raise FieldError(path, problem, f"Allowed: a learning rate of at most {MAX_NUMBER}.")
    for where, section in sections(optimizer).items():
        for name, value in section.arguments.items():
            if isinstance(value, float) and abs(value) > MAX_NUMBER:
                raise FieldError(f"{where}.{name}", f"found {value}", f"Allowed: at most {MAX_NUMBER}.")


def _check_metrics(stop: schema.Stop, best: str | None, groups: Sequence[str]) -> None:
    """Checks that an evaluation or a hook, one of `groups`, exists for each metric that the config names."""
    for field, metric in (("checkpoint.best", best), ("stop.metric", stop.metric)):
        name = "" if metric is None else metric.partition("/")[0]
        if metric is not None and name not in groups:
            problem = f"found {metric!r}, there is no evaluation or hook {name!r}"
            advice = f"Evaluations and hooks: {', '.join(groups) or 'none'}.{did_you_mean(name, groups)}"
            raise FieldError(field, problem, advice)
    conditions = [name for name in ("patience", "target") if getattr(stop, name) is not None]
    if conditions and stop.metric is None:
        advice = "Set stop.metric to evaluation/metric, such as 'heldout/accuracy'."
        raise FieldError(f"stop.{conditions[0]}", "is set, but stop.metric is not", advice)
    if stop.metric is not None and not conditions:
        raise FieldError("stop.metric", "is set, but no condition is", "Set stop.patience, stop.target, or both.")


def _check_periods(evaluations: Mapping[str, schema.Evaluation], hooks: Mapping[str, schema.Hook]) -> None:
    for name, evaluation in evaluations.items():
        if evaluation.every is None and not (evaluation.at_start or evaluation.at_end):
            advice = "Give it a period, or set at_start or at_end."
            raise FieldError(f"evaluations.{name}.every", "found None, so this evaluation never runs", advice)
        if name in hooks:
            advice = "Rename one of them: their metrics would have the same names."
            raise FieldError(f"hooks.{name}", "is also the name of an evaluation", advice)


def _check_weights(evaluations: Mapping[str, schema.Evaluation]) -> None:
    for name, evaluation in evaluations.items():
        if evaluation.data.weights_from is not None:
            advice = "An evaluation reads each example once. Set data.weights_from, that of the training data."
            path = f"evaluations.{name}.data.weights_from"
            raise FieldError(path, f"found {evaluation.data.weights_from!r}", advice)


def _check_diagnosis(diagnosis: Sequence[str], evaluations: Collection[str], hooks: Collection[str]) -> None:
    """Checks that no evaluation and no hook has the name of the diagnosis of `log.layers`, if it is on."""
    for name in diagnosis:
        section = "evaluations" if name in evaluations else "hooks"
        if name in (*evaluations, *hooks):
            advice = f"Rename {section}.{name}, or set log.layers=None: their metrics would have the same names."
            raise FieldError("log.layers", f"its results are called {name!r}, as those of {section}.{name}", advice)


def _check_init(init: schema.Init) -> None:
    _check_source(init, "init")
    for name, source in init.sources.items():
        where = f"init.sources.{name}"
        if not source.paths:
            advice = "Name the arrays that it gives: prefix here -> prefix in the checkpoint."
            raise FieldError(f"{where}.paths", "is empty", advice)
        _check_source(source, where)


def _check_source(section: InitSource, where: str) -> None:
    for name, source in section.paths.items():
        path = f"{where}.paths.{name}"
        if source is not None and not isinstance(source, str):
            advice = (
                "Allowed: a path prefix in the checkpoint, '' for the whole checkpoint, or None for random weights."
            )
            raise FieldError(path, f"found {source!r}", advice)
        if not section.checkpoint:
            advice = f"Set {where}.checkpoint to the run that the weights come from."
            raise FieldError(path, f"is set, but {where}.checkpoint is not", advice)
        if name.startswith("^"):
            regular_expression().check(name, path)
            try:
                re.sub(name, source or "", "")
            except (re.error, IndexError) as error:
                problem = f"found {source!r}, not a replacement for this regular expression"
                raise FieldError(path, problem, f"Python reports: {error}.") from None


def _check_tiny(overrides: schema.Arguments) -> None:
    for path, value in overrides.items():
        where = join("tiny", path)
        slot = locate(where)
        if slot.is_container:
            raise FieldError(where, "names a section", "Name one field: {'train.global_batch_size': 8}.")
        check_value(slot, value, where)
