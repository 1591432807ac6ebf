"""The verbs of the command line with their arguments, read from the parser.

Formatted help differs between versions of Python, so the text lists the properties of each argument.
"""

import argparse
from collections.abc import Iterator

from engine.cli.arguments import make_parser
from engine.cli.verbs import VERBS


def text() -> str:
    """Returns the lines of `convoy`, then those of each verb and of the verbs below it."""
    top, _ = make_parser()
    short = [
        f"{name}: takes {' '.join(verb.short_overrides)}NAME=VALUE without --config"
        for name, verb in VERBS.items()
        if verb.short_overrides
    ]
    return "\n".join([*_lines(top), "overrides:", *(f"  {line}" for line in short)]) + "\n"


def _lines(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"{parser.prog}:"
    for name in ("usage", "description", "epilog"):
        if value := getattr(parser, name):
            yield from (f"  {name}: {line}".rstrip() for line in value.strip("\n").splitlines())
    below: list[argparse.ArgumentParser] = []
    for action in parser._actions:
        yield from (f"  {line}" for line in _argument(action))
        if isinstance(action, argparse._SubParsersAction):
            below += action.choices.values()
    for group in parser._action_groups:
        if group.description:
            yield f"  group {group.title!r}: {group.description}"
    for group in parser._mutually_exclusive_groups:
        yield f"  one of: {' '.join(action.option_strings[0] for action in group._group_actions)}"
    yield ""
    for child in below:
        yield from _lines(child)


def _argument(action: argparse.Action) -> Iterator[str]:
    """Yields a line with the properties of an argument, one with its help, and those of its verbs."""
    verbs = isinstance(action, argparse._SubParsersAction)
    properties = [
        "required" if action.required and action.nargs != "*" else "",  # Python 3.13 does not require these
        f"nargs={action.nargs}" if action.nargs not in (None, 0) and not verbs else "",
        f"type={getattr(action.type, '__name__', action.type)}" if action.type else "",
        f"choices={','.join(action.choices)}" if action.choices and not verbs else "",
        f"default={action.default!r}" if action.default not in (None, argparse.SUPPRESS) else "",
        f"metavar={action.metavar}" if action.metavar else "",
        f"dest={action.dest}" if action.dest != argparse.SUPPRESS else "",
        "flag" if action.nargs == 0 else "",
        "repeated" if isinstance(action, argparse._AppendAction) else "",
    ]
    yield f"{', '.join(action.option_strings) or 'argument'}: {' '.join(filter(None, properties))}"
    if action.help:
        yield f"    {action.help}"
    if verbs:
        yield from (f"    {choice.dest}: {choice.help}" for choice in action._get_subactions())
