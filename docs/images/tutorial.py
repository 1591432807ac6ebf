"""Draws the pictures of docs/tutorial.md: python docs/images/tutorial.py

It writes the files of the page into an empty folder, runs its commands in order, and takes the pictures that they save.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TOP = FOLDER.parents[1]
FILE = re.compile(r"^<!-- file=(\S+)[^\n]*-->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^<!-- run\b[^\n]*-->\n```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page: str, folder: Path) -> list[Path]:
    """Runs a page in a folder, and returns the pictures that it saves."""
    for name, text in FILE.findall(page):
        (folder / name).write_text(text)
    path = os.pathsep.join(filter(None, (str(TOP), os.environ.get("PYTHONPATH"))))
    for line in "".join(COMMANDS.findall(page)).splitlines():
        words, environment = shlex.split(line), {**os.environ, "PYTHONPATH": path, "MATPLOTLIBRC": str(FOLDER)}
        while "=" in words[0]:
            name, _, environment[name] = words.pop(0).partition("=")
        program = ["-m", "engine.cli.main", *words[1:]] if words[0] == "convoy" else words[1:]
        subprocess.run([sys.executable, *program], cwd=folder, env=environment, check=True)
    return sorted(folder.glob("*.png"))


def main() -> None:
    """Runs the page and stores its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the pictures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="convoy-tutorial-") as folder:
        for picture in run((TOP / "docs/tutorial.md").read_text(), Path(folder)):
            (args.output / picture.name).write_bytes(picture.read_bytes())


if __name__ == "__main__":
    main()
