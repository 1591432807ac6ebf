"""Files of `init.paths`: a Python file `paths = {PATH_HERE: NAME_THERE}`, which is read and never executed.

A config imports it, and `convoy import` reads it.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

from engine.base.errors import CheckpointError

NAME = "paths"
"""The variable that a file assigns."""
LARGEST = 16 << 20  # bytes


def read_paths(file: Path, where: str) -> dict[str, str | None]:
    """Returns the entries of a file.

    Args:
        file: as `write_paths` writes it, or edited.
        where: what names the file, for errors.

    Raises:
        CheckpointError: it cannot be read, or has other things than a dictionary of text.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST >> 20} MiB")
        found = [
            ast.literal_eval(node.value)
            for node in ast.parse(file.read_text("utf-8")).body
            if isinstance(node, ast.Assign) and [ast.unparse(name) for name in node.targets] == [NAME]
        ]
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{where} = {file}: cannot be read ({error}). {_FORM}") from error
    if len(found) != 1 or not isinstance(found[0], dict):
        raise CheckpointError(f"{where} = {file}: found {len(found)} dictionaries {NAME}. {_FORM}")
    for key, value in found[0].items():
        if not isinstance(key, str) or not (value is None or isinstance(value, str)):
            raise CheckpointError(f"{where} = {file}: found the entry {key!r}: {value!r}. {_FORM}")
    return found[0]


_FORM = f"It must hold one assignment: {NAME} = {{PATH_HERE: NAME_THERE or None}}, all of text."


def write_paths(file: Path, entries: Mapping[str, tuple[str | None, str]], title: str) -> None:
    """Writes a new file.

    Args:
        file: where no file exists.
        entries: path here, as a regular expression -> name there, and a comment.
        title: the docstring.

    Raises:
        CheckpointError: the file exists or cannot be written.
    """
    lines = [f'"""{title}"""'.replace("\\", "\\\\"), "", f"{NAME} = {{"]
    for path, (name, comment) in entries.items():
        lines.append(f"    {_text(path)}: {_text(name)}," + (f"  # {comment}" if comment else ""))
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write("\n".join([*lines, "}", ""]))
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be written ({error.strerror or error}). Give the name of a new file."
        ) from error


def _text(value: str | None) -> str:
    """Returns a literal in double quotes."""
    if value is None or '"' in value or repr(value)[1:-1] != value:
        return repr(value)
    return f'"{value}"'
