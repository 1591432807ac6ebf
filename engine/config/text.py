"""A config as flat text, one `name: value` a line: the output of `convoy config` and the `config.txt` of a run.

`from_text(to_text(config), ...)` is an equal Config. Single values are read by the command line's parser
(`override.py`).
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from engine.config.draft import defaults
from engine.config.duration import Duration
from engine.config.errors import ConfigError, FieldError
from engine.config.fields import join, slots
from engine.config.override import locate, parse, set_text
from engine.config.schema import Config, Target
from engine.config.validation import validate


def flatten(config: Config) -> list[tuple[str, object]]:
    """Returns (dotted name, value) of every field, in the order of the schema; arguments after a section's own fields.

    Dicts under open names are flattened too, where their keys are words; other dicts are one value.
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


def _is_word(key: object) -> bool:
    return isinstance(key, str) and key.replace("-", "_").isidentifier()


def to_text(config: Config) -> str:
    """Returns the config as lines `name: value`; text is quoted only where it would be read as something else."""
    return "".join(f"{name}: {value_text(name, value)}\n" for name, value in flatten(config))


def value_text(name: str, value: object) -> str:
    """Returns a value as it is written behind the field `name`."""
    if isinstance(value, Duration):
        return str(value)
    if not isinstance(value, str):
        return repr(_ordinary(value))
    if value and value.isprintable() and _reads_as_itself(name, value):
        return value
    return repr(value)


def _reads_as_itself(name: str, value: str) -> bool:
    try:
        return parse(locate(name), value, name) == value
    except FieldError:
        return False


def _ordinary(value: object) -> object:
    if isinstance(value, MappingProxyType):
        return {key: _ordinary(item) for key, item in value.items()}
    return tuple(_ordinary(item) for item in value) if isinstance(value, tuple) else value


def from_text(text: str, where: str) -> Config:
    """Reads back what `to_text` wrote; `from_text(to_text(config), ...) == config`.

    Args:
        text: lines `name: value`; empty lines and lines that begin with # are skipped.
        where: it came from, for the errors ("runs/digits/config.txt").

    Raises:
        ConfigError: a line of another form, a name twice, or a field or value that the schema does not allow.
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
            raise ConfigError(f"{where}:{number}: {name} stands on line {seen[name]} too. Remove one of the two.")
        seen[name] = number
        try:
            set_text(draft, name.strip(), value)
        except FieldError as error:
            raise error.at(f"{where}:{number}") from None
    return validate(draft, where)
