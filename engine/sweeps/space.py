"""The search space of a sweep: setting -> domain, from flags, from a file, or from Python.

The order of the settings is alphabetical, except that a setting comes after the setting of its condition. So equal
spaces have equal grids and texts, in whatever order they were written.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.base.errors import ConfigError, FieldError, did_you_mean
from engine.config.fields import Slot, describe
from engine.config.override import locate, parse
from engine.config.schema import Plain
from engine.config.text import value_text
from engine.sweeps.domains import FORMS, Choice, Domain, Range, When
from engine.sweeps.grid import combinations, is_active
from engine.sweeps.space_file import load_domains
from engine.sweeps.space_text import parse_domain

if TYPE_CHECKING:
    import optuna


@dataclasses.dataclass(frozen=True)
class Space:
    """Setting -> domain, in an order that does not depend on how the space was written."""

    domains: Mapping[str, Domain]

    @classmethod
    def parse(cls, file: str | None, flags: Mapping[str, str]) -> "Space":
        """Returns the space of a file and of flags; a flag replaces the entry of the file for the same setting.

        Args:
            file: a Python file or a dotted module with `get_space()`.
            flags: setting -> text, such as {"optimizer.learning_rate": "log(1e-4, 1e-2)"}.

        Raises:
            ConfigError: a text, a setting, a condition or the file is invalid.
        """
        domains = dict(load_domains(file)) if file is not None else {}
        origins = {name: f"--space={file}, {name}" for name in domains}
        return cls.of({**domains, **flags}, {**origins, **{name: f"--space.{name}={flags[name]}" for name in flags}})

    @classmethod
    def of(
        cls, domains: Mapping[str, object], origins: Mapping[str, str] | None = None, of_config: bool = True
    ) -> "Space":
        """Returns the space of setting -> domain, or its text.

        Args:
            domains: the domains.
            origins: setting -> where it was written, for errors.
            of_config: whether the names are settings of a config, and not arguments of a function.
        """
        if not domains:
            advice = f'Write --space.optimizer.learning_rate="log(1e-4, 1e-2)", or --space=FILE. Domains: {_FORMS}.'
            raise ConfigError(f"The sweep has no search space. {advice}")
        origins = origins or {name: f"space[{name!r}]" for name in domains}
        read = {name: _domain(domain, origins[name]) for name, domain in domains.items()}
        for name, domain in read.items():
            if of_config:
                _check_setting(name, _inner(domain), origins[name])
            if isinstance(domain, When):
                _check_condition(domain, read, origins[name])
        return cls(_ordered(read, origins))

    def suggest(self, trial: "optuna.trial.BaseTrial") -> dict[str, Plain]:
        """Returns the values that Optuna chooses for the settings that are active in a trial."""
        values: dict[str, Plain] = {}
        for name, domain in self.domains.items():
            if is_active(domain, values):
                values[name] = _inner(domain).suggest(trial, name)
        return values

    def grid(self) -> list[dict[str, Plain]]:
        """Returns every combination of values once. Raises ConfigError for a domain that cannot be enumerated."""
        return combinations(self.domains)

    def params(self, values: Mapping[str, object]) -> dict[str, Any]:
        """Returns Optuna's parameters for values, for `study.enqueue_trial`. Lists, as JSON has them, are tuples."""
        if unknown := [name for name in values if name not in self.domains]:
            near = did_you_mean(unknown[0], self.domains)
            raise ConfigError(f"{unknown[0]}: is no setting of the space.{near} Settings: {', '.join(self.domains)}.")
        return {name: _inner(self.domains[name]).parameter(as_plain(value)) for name, value in values.items()}

    def to_texts(self) -> dict[str, str]:
        """Returns setting -> canonical text. Equal spaces have equal texts; `parse(None, texts)` is this space."""
        return {name: str(domain) for name, domain in self.domains.items()}


_FORMS = ", ".join(FORMS)


def overrides(values: Mapping[str, object]) -> list[str]:
    """Returns `NAME=VALUE` for each value, as `--config.NAME=VALUE` has it; it is parsed to exactly this value."""
    return [f"{name}={value_text(name, as_plain(value))}" for name, value in values.items()]


def as_plain(value: Any) -> Plain:
    """Returns a value that was read from JSON as it was before: lists are tuples."""
    return tuple(as_plain(item) for item in value) if isinstance(value, list | tuple) else value


def _inner(domain: Domain) -> Range | Choice:
    return domain.domain if isinstance(domain, When) else domain


def _domain(found: object, origin: str) -> Domain:
    if isinstance(found, str):
        return parse_domain(found, origin)
    if not isinstance(found, Range | Choice | When):
        raise ConfigError(f"{origin}: found {found!r}. Use a domain of engine.sweeps: {_FORMS}.")
    return found


def _check_setting(name: str, domain: Range | Choice, origin: str) -> None:
    """Raises ConfigError if the config has no such setting or does not allow the values of the domain."""
    try:
        slot = locate(name)
        _check_kind(name, slot, domain)
        for value in domain.options if isinstance(domain, Choice) else (domain.low, domain.high):
            text = value_text(name, value)
            if parse(slot, text, name) != value:
                raise FieldError(name, f"{value!r} cannot be written as a setting of the config", "")
    except FieldError as error:
        raise error.at(origin) from None


def _check_kind(name: str, slot: Slot, domain: Range | Choice) -> None:
    if slot.is_container:
        raise FieldError(name, "is a section, not a setting", "Name one of its fields.")
    if isinstance(domain, Range) and slot.types:
        if not {int, float} & set(slot.types):
            raise FieldError(name, f"takes {describe(slot)}, found a range of numbers", "Use choice(a, b, ...).")
        if float not in slot.types and not domain.whole:
            integers = "log_integer" if domain.log else "integer"
            raise FieldError(name, f"takes {describe(slot)}, found {domain}", f"Use {integers}(low, high).")


def _check_condition(when: When, domains: Mapping[str, Domain], origin: str) -> None:
    """Raises ConfigError if the setting of a condition is not in the space or never has one of its values."""
    if when.setting not in domains:
        near = did_you_mean(when.setting, domains)
        raise ConfigError(
            f"{origin}: the condition names {when.setting}, which is no setting of this space.{near} "
            f"Settings: {', '.join(domains)}."
        )
    other = _inner(domains[when.setting])
    for value in when.values:
        if not other.contains(value):
            raise ConfigError(f"{origin}: {when.setting} never is {value!r}. Allowed: values of {other}.")


def _ordered(domains: Mapping[str, Domain], origins: Mapping[str, str]) -> dict[str, Domain]:
    """Returns the domains in alphabetical order, but each after the setting of its condition."""
    ordered: dict[str, Domain] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise ConfigError(f"{origins[name]}: conditions form a circle: {circle}. Remove one of them.")
        domain = domains[name]
        if isinstance(domain, When):
            add(domain.setting, (*path, name))
        ordered.setdefault(name, domain)

    for name in sorted(domains):
        add(name, ())
    return ordered
