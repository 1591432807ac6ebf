"""Sets up JAX's persistent compilation cache, so that the second start of a run compiles nothing.

On CPUs, JAX (0.12) does so for process 0 only: its key of a program differs by process, and no other process writes.

Each kind of machine and release of JAX gets its own folder (`key`): a program that XLA compiled for one CPU may use
instructions that another lacks and would die of SIGILL there, and machines often share a home directory. JAX stores its
entries without a checksum, and most flipped bits in machine code raise no error. So JAX reads and writes the folder
through a class of paths (`CheckedPath`), registered at etils.epath, which adds the checksum.
"""

import contextlib
import hashlib
import os
import platform
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from engine.base.files import HEADER_BYTES, check_header, header_of, read_checked, set_aside, write_checked
from engine.cluster import output

DIRECTORY_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MINIMUM_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
SCHEME = "convoy-cache://"
WRITING_S = 600.0  # a temporary file that is older is that of a killed process
_limits: dict[str, int] = {}  # folder that JAX uses through CheckedPath -> its largest size in bytes
_unwritable: set[str] = set()  # folders for which a warning was printed


def enable(max_gib: float, directory: Path | None = None) -> Path | None:
    """Turns the cache on for all later compilations of this process; devices may already be in use.

    JAX's own settings win: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false and JAX's minimum compile
    time. The size of a folder that the user chose is not limited.

    Args:
        max_gib: size in GiB above which the least recently used programs are deleted.
        directory: parent of the folder named `key()`; None is `convoy/compiled` in the user's cache directory.

    Returns:
        The folder in use. None if the user turned the cache off, or if no folder can be written (with a warning).
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return None
    if MINIMUM_VARIABLE not in os.environ:  # JAX's default of 1 s leaves out the steps of small models
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if chosen := jax.config.jax_compilation_cache_dir:
        if not chosen.startswith(SCHEME):
            _set_folder(chosen, jax.config.jax_compilation_cache_max_size)
        return Path(chosen.removeprefix(SCHEME))
    folder = None
    try:
        folder = (user_directory() / "compiled" if directory is None else Path(directory)) / key()
        # A compiled program is code that will be run, so no other user may write here.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home directory
        reason = error.strerror if isinstance(error, OSError) else error
        warnings.warn(
            f"{folder or 'compile cache'}: cannot be written ({reason}), so every start compiles again. "
            f"Set XDG_CACHE_HOME or {DIRECTORY_VARIABLE} to a writable folder, or set cache.compiled=False.",
            stacklevel=2,
        )
        return None
    _set_folder(str(folder), int(max_gib * 2**30))
    return folder


def _set_folder(folder: str, limit: int) -> None:
    """Lets JAX read and write programs in a folder or bucket through `CheckedPath`; -1 is no limit of the size."""
    import jax
    from etils import epath
    from jax.experimental.compilation_cache import compilation_cache

    if not _limits:
        epath.register_path_cls(SCHEME)(CheckedPath)
    _limits[os.fspath(epath.Path(folder))] = limit
    jax.config.update("jax_compilation_cache_max_size", -1)  # JAX would lock the folder, and evict its own entries only
    # XLA would read this cache of measured kernels for GPUs itself, and it has no checksums either.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", SCHEME + folder)
    compilation_cache.reset_cache()  # JAX remembers the folder in which it has found a program


class CheckedPath:
    """Path of the folder of programs, or of a program in it, as JAX uses them; a program is `NAME.checked`.

    What JAX reads was compared with its checksum. Anything else is set aside, so that JAX compiles the program again.
    """

    def __init__(self, path: str):
        from etils import epath

        self._path = epath.Path(path.removeprefix(SCHEME))  # also in a bucket
        self._content: bytes | None = None

    def joinpath(self, *names: str) -> "CheckedPath":
        return CheckedPath(os.fspath(self._path.joinpath(*names)))

    def __truediv__(self, name: str) -> "CheckedPath":
        return self.joinpath(f"{name}.checked")

    def __str__(self) -> str:
        return os.fspath(self._path)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        self._path.mkdir(mode, parents=parents, exist_ok=exist_ok)

    def exists(self) -> bool:
        """Returns whether there is a program, after reading it."""
        try:
            self._content = self._read()
        except FileNotFoundError:
            return False
        except OSError as error:
            what = "program in the compilation cache, which is compiled again"
            set_aside(self._path, what, error, lambda _, new: self._path.rename(new))
            return False
        with contextlib.suppress(OSError):  # of a bucket, or of a folder that others may only read
            os.utime(self._path)  # for `_evict`
        return True

    def read_bytes(self) -> bytes:
        """Returns the program that `exists` has read."""
        if self._content is None and not self.exists():
            raise FileNotFoundError(str(self))
        assert self._content is not None
        return self._content

    def write_bytes(self, content: bytes) -> int:
        """Stores a program, and deletes the least recently used files above the limit of the folder."""
        folder = os.path.dirname(self._path)
        try:
            if self._is_local:
                write_checked(self._path, content)
                if (limit := _limits.get(folder, -1)) >= 0:
                    _evict(folder, limit)
            else:
                self._path.write_bytes(header_of(self._path, content) + content)
        except OSError as error:
            if folder not in _unwritable:
                _unwritable.add(folder)
                output.show(
                    f"warning: {folder}: cannot be written ({error.strerror or error}), so the next start compiles "
                    f"again. Set {DIRECTORY_VARIABLE} to a writable folder.",
                )
        return len(content)

    @property
    def _is_local(self) -> bool:
        return "://" not in os.fspath(self._path)

    def _read(self) -> bytes:
        if self._is_local:
            return read_checked(self._path)
        stored = self._path.read_bytes()  # a bucket has no pipes
        content = stored[HEADER_BYTES:]
        check_header(self._path, stored[:HEADER_BYTES], content)
        return content


def _evict(folder: str, limit: int) -> None:
    """Deletes the least recently used files until the folder has at most `limit` bytes.

    Several processes may do so at once. Entries of earlier releases and files that were set aside count as well. A
    file that another process may be writing stays.
    """
    files, recent = [], time.time() - WRITING_S
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process has deleted or renamed it
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and not (entry.name.endswith(".tmp") and found.st_mtime > recent):
                    files.append((found, entry.path))
    size = sum(found.st_size for found, _ in files)
    for found, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
        if size <= limit:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        size -= found.st_size


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Turns the cache off in the block, in all threads of this process, also if the user has chosen its folder."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX remembers whether it is on
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def key() -> str:
    """Returns the name of the folder: machine type, hash of the CPU's features, and versions of jax and jaxlib."""
    import jax

    features = hashlib.sha256(" ".join(cpu_features()).encode()).hexdigest()[:12]
    return f"{platform.machine()}-{features}-jax{jax.__version__}-jaxlib{version('jaxlib')}"


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Returns the instruction sets of this CPU, sorted; on systems other than Linux, Python's processor name."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, ARM
            return sorted(set(value.split()))
    return [platform.processor()]


def user_directory() -> Path:
    """Returns the engine's folder in the user's cache directory. Raises RuntimeError if the user has no home."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "convoy"
