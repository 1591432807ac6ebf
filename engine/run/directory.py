"""The directory of one run: the paths of its files, and how an attempt opens it.

A *run* is one working directory. An *attempt* is one start of a run, counted from 1.

    config.txt         the resolved config, one `name: value` per line
    data.json          description of the datasets, so that a resume on other data is detected
    code.json          where the code of the run lies, its commit, versions of packages, and the devices
    lineage.json       data of all attempts, and checkpoints that gave the first weights (`run/lineage.py`)
    names.json.gz      files and names that this data holds
    optimizer.json     the roles of the parameters, if the optimizer needs more than their dimensions
    status.json        state, step, reason, exit code, final metrics
    stopped.json       where and why the run ended before its last step, if it did
    metrics.jsonl      one line per logged step
    evaluations.jsonl  results of `convoy evaluate`, which does not take the lease
    goodput.jsonl      seconds by kind of work
    plan.json          predicted and measured time and memory of a step
    log.txt            what was printed, with times
    lease/             which process may write here
    examples/          which examples each step consumed, with log.examples
    stacks/            stack traces: of all threads of a run that hung, of errors in processes without a log
    bad_examples/      which examples could not be read, with data.on_error=skip
    per_example/       metrics of single examples: <evaluation>/<step>.parquet, with evaluations.NAME.per_example
    figures/           drawn predictions: <evaluation>/<step>/<rank>-example-<index>.png
    trackers/          what each tracker of `log.trackers` has received
    checkpoints/  tensorboard/  profile/
"""

import glob
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from engine.base.errors import CheckpointError, RunError
from engine.base.files import read_text
from engine.cluster import group
from engine.cluster.exit_status import ExitStatus
from engine.run import lease, status
from engine.run.atomic import cannot_write
from engine.run.goodput import Stopwatch
from engine.run.lease import DirectoryGone, Lease, LeaseLost
from engine.storage import background
from engine.storage.mounts import local_path, shown

PER_EXAMPLE = "per_example"  # folder in a run directory
LONGEST_PATH = 4096 - 256  # bytes: Linux allows 4096, and the longest name below a run has less than 256

SHOWN = 10  # runs that an error names


