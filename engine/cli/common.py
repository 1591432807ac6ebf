"""What several verbs share: the parser class, common flags, configs, joining other processes, the command after `--`.

Every verb imports this module, so it imports no heavy library.
"""

import argparse
import contextlib
import gc
import itertools
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from engine.base.errors import ConfigError, RunError
from engine.cluster import cluster_detection, group, processes
from engine.storage.mounts import is_address, local_text

if TYPE_CHECKING:
    from engine.config import Config


_COLUMNS, _TEXT_COLUMN = 80, 40


class Parser(argparse.ArgumentParser):
    """Reports parse errors like any other user error: one sentence, exit code 1. Flags cannot be abbreviated."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. For help: {self.prog} --help")

    def format_help(self) -> str:
        """Returns the help, with texts that argparse prints as they are in at most 80 columns."""
        if self.formatter_class is argparse.RawDescriptionHelpFormatter:
            self.description, self.epilog = narrow(self.description or ""), narrow(self.epilog or "")
        return super().format_help()


def narrow(text: str) -> str:
    """Returns a text in at most 80 columns: paragraphs, and indented lists of commands with what each does."""
    blocks = itertools.groupby(text.splitlines(), key=lambda line: line[:2] if line[:2].isspace() else bool(line))
    lines: list[str] = []
    for kind, block in blocks:
        found = list(block)
        if max(map(len, found)) > _COLUMNS:
            found = _commands(found) if isinstance(kind, str) else textwrap.wrap(" ".join(found), _COLUMNS)
        lines += found
    return "\n".join(lines)


def _commands(lines: Sequence[str]) -> list[str]:
    """Returns the commands with their texts in a column, or below where the command reaches into it."""
    found: list[str] = []
    for line in lines:
        command, _, text = line[2:].partition("  ")
        texts = textwrap.wrap(text.strip(), _COLUMNS - _TEXT_COLUMN)
        start = f"  {command}" if command else ""
        if start and len(start) > _TEXT_COLUMN - 2:
            found.append(start)
            start = ""
        found += [f"{start:{_TEXT_COLUMN}}{texts[0]}" if texts else start] if texts or start else []
        found += [" " * _TEXT_COLUMN + more for more in texts[1:]]
    return found


CONFIG_HELP = "file, module or run directory; --config.NAME=VALUE sets a field"


def add_config_flag(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds --config."""
    parser.add_argument("--config", required=required, help=CONFIG_HELP)


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags by which the processes of a command find each other; `join` reads them."""
    flags = parser.add_argument_group(
        "several processes", "start the same command in each process; convoy launch sets the variables"
    )
    for name, text in (
        ("coordinator", "HOST:PORT on which process 0 listens"),
        ("count", "number of processes"),
        ("index", "index of this process, from 0"),
    ):
        flags.add_argument(
            cluster_detection.FLAGS[name], dest=name, help=f"{text} (or {cluster_detection.VARIABLES[name]})"
        )


def add_devices_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --devices-per-process."""
    text = "CPU devices of each process (default: JAX decides)"
    parser.add_argument("--devices-per-process", type=int, help=text)


def load_config(reference: str, overrides: Sequence[str]) -> "Config":
    """Loads the config of a file, a module or a run directory, which may be in a bucket."""
    from engine.config import load

    return load(local_text(reference), overrides)


def refuse_overrides(overrides: list[str], verb: str) -> None:
    """Raises ConfigError for overrides of a verb that takes none."""
    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: convoy {verb} reads the run's own config and takes no overrides.")


@contextlib.contextmanager
def fast_import() -> Iterator[None]:
    """Pauses garbage collection, which takes 15 % of the time to import the engine; imported objects are permanent."""
    if "engine.api.train" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # later collections skip the imported objects
        gc.enable()


def detection(args: argparse.Namespace) -> cluster_detection.Detection:
    """Returns how the processes of this command were found."""
    return cluster_detection.detect({name: getattr(args, name) for name in cluster_detection.FLAGS}, os.environ)


def join(args: argparse.Namespace) -> None:
    """Joins the other processes, if any, and prints the index of this process."""
    found = detection(args)
    if found.process.count > 1 or found.process.detected_by_jax or found.notes:
        print(found, *(f"warning: {note}" for note in found.notes), sep="\n", file=sys.stderr, flush=True)
    processes.initialize(found.process)


def say(text: str) -> None:
    """Prints a sentence for the user, in the primary."""
    if group.is_primary():
        print(text, file=sys.stderr, flush=True)


def warn_of_missing_end(run: str) -> None:
    """Prints a sentence if the last attempt of a run was killed, and writes that to its status."""
    from engine.checkpoint.bucket_copy import readable
    from engine.run import status
    from engine.run.directory import RunDirectory

    directory = RunDirectory(readable(run))
    with contextlib.suppress(RunError):  # the verb itself reports a run that cannot be read
        text = (status.missing_end if is_address(run) else status.complete_missing_end)(directory.status)
        if text:
            print(f"{directory}: {text}", file=sys.stderr, flush=True)


def refuse_overrides_before_command(overrides: list[str]) -> None:
    """Raises ConfigError for overrides before `--`."""
    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: belongs to the command. Write it after --.")


def command_words(args: argparse.Namespace, overrides: list[str], verb: str, expected: str) -> list[str]:
    """Returns the words that start the command after `--`; `expected` is "train", or "a command" for any."""
    refuse_overrides_before_command(overrides)
    found = args.command[0] if args.command else "nothing"
    fits = found == "train" if expected == "train" else found not in ("nothing", "launch", "supervise")
    if not fits:
        raise ConfigError(f"{verb}: found {found} after --. Write {expected}: {verb} ... -- train ...")
    return [sys.executable, "-m", "engine.cli.main", *args.command]
