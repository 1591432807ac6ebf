"""`convoy config`: prints a resolved config. Its help lists every field of a config."""

import argparse

from engine.cli import common
from engine.cluster.exit_status import ExitStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy config`, to a parser without --help."""
    parser.add_argument("config", nargs="?", help="file, module or run directory")
    parser.add_argument("-h", "--help", action="store_true", help="list every field with its default")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy config`."""
    from engine.config import help_text, to_text

    if args.help or args.config is None:
        print(help_text())
    else:
        print(to_text(common.load_config(args.config, overrides)), end="")
    return ExitStatus.DONE
