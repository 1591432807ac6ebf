"""The documentation as data: its fenced blocks, the files that it tells one to write, the commands that it prints.

In a page, a fence of the form ```python file=NAME holds a file (with max_lines=N, a promise about its length), and one
of the form ```bash run holds commands, one a line, which work in the folder of these files.
"""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block: its language, the words after it, its text."""

    language: str
    words: tuple[str, ...]
    text: str

    def value(self, name: str) -> str | None:
        """The value of a word `name=value`."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"{name}=")), None)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that have a language, in order."""
    return [Block(language, tuple(words.split()), text) for language, words, text in _FENCE.findall(page.read_text())]


def files(page: Path) -> list[Block]:
    """The blocks that are files."""
    return [block for block in blocks(page) if block.value("file")]


def write_files(page: Path, folder: Path) -> None:
    """Writes the files of a page into a folder."""
    for block in files(page):
        (folder / str(block.value("file"))).write_text(block.text)


def commands(page: Path) -> list[str]:
    """The lines of the blocks that are to be run."""
    texts = [block.text for block in blocks(page) if block.language == "bash" and "run" in block.words]
    return [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a printed command, `NAME=VALUE convoy ...` or `python ...`, as a process in a folder."""
    words = shlex.split(command)
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    program = {"convoy": ["-m", "engine.main"], "python": []}[words[0]]
    return subprocess.run(
        [sys.executable, *program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
