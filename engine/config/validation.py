"""From a draft to a Config: the checks that need more than one field, the parsing of durations, and freezing.

Single fields are checked at their assignment (`draft.py`). The arguments of targets are checked by `target.py`, which
imports the target and so jax.
"""

import copyreg
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from engine.config.draft import Draft, draft_of, thaw
from engine.config.duration import Duration
from engine.config.errors import FieldError, did_you_mean
from engine.config.fields import check_value, join, slots
from engine.config.hardware import AXES
from engine.config.override import locate
from engine.config.schema import Config, Target


def validate(config: ConfigDict | Mapping[str, object] | Config, origin: str = "") -> Config:
    """Returns the frozen Config: dataclasses, read-only mappings, tuples.

    Args:
        config: a draft, or dicts in the shape of the schema; what they lack has its default.
        origin: where it was written, for the errors.

    Raises:
        FieldError: an unknown field, a wrong type or value, a missing target, or fields that do not fit together.
    """
    try:
        draft = config if isinstance(config, Draft) else draft_of(config)
        frozen = _freeze(Config, draft)
        _check_targets(frozen)
        _check_numbers(frozen)
        _check_best(frozen)
        _check_init(frozen)
        _check_tiny(frozen)
    except FieldError as error:
        raise error.at(origin) from None
    return frozen


def _freeze(section: type, draft: Any) -> Any:
    """Makes a section's dataclass from its draft."""
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
    return section(**fields)


def _frozen(value: object) -> object:
    if isinstance(value, Mapping | ConfigDict):
        return read_only({key: _frozen(item) for key, item in value.items()})
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def read_only[K, V](values: dict[K, V]) -> MappingProxyType[K, V]:
    """Returns a read-only view of a dict that nobody else holds."""
    return MappingProxyType(values)


# A Config travels to other processes (Ray, readers), and Python itself cannot pickle a MappingProxyType.
copyreg.pickle(MappingProxyType, lambda mapping: (read_only, (dict(mapping),)))


def _check_targets(config: Config) -> None:
    """Each section that names a class or function must name one; each group must match something."""
    named: dict[str, Target] = {"task": config.task, "data": config.data, "optimizer": config.optimizer}
    named |= {f"evaluations.{name}.data": evaluation.data for name, evaluation in config.evaluations.items()}
    named |= {f"hooks.{name}": hook for name, hook in config.hooks.items()}
    for path, section in named.items():
        if not section.target:
            near = ""
            if len(parts := path.split(".")) > 1:  # a new entry may be a mistyped old one
                others = [join(parts[0], name) for name in getattr(config, parts[0]) if name != parts[1]]
                near = did_you_mean(join(parts[0], parts[1]), others)
            advice = f"Name a class or function by dotted path, such as 'package.module.Name'.{near}"
            raise FieldError(f"{path}.target", "is empty", advice)
    for name, group in config.optimizer.groups.items():
        if not group.match:
            path = f"optimizer.groups.{name}.match"
            raise FieldError(path, "is empty", "Give a regular expression of parameter paths, such as '^head/'.")


def _check_numbers(config: Config) -> None:
    train, mesh = config.train, config.mesh
    if train.global_batch_size % train.accumulate:
        divisors = [n for n in range(1, train.global_batch_size + 1) if train.global_batch_size % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - train.accumulate))[:3])
        raise FieldError(
            "train.accumulate",
            f"found {train.accumulate}, which does not divide train.global_batch_size = {train.global_batch_size}",
            f"Near divisors: {', '.join(map(str, near))}.",
        )
    for path, section in (("mesh", mesh), ("mesh.dcn", mesh.dcn)):
        free = [f"{path}.{name}" for name in AXES if getattr(section, name) == -1]
        if len(free) > 1:
            raise FieldError(free[-1], f"found -1, and so is {free[0]}", "One axis may take what is left.")
    for name, axes in config.sharding.rules.items():
        if not name.isidentifier():
            raise FieldError(f"sharding.rules.{name}", "is no name of an axis", "Use letters, digits and '_'.")
        texts = axes if isinstance(axes, tuple) else (axes,)
        if axes is not None and not all(isinstance(axis, str) for axis in texts):
            advice = "Allowed: a mesh axis, a tuple of them, or None."
            raise FieldError(f"sharding.rules.{name}", f"found {thaw(axes)!r}", advice)


def _check_best(config: Config) -> None:
    best = config.checkpoint.best
    if best is None:
        return
    evaluation = best.partition("/")[0]
    if evaluation not in config.evaluations:
        names = ", ".join(config.evaluations) or "none"
        near = did_you_mean(evaluation, config.evaluations)
        raise FieldError(
            "checkpoint.best", f"found {best!r}, there is no evaluation {evaluation!r}", f"Evaluations: {names}.{near}"
        )


def _check_init(config: Config) -> None:
    for prefix, there in config.init.paths.items():
        where = f"init.paths.{prefix}"
        if there is not None and not isinstance(there, str):
            advice = "Name the beginning of a path in the checkpoint, '' for its top, or None to begin at random."
            raise FieldError(where, f"found {there!r}", advice)
        if not config.init.checkpoint:
            raise FieldError(where, "is set, and no init.checkpoint is", "Name the run that it takes weights from.")


def _check_tiny(config: Config) -> None:
    for path, value in config.tiny.items():
        where = join("tiny", path)
        slot = locate(where)
        if slot.is_container:
            raise FieldError(where, "names a section", "Name one field: {'train.global_batch_size': 8}.")
        check_value(slot, value, where)
