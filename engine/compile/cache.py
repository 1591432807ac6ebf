"""Sets up JAX's persistent compilation cache, so that the second start of a run compiles nothing.

Each kind of machine and release of JAX gets its own folder (`key`): a program that XLA compiled for one CPU may use
instructions that another lacks and would die of SIGILL there, and machines often share a home directory. JAX locks the
files for concurrent runs and deletes the least recently used.
"""

import contextlib
import hashlib
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

DIRECTORY_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MINIMUM_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


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
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
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
    jax.config.update("jax_compilation_cache_max_size", int(max_gib * 2**30))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


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
