"""Runs a command in a terminal and writes a picture of the terminal: python docs/images/training.py [COMMAND ...]

COMMAND is `convoy train --config=configs.digits` unless given. It runs in an empty folder, and the picture is
training.svg next to this file unless `--output=FILE` names another one. Times in the picture are those of this run.
"""

import argparse
import shlex
import tempfile
from pathlib import Path

from terminal import Film, record

COMMAND = ("convoy", "train", "--config=configs.digits")
COLUMNS = 124


def main() -> None:
    """Runs the command and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".svg"))
    args, command = parser.parse_known_args()
    command = command or list(COMMAND)
    shown = Film(COLUMNS, rows=0)
    shown.line(f"\x1b[32;1m$\x1b[0m {shlex.join(command)}")
    with tempfile.TemporaryDirectory(prefix="convoy-picture-") as folder:
        shown.play(record(command, Path(folder), COLUMNS))
    args.output.write_text(shown.still("A training run in a terminal"))


if __name__ == "__main__":
    main()
