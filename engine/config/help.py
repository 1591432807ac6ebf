"""Text of `convoy config --help`: every field with its type, default and help text, as declared in the schema."""

import inspect
from collections.abc import Iterator

from engine.base.duration import Duration
from engine.config.fields import Slot, join, slots
from engine.config.schema import Config, Target
from engine.config.setting import setting_of

_TYPE_NAMES = {type(None): "None", Duration: "duration"}
_WIDTH = 46  # columns of name, type and default, before the help text


def help_text() -> str:
    """Returns a paragraph per section with a line per field: `train.seed: int = 0    Seed of initial weights, ...`."""
    return "\n".join(_section(Config, "", {})).rstrip() + "\n"


def _section(section: type, path: str, printed: dict[type, str]) -> Iterator[str]:
    """Yields the lines of a section and of its subsections; `printed` maps sections printed so far to their paths."""
    if section in printed and section is not Target:
        yield f"{path}.*: as {printed[section]}.*\n"
        return
    printed[section] = path
    title = f"{path}: " if path else ""
    yield f"{title}{inspect.getdoc(section)}"
    below: list[tuple[type, str]] = []
    for name, slot in slots(section).items():
        where = join(path, name)
        if slot.section is not None:
            below.append((slot.section, where))
        elif slot.entries is not None:
            below.append((slot.entries, join(where, "<name>")))
        else:
            yield _line(where + _type(slot, section, name), slot.setting.text)
    if issubclass(section, Target):
        yield _line(f"{path}.<argument>", setting_of(Target.__dataclass_fields__["arguments"]).text)
    yield ""
    for child, where in below:
        yield from _section(child, where, printed)


def _line(name: str, text: str) -> str:
    return f"  {name:<{_WIDTH}}  {text}"


def _type(slot: Slot, section: type, name: str) -> str:
    if slot.open:
        return ".<key>: any"
    kinds = " | ".join(_TYPE_NAMES.get(kind, kind.__name__) for kind in slot.types)
    default = getattr(section(), name)
    return f": {kinds} = {str(default)!r}" if isinstance(default, Duration) else f": {kinds} = {default!r}"
