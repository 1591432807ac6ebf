"""Environments for outside programs: one for each lock file, never the one of the engine.

Both sides meet in a folder: the comparison writes inputs there, the program `outside/<noun>.py` reads them and writes
its results. The outside programs may need other versions of numpy than the engine, and another Python: the first line
of locks/<noun>.in is then such as `# python 3.10`.
"""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from engine.base.errors import RunError

HERE = Path(__file__).parent
LOCKS, OUTSIDE = HERE / "locks", HERE / "outside"
NOUNS = tuple(sorted(path.stem for path in LOCKS.glob("*.txt")))
"""Names of the comparisons. Each has locks/<noun>.txt, outside/<noun>.py, and a module <noun>.py."""

RUNNING = ".".join(map(str, sys.version_info[:2]))
"""The version of Python that runs."""
_COMPLETE = "complete"  # file in an environment whose packages are all installed


@dataclasses.dataclass(frozen=True)
class Environment:
    """The Python environment of the outside program of a comparison.

    Args:
        noun: one of `NOUNS`.
        folder: where environments are kept; a later run with the same lock file uses them again.
        golden: folder for golden numbers of the tests; None writes none.
        locks: folder of the lock files.
        items: names of `ITEMS` of the comparison, to which it is limited; empty: all.
    """

    noun: str
    folder: Path
    golden: Path | None = None
    locks: Path = LOCKS
    items: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The folder of this environment; its name has a hash of the lock file."""
        lock = (self.locks / f"{self.noun}.txt").read_bytes()
        return self.folder.resolve() / f"{self.noun}-{self.version}-{hashlib.sha256(lock).hexdigest()[:12]}"

    @property
    def version(self) -> str:
        """The version of Python of this environment: that of its lock file, or else the one that runs."""
        first = (self.locks / f"{self.noun}.in").read_text(encoding="utf-8").partition("\n")[0]
        stated = re.fullmatch(r"# python (\d+\.\d+)", first)
        return stated[1] if stated else RUNNING

    @property
    def packages(self) -> list[str]:
        """The packages that the lock file is made for, with their versions, such as "torch 2.15.0"."""
        wanted = (self.locks / f"{self.noun}.in").read_text(encoding="utf-8")
        names = re.findall(r"^[\w.-]+", wanted, re.MULTILINE)
        lock = (self.locks / f"{self.noun}.txt").read_text(encoding="utf-8")
        versions = dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==([^\s;]+)", lock, re.MULTILINE))
        return [f"{name} {versions[name]}" for name in names]

    @property
    def python(self) -> Path:
        """The interpreter of this environment."""
        return self.path / "bin" / "python"

    def create(self) -> None:
        """Creates the environment unless a complete one is there.

        Raises:
            RunError: the installation fails, or there is no Python of its version.
        """
        if (self.path / _COMPLETE).exists():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The lock files are complete lists: nothing else is installed, and each file has a hash.
        lock = ["--no-deps", "--require-hashes", "-r", str(self.locks / f"{self.noun}.txt")]
        own = self.version == RUNNING
        if uv := shutil.which("uv"):  # finds or downloads a Python of another version
            version = sys.executable if own else self.version
            self._run([uv, "venv", "--quiet", "--python", version, str(self.path)])
            self._run([uv, "pip", "install", "--quiet", "--python", str(self.python), *lock])
        elif python := sys.executable if own else shutil.which(f"python{self.version}"):
            self._run([python, "-m", "venv", str(self.path)])
            self._run([str(self.python), "-m", "pip", "install", "--quiet", *lock])
        else:
            raise RunError(
                f"{self.noun} needs Python {self.version}, and PATH has neither it nor uv. Install one of them."
            )
        (self.path / _COMPLETE).touch()

    def run(self, folder: Path) -> None:
        """Runs `outside/<noun>.py FOLDER` in the environment, which is created first.

        Args:
            folder: has the inputs, and afterwards the results.

        Raises:
            RunError: the installation or the program fails.
        """
        self.create()
        self._run([str(self.python), "-I", str(OUTSIDE / f"{self.noun}.py"), str(folder)])

    def _run(self, command: list[str]) -> None:
        # PYTHONPATH would show the packages of the engine's environment to the outside program.
        own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(command, env=own, capture_output=True, text=True)
        if done.returncode:
            last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
            raise RunError(f"{self.noun}: the command {' '.join(command)} ended with {done.returncode}:\n{last}")
