"""`convoy init`: writes a small project that trains at once."""

import argparse
import shlex
import sys
from pathlib import Path

from engine.base.errors import ConfigError, did_you_mean
from engine.cli import common
from engine.cluster.exit_status import ExitStatus
from engine.scaffold.kinds import KINDS

DESCRIPTION = """
Writes a small project: config, model, data, a test, README and .gitignore. It trains at once, on
generated data, and is meant to be changed. Existing files are never overwritten. Without --kind,
it asks for the kind of data.

  convoy init my-images --kind=images      {images}
  convoy init my-scenes --kind=scenes      {scenes}
  convoy init my-text --kind=text          {text}
  convoy init my-table --kind=table        {table}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy init`."""
    parser.description = DESCRIPTION.format(**{name: kind.summary for name, kind in KINDS.items()})
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER", help="folder of the project (default: this one)"
    )
    parser.add_argument("--kind", help=f"kind of data: {', '.join(KINDS)}")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy init`."""
    from engine.scaffold.project import project_name, write_project

    common.refuse_overrides(overrides, "init")
    folder = Path(args.folder)
    names = write_project(folder, _kind(args.kind))
    here = folder.absolute() == Path.cwd()
    print(f"wrote {', '.join(names)} in {'this folder' if here else folder}")
    steps = [] if here else [f"cd {shlex.quote(str(folder))}"]
    steps += ["convoy train --config=config.py", f"convoy plot runs/{project_name(folder.absolute())}"]
    print("Next:", *(f"  {step}" for step in steps), sep="\n")
    return ExitStatus.DONE


def _kind(given: str | None) -> str:
    """Returns the kind that was given, or the answer in a terminal. Raises ConfigError."""
    if given is not None:
        return _checked(given, "--kind = ")
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"convoy init: which kind of data? Add --kind=KIND, one of {', '.join(KINDS)}.")
    width = max(map(len, KINDS))
    for number, kind in enumerate(KINDS.values(), 1):
        print(f"  {number}  {kind.name:{width}}  {kind.summary}", file=sys.stderr)
    print("Kind of data, a number or a name: ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip()
    numbers = {str(number): name for number, name in enumerate(KINDS, 1)}
    return _checked(numbers.get(answer, answer), "kind of data: found ")


def _checked(name: str, where: str) -> str:
    if name not in KINDS:
        raise ConfigError(f"{where}{name or 'nothing'}: allowed are {', '.join(KINDS)}.{did_you_mean(name, KINDS)}")
    return name
