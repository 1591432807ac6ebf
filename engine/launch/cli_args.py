"""What the launchers for other machines share: checks of arguments, and calling `sbatch`, `kubectl` or `gcloud`."""

import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence

from engine.config.errors import ConfigError, ConvoyError

_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEY)(_|$)", re.IGNORECASE)
_HERE_ONLY = ("launch", "supervise")  # verbs that start processes on this machine


class LaunchError(ConvoyError):
    """A scheduler's command is missing or has failed."""


def whole(flag: str, value: int, least: int = 1) -> int:
    """Returns the number. Raises ConfigError where it is below `least`."""
    if value < least:
        raise ConfigError(f"{flag} = {value}: allowed is a whole number from {least}.")
    return value


def label(flag: str, text: str, most: int = 63) -> str:
    """Returns a name that Kubernetes, Google Cloud and Slurm accept. Raises ConfigError for any other."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", text) or len(text) > most:
        raise ConfigError(
            f"{flag} = {text!r}: allowed are lower-case letters, digits and -, with a letter first and no - at the "
            f"end, {most} characters at most."
        )
    return text


def pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """Returns the values of `NAME=VALUE` by name. Raises ConfigError for a text without `=`."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"{flag} = {text!r}: allowed is NAME=VALUE.")
        found[name] = value
    return found


def variables(texts: Iterable[str], instead: str) -> dict[str, str]:
    """Returns the variables of `--env NAME=VALUE`.

    Args:
        texts: as given.
        instead: a sentence on where a secret belongs.

    Raises:
        ConfigError: not the name of a variable, or the name of a secret; the value is not repeated.
    """
    found = pairs("--env", texts)
    for name in found:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"--env {name}: allowed are letters, digits and _, with no digit first.")
        if _SECRET.search(name):
            raise ConfigError(f"--env {name}: a secret would stand in what is rendered, for all to read. {instead}")
    return found


def verb(where: str, command: Sequence[str]) -> Sequence[str]:
    """Returns the command, as `["train", "--config=..."]`. Raises ConfigError for a verb that works on this machine."""
    found = command[0] if command else "nothing"
    if not command or found in _HERE_ONLY:
        raise ConfigError(f"{where}: {found} after --. Write a verb: {where} ... -- train ...")
    return command


def lines(*groups: Sequence[str], indent: str = "  ") -> str:
    """Returns a quoted shell command of groups of words; if it is long, each group and option begins a line."""
    if len(whole_line := shlex.join(word for group in groups for word in group)) <= 110:
        return whole_line
    text = ""
    for group in groups:
        for i, word in enumerate(group):
            separator = f" \\\n{indent}" if i == 0 or word.startswith("-") else " "
            text += (separator if text else "") + shlex.quote(word)
    return text


def call(words: Sequence[str], text: str | None = None) -> None:
    """Calls a scheduler's command, which writes to the screen.

    Args:
        words: the command.
        text: its standard input.

    Raises:
        LaunchError: it is not installed here, or it failed and has printed why.
    """
    try:
        done = subprocess.run(words, input=text, text=True)
    except FileNotFoundError as error:
        raise LaunchError(
            f"{words[0]}: not installed here. Work on a machine that has it, or print what it would get (--dry-run)."
        ) from error
    if done.returncode:
        raise LaunchError(f"{shlex.join(words[:3])} ended with {done.returncode}; its own words are above.")
