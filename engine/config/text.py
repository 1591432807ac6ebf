"""A config as text, one `name: value` per line: the output of `convoy config` and the `config.txt` of a run.

`from_text(to_text(config), ...)` returns an equal Config. Values are parsed by `override.py`, as on the command line.
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from engine.base.duration import Duration
from engine.base.errors import ConfigError, FieldError
from engine.config.draft import defaults
from engine.config.fields import join, slots
from engine.config.override import locate, parse, set_text
from engine.config.schema import Config, Target
from engine.config.validation import validate
from engine.config.zoo import current

_HEAD = re.compile(r"# (\d{1,9}) settings\n")


def flatten(config: Config) -> list[tuple[str, object]]:
    """Returns (dotted name, value) of every field in schema order; arguments follow the fields of their section.

    Open dicts are flattened if each key can be part of a dotted name, and dicts inside them if all keys are words.
    Other dicts are one value.
    """
    return list(_section("", config))


def _section(path: str, section: object) -> Iterator[tuple[str, object]]:
    for name, slot in slots(type(section)).items():
        value, where = getattr(section, name), join(path, name)
        if slot.section is not None:
            yield from _section(where, value)
        elif slot.entries is not None:
            for key, entry in value.items():
                yield from _section(join(where, key), entry)
        elif slot.open and where != "tiny" and not all(_is_key(key) for key in value):
            yield where, value
        elif slot.open:
            for key, item in value.items():
                yield from _plain(join(where, key), item)
        else:
            yield where, value
    if isinstance(section, Target):
        for key, item in section.arguments.items():
            yield from _plain(join(path, key), item)


def _plain(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value and all(_is_word(key) for key in value):
        for key, item in value.items():
            yield from _plain(join(path, key), item)
    else:
        yield path, value


def _is_key(key: object) -> bool:
    """Returns whether a line `dict.key: value` can be read again; the key of `tiny` is a path and always can."""
    return isinstance(key, str) and key == key.strip() != "" and key.isprintable() and not set(key) & set(".:=")


def _is_word(key: object) -> bool:
    return isinstance(key, str) and key.replace("-", "_").isidentifier()


def field_texts(config: Config) -> dict[str, str]:
    """Returns dotted name -> text of every field; text is quoted only if it would be parsed as another value."""
    return {name: value_text(name, value) for name, value in flatten(config)}


def to_text(config: Config) -> str:
    """Returns the config as lines `name: value`."""
    return "".join(f"{name}: {text}\n" for name, text in field_texts(config).items())


def value_text(name: str, value: object) -> str:
    """Returns the text of a value of the field `name`."""
    if isinstance(value, Duration):
        return str(value)
    if not isinstance(value, str):
        return repr(_plain_containers(value))
    if value and value.isprintable() and _parses_to_itself(name, value):
        return value
    return repr(value)


def _parses_to_itself(name: str, value: str) -> bool:
    try:
        return parse(locate(name), value, name) == value
    except FieldError:
        return False


def _plain_containers(value: object) -> object:
    if isinstance(value, MappingProxyType):
        return {key: _plain_containers(item) for key, item in value.items()}
    return tuple(_plain_containers(item) for item in value) if isinstance(value, tuple) else value


def from_text(text: str, where: str) -> Config:
    """Parses the output of `to_text`; `from_text(to_text(config), ...) == config`.

    Args:
        text: lines `name: value`; empty lines and lines that start with # are skipped. If the first line is
            `# 90 settings`, as in a run directory, there must be as many.
        where: origin of the text, for the errors ("runs/digits/config.txt").

    Raises:
        ConfigError: a malformed line, a repeated name, another number of settings than the stated one, or a field or
            value that the schema does not allow.
    """
    draft, seen = defaults(), {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise ConfigError(
                f"{where}:{number}: found {line!r}. Each line is 'name: value', as `convoy config` prints."
            )
        if name in seen:
            raise ConfigError(f"{where}:{number}: {name} is also set on line {seen[name]}. Remove one of the lines.")
        seen[name] = number
        try:
            # A stored run stays readable for longer than an old name in a config, so it is no reason for a warning.
            is_target = name.strip().rpartition(".")[2] == "target"
            set_text(draft, name.strip(), current(value.strip()) if is_target else value)
        except FieldError as error:
            raise error.at(f"{where}:{number}") from None
    if (head := _HEAD.match(text)) and (int(head[1]) != len(seen) or not text.endswith("\n")):
        raise ConfigError(
            f"{where}: its first line states {head[1]} settings, found {len(seen)}: it was cut, or lines were added. "
            "Restore it from a backup; after a change on purpose, delete the first line."
        )
    return validate(draft, where)
