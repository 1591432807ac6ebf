"""The help of the config: every field with its type, its default and the comment beside it in `schema.py`.

Owns: reading those comments and laying them out. The schema stays the only place where a field is described.
"""

import inspect
import io
import tokenize
from collections.abc import Iterator

from engine.config import schema
from engine.config.fields import Slot, join, slots
from engine.config.schema import Config, Target

_TYPE_NAMES = {type(None): "None"}
_WIDTH = 46  # columns of name, type and default before the comment


def help_text() -> str:
    """Returns a paragraph for each section, with a line for each field: `train.seed: int = 0    of weights, order`."""
    return "\n".join(_section(Config, "", _comments(), {})).rstrip() + "\n"


def _comments() -> dict[tuple[str, str], str]:
    """(section, field) -> the comment after the field in the source of the schema."""
    comments, section, field, depth = {}, "", "", 0
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(schema)).readline):
        words = token.line.split()
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type == tokenize.NAME and token.string == "class":
            section = words[1].partition("(")[0].rstrip(":")
        elif token.type == tokenize.NAME and depth == 1 and token.line.lstrip().startswith(f"{token.string}:"):
            field = token.string
        elif token.type == tokenize.COMMENT and depth == 1 and section and field:
            comments[section, field] = token.string.lstrip("# ")
            field = ""
    return comments


def _section(section: type, path: str, comments: dict[tuple[str, str], str], told: dict[type, str]) -> Iterator[str]:
    """The lines of a section and of those below it; `told` are the sections that stand above, with their paths."""
    if section in told and section is not Target:
        yield f"{path}.*: as {told[section]}.*\n"
        return
    told[section] = path
    title = f"{path}: " if path else ""
    yield f"{title}{inspect.getdoc(section)}"
    below: list[tuple[type, str]] = []
    for name, slot in slots(section).items():
        where, comment = join(path, name), _comment(section, name, comments)
        if slot.section is not None:
            below.append((slot.section, where))
        elif slot.entries is not None:
            below.append((slot.entries, join(where, "<name>")))
        else:
            yield f"  {where + _type(slot, section, name):<{_WIDTH}}  {comment}".rstrip()
    if issubclass(section, Target):
        yield f"  {path + '.<argument>':<{_WIDTH}}  {_comment(section, 'arguments', comments)}"
    yield ""
    for child, where in below:
        yield from _section(child, where, comments, told)


def _comment(section: type, name: str, comments: dict[tuple[str, str], str]) -> str:
    """The comment of a field, in the class that defines it or the nearest one that it comes from."""
    return next((comments[base.__name__, name] for base in section.__mro__ if (base.__name__, name) in comments), "")


def _type(slot: Slot, section: type, name: str) -> str:
    if slot.open:
        return ".<key>: any"
    kinds = " | ".join(_TYPE_NAMES.get(kind, kind.__name__) for kind in slot.types)
    default = getattr(section(), name)
    return f": {kinds} = {default!r}"