class RunDirectory:
    """Paths of a run. The constructor only mounts a bucket where needed; `open` prepares the directory for training.

    The directory that `open` returns is a context manager, whose exit calls `close`. After an error of the storage, the
    exit raises LeaseLost instead if the directory was moved, removed or taken over.
    """

    def __init__(self, path: str | os.PathLike):
        """
        Args:
            path: the directory, which need not exist, or its address in a bucket, which is then mounted.

        Raises:
            RunError: the bucket cannot be mounted.
        """
        self.path = local_path(path)
        self.attempt = 0  # number of this start; 0 if the directory is only read
        self.moved_to: Path | None = None  # where `open(fresh=True)` put the earlier run
        self.kept = True  # whether the directory is kept after the run
        self.messages: list[str] = []  # messages for the user: takeovers and moved runs
        self.stopwatch = Stopwatch()  # measures this attempt; before `open` it writes nothing
        self.lease: Lease = lease.ALWAYS_GRANTED  # in the primary, the lease of this job from `open` to `close`
        self.config = self.path / "config.txt"
        self.data = self.path / "data.json"
        self.code = self.path / "code.json"
        self.optimizer = self.path / "optimizer.json"
        self.status = self.path / "status.json"
        self.stopped = self.path / "stopped.json"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.goodput = self.path / "goodput.jsonl"
        self.plan = self.path / "plan.json"
        self.log = self.path / "log.txt"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"
        self.figures = self.path / "figures"
        self.examples = self.path / "examples"
        self.stacks = self.path / "stacks"
        self.bad_examples = self.path / "bad_examples"

    def __str__(self) -> str:
        return shown(self.path)

    @classmethod
    def open(cls, path: str | os.PathLike, fresh: bool = False, began: float | None = None) -> "RunDirectory":
        """Prepares a directory for one attempt: creates it, checks that it is writable, takes its lease.

        The primary does it. The other processes wait, and must then see the same folder. The directory belongs to
        this job until `close`.

        Args:
            path: the directory; created with its parents if it is missing.
            fresh: move an earlier run to `<path>.old-N` and set `moved_to` to it. No file of it is deleted. A start
                that trained no step (`is_untrained`) is deleted instead.
            began: monotonic seconds at which the attempt began; None: now.

        Raises:
            RunError: the directory cannot be created, written or moved, or its status cannot be read; another job
                trains there; or a process does not see the folder that process 0 opened.
        """
        run = cls(path)
        run.attempt = group.run_on_primary(lambda: run._prepare(fresh, began), "the run directory")
        if not run.path.is_dir():
            raise RunError(
                f"{run}: process {group.index()} does not see this folder, which process 0 has opened. "
                "Give a --workdir on a disk that all processes share, under the same path."
            )
        return run

    def close(self) -> None:
        """Ends this attempt: another job may write here afterwards. A second call does nothing."""
        with suppress(LeaseLost):  # after losing the lease, this process must not write
            self.lease.check()
            self.stopwatch.close()
        self.lease.release()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, OSError | RunError | CheckpointError):
                self.lease.verify()  # raises an error if the directory is gone, which explains the other error
        finally:
            self.close()

    def _prepare(self, fresh: bool, began: float | None) -> int:
        """Takes the lease; returns the number of the attempt."""
        self._make()
        self.lease = lease.acquire(self.path / "lease")
        try:
            if self.lease.takeover:
                self.messages.append(self.lease.takeover)
            if fresh and self.is_untrained():
                self._delete_earlier_start()
            elif fresh and self.is_used():
                self._move_earlier_run()
            attempt = status.read(self.status).attempt + 1 if self.status.exists() else 1
            self.stopwatch = Stopwatch(self.goodput, attempt, began)
            return attempt
        except BaseException:
            self.lease.release()
            raise

    def _make(self) -> None:
        length = len(os.fsencode(self.path.absolute()))
        if length > LONGEST_PATH:
            raise RunError(
                f"{self}: this path has {length} bytes, too many for the files of a run. Allowed are {LONGEST_PATH}. "
                "Choose another directory with --workdir=DIR."
            )
        try:
            background.probe(self.path)
        except background.StorageTimeout as error:
            run_error = RunError(
                f"{self}: the storage does not answer ({error}). Check that it is mounted and not overloaded, then "
                "start the same command again."
            )
            run_error.exit_code = ExitStatus.RETRY
            raise run_error from error
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _move_earlier_run(self) -> None:
        """Moves the earlier run aside. The lease belongs to the path, not to the run, so it is moved back."""
        self.moved_to = _move_aside(self.path)
        self.messages.append(f"the earlier run was moved to {shown(self.moved_to)}")
        self._make()
        try:
            (self.moved_to / "lease").rename(self.path / "lease")
        except OSError as error:
            raise RunError(
                f"{self}: another job started here while the earlier run was moved to "
                f"{self.moved_to} ({error.strerror}). Choose another --workdir=DIR."
            ) from error

    def _delete_earlier_start(self) -> None:
        """Deletes the files of a start that trained no step, but for the lease."""
        try:
            for path in self._all_contents():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.messages.append("the earlier start, which trained no step, was replaced")

    def moved_aside(self) -> set[str]:
        """Returns the names of earlier runs that `open(fresh=True)` has moved aside from here."""
        real = self.path.resolve()
        return {path.name for path in real.parent.glob(f"{glob.escape(real.name)}.old-*")}

    def exists(self) -> bool:
        """Whether a run was started here, which means that its config file exists."""
        return self.config.exists()

    def is_used(self) -> bool:
        """Whether files of an earlier start exist, which `open(fresh=True)` would move aside."""
        return any(path.exists() for path in self._contents())

    def is_untrained(self) -> bool:
        """Whether an earlier start is here that ended at step 0, and nothing else: no checkpoint, no metrics.

        A start has a status or a log; a config alone may be the user's. A link is something else, too: it leads to a
        disk that the user has chosen.
        """
        names = {path.name for path in self._all_contents()}
        results = (self.checkpoints, self.examples, self.bad_examples, self.figures, self.path / PER_EXAMPLE)
        with suppress(OSError, RunError):
            return (
                all(path.name in names | {"lease"} and not path.is_symlink() for path in self.path.iterdir())
                and not any(entry for folder in results if folder.exists() for entry in folder.iterdir())
                and not any(file.exists() and file.stat().st_size for file in (self.metrics, self.evaluations))
                and (status.read(self.status).step == 0 if self.status.exists() else self.log.exists())
            )
        return False

    @property
    def traces(self) -> Path:
        """Folder of this process's trace: JAX names files by host, which several processes may share."""
        return self.profile / (f"process-{group.index()}" if group.count() > 1 else "")

    def check_complete(self) -> None:
        """Checks at the end of a run that its files are still there.

        Raises:
            DirectoryGone: files were removed, or the directory was moved or removed.
        """
        self.lease.verify()
        missing = [path.name for path in (self.config, self.data, self.metrics) if not path.is_file()]
        if missing:
            raise DirectoryGone(
                f"{self}: removed while the run trained: {', '.join(missing)}. The checkpoints are complete, and each "
                "has the config. Restore the files from a backup, or repeat the run with --fresh."
            )

    def _contents(self) -> tuple[Path, ...]:
        files = (self.config, self.data, self.status, self.stopped, self.metrics, self.goodput, self.plan)
        return (*files, self.log, self.checkpoints, self.tensorboard, self.profile, self.examples, self.bad_examples)

    def _all_contents(self) -> tuple[Path, ...]:
        more = (self.code, self.optimizer, self.evaluations, self.stacks, self.figures)
        names = (PER_EXAMPLE, "lineage.json", "names.json.gz", "report.html")
        return (*self._contents(), *more, *map(self.path.joinpath, names))

    def read_config_text(self) -> str:
        """Returns the resolved config of the run, as `write_config_text` has stored it.

        Raises:
            RunError: the file is missing or cannot be read.
        """
        try:
            return read_text(self.config)
        except FileNotFoundError as error:
            raise RunError(
                f"{self}: is not a run directory, it has no {self.config.name}. "
                f"Give the --workdir of an earlier `convoy train`.{self._neighbours()}"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{self.config}: cannot be read ({getattr(error, 'strerror', error)}).") from error

    def _neighbours(self) -> str:
        """Names the runs in this folder, or beside it if it does not exist; "" if there are none, or in a bucket."""
        if shown(self.path) != str(self.path):
            return ""
        folder = self.path if self.path.is_dir() else self.path.parent
        names = sorted(path.parent.name for path in folder.glob(f"*/{self.config.name}"))
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return f" Runs in {folder}: {', '.join(names[:SHOWN])}{more}." if names else ""

    def write_config_text(self, text: str) -> None:
        """Stores the resolved config; the primary writes it. Raises RunError.

        The first line has the number of settings, since a file that is cut would otherwise mean their defaults.
        """
        if group.is_primary():
            head = "" if text.startswith("#") else f"# {text.count('\n')} settings\n"
            self.lease.replace_text(self.config, head + text)

    def write_data_text(self, text: str) -> None:
        """Stores the description of the datasets; the primary writes it. Raises RunError."""
        if group.is_primary():
            self.lease.replace_text(self.data, text)

    def write_code_text(self, text: str) -> None:
        """Stores the description of the code; the primary calls it. Raises RunError."""
        self.lease.replace_text(self.code, text)

    def write_optimizer_text(self, text: str) -> None:
        """Stores the roles of the parameters; the primary writes it. Raises RunError."""
        if group.is_primary():
            self.lease.replace_text(self.optimizer, text)


def default_workdir(name: str, task: str) -> Path:
    """Returns the run directory used without --workdir: runs/<name of the config>, or of its Task if it has no name."""
    return Path("runs") / (name or task.rpartition(".")[2].lower())


def split_step(run: str) -> tuple[str, int | None]:
    """Returns the run directory and the step of RUN@STEP or RUN/checkpoints/STEP; None as the step of RUN.

    Raises:
        RunError: what follows @ is no number.
    """
    for separator in ("@", "/checkpoints/"):
        path, found, step = run.rstrip("/").rpartition(separator)
        if found and path and step.isdecimal():
            return path, int(step)
    path, found, step = run.rpartition("@")
    if found and not os.path.exists(run) and RunDirectory(path).exists():
        raise RunError(f"{run}: found {step!r} after @. Write the number of a step, or leave out @{step}.")
    return run, None


def cooldown_workdir(path: str, step: int | None) -> str:
    """Returns the directory of a cooldown without --workdir; without a step, it is the same for any checkpoint."""
    return path.rstrip("/") + ("-cooldown" if step is None else f"-cooldown-{step}")


def _move_aside(path: Path) -> Path:
    """Renames a run to the first free `<path>.old-N`; a link is followed, so that the disk stays the same."""
    real = path.resolve()
    number = 1
    while (target := real.with_name(f"{real.name}.old-{number}")).exists():
        number += 1
    try:
        real.rename(target)
    except OSError as error:
        raise RunError(
            f"{path}: the earlier run cannot be moved to {target} ({error.strerror}). "
            "Move it yourself, or choose another directory with --workdir=DIR."
        ) from error
    return target
