"""Environments for outside programs: one for each lock file, never the one of the engine.

Both sides meet in a folder: the comparison writes inputs there, the program `outside/<noun>.py` reads them and writes
its results. The outside programs may need other versions of numpy than the engine.
"""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from engine.base.errors import RunError

HERE = Path(__file__).parent
LOCKS, OUTSIDE = HERE / "locks", HERE / "outside"
NOUNS = tuple(sorted(path.stem for path in LOCKS.glob("*.txt")))
"""Names of the comparisons. Each has locks/<noun>.txt, outside/<noun>.py, and a module <noun>.py."""

_COMPLETE = "complete"  # file in an environment whose packages are all installed


@dataclasses.dataclass(frozen=True)
class Environment:
    """The Python environment of the outside program of a comparison.

    Args:
        noun: one of `NOUNS`.
        folder: where environments are kept; a later run with the same lock file uses them again.
        golden: folder for golden numbers of the tests; None writes none.
        locks: folder of the lock files.
    """

    noun: str
    folder: Path
    golden: Path | None = None
    locks: Path = LOCKS

    @property
    def path(self) -> Path:
        """The folder of this environment; its name has a hash of the lock file."""
        lock = (self.locks / f"{self.noun}.txt").read_bytes()
        version = ".".join(map(str, sys.version_info[:2]))
        return self.folder.resolve() / f"{self.noun}-{version}-{hashlib.sha256(lock).hexdigest()[:12]}"

    @property
    def python(self) -> Path:
        """The interpreter of this environment."""
        return self.path / "bin" / "python"

    def create(self) -> None:
        """Creates the environment unless a complete one is there. Raises RunError if the installation fails."""
        if (self.path / _COMPLETE).exists():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The lock files are complete lists: nothing else is installed, and each file has a hash.
        lock = ["--no-deps", "--require-hashes", "-r", str(self.locks / f"{self.noun}.txt")]
        if uv := shutil.which("uv"):
            self._run([uv, "venv", "--quiet", "--python", sys.executable, str(self.path)])
            self._run([uv, "pip", "install", "--quiet", "--python", str(self.python), *lock])
        else:
            self._run([sys.executable, "-m", "venv", str(self.path)])
            self._run([str(self.python), "-m", "pip", "install", "--quiet", *lock])
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
