"""Runs a command in a terminal and writes a picture of the terminal: python docs/images/training.py [COMMAND ...]

COMMAND is `convoy train --config=configs.digits` unless given. It runs in an empty folder, and the picture is
training.svg next to this file unless `--output=FILE` names another one. Times in the picture are those of this run.
"""

import argparse
import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

TOP = Path(__file__).resolve().parents[2]
COMMAND = ("convoy", "train", "--config=configs.digits")
COLUMNS = 124


def terminal_output(command: list[str], folder: Path) -> str:
    """Runs a command in a terminal of its own and returns what the terminal received.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    path = os.pathsep.join(filter(None, (str(TOP), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    words = [sys.executable, "-m", "engine.cli.main", *command[1:]] if command[0] == "convoy" else command
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        received = bytearray()
        while chunk := _read(ours):
            received += chunk
    os.close(ours)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output=received.decode())
    return received.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: the command has closed its side
        return b""


def picture(command: list[str], output: str) -> str:
    """Returns an SVG of the command and its output, on a dark background of its own."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(f"[bold green]$[/] {shlex.join(command)}", highlight=False)
    for line in output.rstrip().replace("\r\n", "\n").split("\n"):
        console.print(Text.from_ansi(line), soft_wrap=True)  # keeps what follows the last carriage return
    svg = console.export_svg(title="convoy", unique_id="convoy")
    return re.sub(r"\s*@font-face \{.*?\n    \}", "", svg, flags=re.DOTALL)  # they load fonts from the network


def main() -> None:
    """Runs the command and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".svg"))
    args, command = parser.parse_known_args()
    command = command or list(COMMAND)
    with tempfile.TemporaryDirectory(prefix="convoy-picture-") as folder:
        args.output.write_text(picture(command, terminal_output(command, Path(folder))))


if __name__ == "__main__":
    main()
