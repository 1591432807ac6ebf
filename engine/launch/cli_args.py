"""Checks of arguments shared by the launchers for other machines, and calls of `sbatch`, `kubectl` and `gcloud`."""

import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence

from engine.base.errors import ConfigError, ConvoyError

_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEY)(_|$)", re.IGNORECASE)
_LOCAL_VERBS = ("launch", "supervise")  # verbs that start processes on this machine


class LaunchError(ConvoyError):
    """The command of a scheduler is missing or failed."""


def check_at_least(flag: str, value: int, minimum: int = 1) -> int:
    """Returns the number. Raises ConfigError if it is below `minimum`."""
    if value < minimum:
        raise ConfigError(f"{flag} = {value}: allowed is a whole number from {minimum}.")
    return value


def check_label(flag: str, text: str, max_length: int = 63) -> str:
    """Returns the name. Raises ConfigError if Kubernetes, Google Cloud or Slurm would refuse it."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", text) or len(text) > max_length:
        raise ConfigError(
            f"{flag} = {text!r}: allowed are lower-case letters, digits and -, with a letter first and no - at the "
            f"end, {max_length} characters at most."
        )
    return text


def parse_pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """Parses `NAME=VALUE` texts into a dict. Raises ConfigError for a text without `=`."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"{flag} = {text!r}: allowed is NAME=VALUE.")
        found[name] = value
    return found


def parse_numbers(flag: str, texts: Iterable[str]) -> dict[str, float]:
    """Parses `NAME=NUMBER` texts into a dict. Raises ConfigError for other texts."""
    found = {}
    for name, text in parse_pairs(flag, texts).items():
        try:
            found[name] = float(text)
        except ValueError:
            raise ConfigError(f"{flag} {name} = {text!r}: allowed is a number.") from None
    return found


def parse_variables(texts: Iterable[str], secret_advice: str) -> dict[str, str]:
    """Parses the variables of `--env NAME=VALUE`.

    Args:
        texts: the arguments of `--env`.
        secret_advice: a sentence on where a secret belongs instead.

    Raises:
        ConfigError: an invalid name of a variable, or the name of a secret. The message does not contain the value.
    """
    found = parse_pairs("--env", texts)
    for name in found:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"--env {name}: allowed are letters, digits and _, with no digit first.")
        if _SECRET.search(name):
            raise ConfigError(
                f"--env {name}: is a secret, which everybody could read in the printed job. {secret_advice}"
            )
    return found


def check_command(launcher: str, command: Sequence[str]) -> Sequence[str]:
    """Returns the command, such as `["train", "--config=..."]`. Raises ConfigError for verbs that only run locally."""
    found = command[0] if command else "nothing"
    if not command or found in _LOCAL_VERBS:
        raise ConfigError(f"{launcher}: found {found} after --. Write a command: {launcher} ... -- train ...")
    return command


def format_command(*groups: Sequence[str], indent: str = "  ") -> str:
    """Returns groups of words as a quoted shell command; in a long command, each group and option starts a new line."""
    if len(whole_line := shlex.join(word for group in groups for word in group)) <= 110:
        return whole_line
    text = ""
    for group in groups:
        for i, word in enumerate(group):
            separator = f" \\\n{indent}" if i == 0 or word.startswith("-") else " "
            text += (separator if text else "") + shlex.quote(word)
    return text


def run_command(words: Sequence[str], text: str | None = None) -> None:
    """Runs the command of a scheduler. Its output goes to the terminal.

    Args:
        words: the command and its arguments.
        text: standard input of the command.

    Raises:
        LaunchError: the command is not installed, or failed and printed why.
    """
    try:
        done = subprocess.run(words, input=text, text=True)
    except FileNotFoundError as error:
        raise LaunchError(
            f"{words[0]}: not installed on this machine. Use a machine that has it, or only print the job (slurm: "
            "--dry-run; k8s: without --apply; tpu-vm: without --execute)."
        ) from error
    if done.returncode:
        raise LaunchError(f"{shlex.join(words[:3])} failed with exit code {done.returncode}; its output is above.")
