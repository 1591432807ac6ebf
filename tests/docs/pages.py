"""Reads the pages of the documentation: their fenced blocks, the files and the commands that these contain.

A comment above a fence marks it, since words after the language would keep Markdown renderers from showing the block:
`<!-- file=NAME max_lines=N -->` is a file for the reader to write, `<!-- run -->` is commands, one per line.
"""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block: the words of the comment above it, its language, its text."""

    marks: tuple[str, ...]
    language: str
    text: str

    def value(self, name: str) -> str | None:
        """Returns the value of a mark `name=value`, or None."""
        return next((mark.partition("=")[2] for mark in self.marks if mark.startswith(f"{name}=")), None)


def blocks(text: str) -> list[Block]:
    """Returns the fenced blocks of a page that have a language, in order."""
    return [Block(tuple(marks.split()), language, body) for marks, language, body in _FENCE.findall(text)]


def files(page: Path) -> list[Block]:
    """Returns the blocks that are files."""
    return [block for block in blocks(page.read_text()) if block.value("file")]


def write_files(page: Path, folder: Path) -> None:
    """Writes the files of a page into a folder."""
    for block in files(page):
        (folder / str(block.value("file"))).write_text(block.text)


def commands(page: Path) -> list[str]:
    """Returns the lines of the blocks that are marked `run`."""
    texts = [block.text for block in blocks(page.read_text()) if block.language == "bash" and "run" in block.marks]
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
