"""Compiled programs that stay on disk between runs, so that the second start of a run compiles nothing.

Owns: where JAX's persistent compilation cache lies, its key and its bounds. Does not own: what is compiled, or the
cache's files, which are JAX's: it locks them for concurrent runs and drops the least recently used.

Terms. *Key*: name of the folder of one kind of machine and one release of JAX. A program that XLA made for the CPU of
one machine may hold instructions that another lacks, where it would die of SIGILL; a home directory is often shared
by many kinds.
"""

import hashlib
import os
import platform
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

DIRECTORY_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MINIMUM_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def enable(max_gib: float, directory: Path | None = None) -> Path | None:
    """Turns the cache on for what this process compiles from now on; devices may be in use already.

    What the user set for JAX itself (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false, JAX's minimum of
    seconds) wins; a folder of the user's own is not bounded.

    Args:
        max_gib: size in GiB beyond which the least recently used programs go.
        directory: under which the folder of the key is made; None is `convoy/compiled` in the user's cache directory.

    Returns:
        The folder in use, or None where there is no cache: turned off by the user, or no folder can be written,
        which a warning says.
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return None
    if MINIMUM_VARIABLE not in os.environ:  # JAX keeps what took a second by default; a small model's step takes less
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    folder = None
    try:
        folder = (_user_directory() if directory is None else Path(directory)) / key()
        # A compiled program is code that will be run: nobody else may write here.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home directory
        reason = error.strerror if isinstance(error, OSError) else error
        warnings.warn(
            f"{folder or 'compile cache'}: cannot be written ({reason}), so every start compiles anew. "
            f"Set XDG_CACHE_HOME or {DIRECTORY_VARIABLE} to a folder that can be, or cache.compiled=False.",
            stacklevel=2,
        )
        return None
    jax.config.update("jax_compilation_cache_max_size", int(max_gib * 2**30))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def key() -> str:
    """The name of the folder: machine, hash of its CPU's features, releases of jax and jaxlib."""
    import jax

    features = hashlib.sha256(" ".join(cpu_features()).encode()).hexdigest()[:12]
    return f"{platform.machine()}-{features}-jax{jax.__version__}-jaxlib{version('jaxlib')}"


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The instruction sets of this CPU, sorted; elsewhere than on Linux, what Python knows of the processor."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, ARM
            return sorted(set(value.split()))
    return [platform.processor()]


def _user_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "convoy" / "compiled"
