"""Reads the pages of the documentation: their fenced blocks, the files and the commands that these contain.

A comment above a fence marks it, since words after the language would keep Markdown renderers from showing the block:
`<!-- file=NAME max_lines=N -->` is a file for the reader to write, `<!-- run -->` is commands, one per line. With
`<!-- run needs=MODULE -->`, they run where that module is installed.
"""

import dataclasses
import gc
import multiprocessing
import os
import re
import runpy
import shlex
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import jax

from engine.cli.main import main
from tests import runs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

TIMEOUT_S = 300.0  # of one command
LAUNCHERS = {"launch", "supervise", "sweep"}  # verbs that start `convoy train`

_FORKS = multiprocessing.get_context("forkserver")
# Of a command of 20 steps, whose modules were imported in each fork, imports took a fifth of the CPU time.
_FORKS.set_forkserver_preload(
    [
        *("engine.api.train", "engine.cli.train", "engine.compile.evaluation_step", "engine.loop.compile_ahead"),
        *("engine.loop.evaluation", "engine.loop.events.hook", "engine.loop.measurements", "engine.parallel.digest"),
        *("engine.training.accumulation", "convoy_zoo.configs.digits", "convoy_zoo.models.digits"),
        *("pytest", "tensorboardX", __name__),
    ]
)
_FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_NAME = re.compile(r"^- `(engine[\w.]*)`: ((?:.|\n(?=  ))*)$", re.MULTILINE)  # as in tools/build/docs_hooks.py


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block: the words of the comment above it, its language, its text."""

    marks: tuple[str, ...]
    language: str
    text: str

    def value(self, name: str) -> str | None:
        """Returns the value of a mark `name=value`, or None."""
        return next((mark.partition("=")[2] for mark in self.marks if mark.startswith(f"{name}=")), None)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


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
    marked = [block for block in blocks(page.read_text()) if block.language == "bash" and "run" in block.marks]
    texts = [block.text for block in marked if (needed := block.value("needs")) is None or find_spec(needed)]
    return [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]


def reference(package: str) -> list[tuple[str, str]]:
    """Returns the names that the page of a package in `docs/reference/` lists, each with its sentence."""
    text = (ROOT / "docs" / "reference" / f"{package.rpartition('.')[2]}.md").read_text()
    return [(name, " ".join(sentence.split())) for name, sentence in _NAME.findall(text)]


def exit_code(command: str) -> int:
    """Returns the exit code that a comment after a command names: `# exits with 1: something saw it`; 0 without one."""
    found = re.search(r"# exits with (\d+)", command)
    return int(found[1]) if found else 0


def run(command: str, folder: Path) -> Result:
    """Runs a printed command, `NAME=VALUE convoy ...` or `python ...`, in a folder.

    The process is forked from a process that has imported JAX and the engine: half of the time of a short command.
    """
    words = shlex.split(command, comments=True)
    variables = {"JAX_NUM_CPU_DEVICES": "1"}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    if words[0] == "convoy" and words[1] in LAUNCHERS:  # also the processes that it starts are then forks
        environment = runs.environment(**variables, **runs.COMPILING)
        done = runs.run(runs.command(*words[1:]), cwd=folder, env=environment, timeout=TIMEOUT_S)
        return Result(done.returncode, done.stdout, done.stderr)
    with tempfile.TemporaryDirectory() as outputs:
        process = _FORKS.Process(target=_run_here, args=(words, variables, folder, Path(outputs)))
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{command}: still running after {TIMEOUT_S} s")
        texts = [(Path(outputs) / name).read_text() for name in ("stdout", "stderr")]
    return Result(process.exitcode, *texts)


def _run_here(words: list[str], variables: dict[str, str], folder: Path, outputs: Path) -> None:
    """Runs a command in this process, and exits with its code."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with open(outputs / name, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    gc.freeze()  # what the server has imported stays
    gc.set_threshold(100_000)  # as in conftest.py
    os.environ.update({**variables, **runs.COMPILING})
    # JAX has read its variables.
    jax.config.update("jax_num_cpu_devices", int(variables["JAX_NUM_CPU_DEVICES"]))
    jax.config.update("jax_disable_most_optimizations", True)
    os.chdir(folder)
    if words[0] == "convoy":
        sys.exit(main(words[1:]))
    sys.path.insert(0, str((folder / words[1]).parent))
    sys.argv = words[1:]
    runpy.run_path(words[1], run_name="__main__")
