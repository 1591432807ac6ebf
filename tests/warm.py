"""Starts Python programs as forks of a process that has imported JAX and Flax: half of the CPU time of a short run.

A fork is a process like any other: it has its own pid, group, session, environment (also in /proc), folder, streams,
signals and exit. It shares with the other forks only the modules of `LIBRARIES` and `ENGINE`, as they are after their
import, and the seed of Python's hashes. `convoy launch` and `convoy supervise` fork their processes in the same way;
these import the engine anew, since the launcher has used it.
"""

import atexit
import contextlib
import ctypes
import gc
import glob
import importlib
import io
import itertools
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from engine.cli import huge_pages

LIBRARIES = (
    *("asyncio", "concurrent.futures.thread", "logging.handlers", "multiprocessing.spawn", "urllib.request", "uuid"),
    *("numpy", "jax", "jax.experimental.multihost_utils", "jax.experimental.serialize_executable", "flax.nnx"),
    *("grain", "optax", "optax.contrib", "orbax.checkpoint", "safetensors.numpy"),
)
"""What the server imports. A program that must not import one of them is no program for a fork."""
ENGINE = ("engine.cli.train", "engine.api.train", "engine.loop.trainer")
"""Modules of the engine that the server imports, with what they import, where the tests have them."""
SHADOWED = {name.partition(".")[0] for name in LIBRARIES} | {"engine", "jaxlib", "sitecustomize", "usercustomize"}
JAX: dict[str, Callable[[str], Any]] = {
    "JAX_COMPILATION_CACHE_DIR": str,
    "JAX_DISABLE_MOST_OPTIMIZATIONS": lambda text: text == "1",
    "JAX_NUM_CPU_DEVICES": int,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": float,
    "JAX_PLATFORMS": str,
}
"""Variables that JAX has read before a fork begins, and how each is read."""
OTHERS = {
    *("COLUMNS", "PYTEST_CURRENT_TEST", "PYTHONPATH", "PYTHONUNBUFFERED", "TERM", "TMPDIR", "XDG_CACHE_HOME"),
    *("RAY_ADDRESS", "SLURM_CONF"),  # read when the engine uses a cluster
    "XLA_PYTHON_CLIENT_PREALLOCATE",  # read when GPUs start
}
"""Further variables that may differ in a fork, as those of the engine and of buckets may."""
PRELOAD = "LD_PRELOAD"  # each library that it names has a server of its own
ROOM = "WARM_ROOM"  # a variable of the server in whose place forks write their environment
REPOSITORY = {"benchmarks", "configs", "engine", "models", "tests"}

_environment: dict[str, str] = {}  # with which the server has started
_added: dict[str, str] = {}  # variables that the libraries have set
_libraries: set[str] = set()  # names of the packages that a fork does not import anew
_engine: set[str] = set()  # names of the modules of the engine that a fork does not import anew
_at_exit: list[Callable[..., object]] = []  # callbacks of a launcher, which its forks must not call
_left: list[object] = []  # what a fork does not use any more, but must not free: that would close its descriptors


class Popen(subprocess.Popen):
    """A `subprocess.Popen` for the server and for launchers: a Python program continues in the new process."""

    def __init__(self, args: Any, *, launches: bool = False, **settings: Any):
        env = settings.get("env") or dict(os.environ)
        if can_fork(args, env):
            first, kept = settings.get("preexec_fn"), settings.get("pass_fds", ())
            settings["preexec_fn"] = lambda: _become(args, env, first, kept, launches)
        super().__init__(args, **settings)


class Process:
    """A fork of the server, with the methods of `subprocess.Popen` that tests use.

    Args:
        args: `[sys.executable, "-m" or "-c", ...]`.
        env: the whole environment.
        streams: descriptors for its standard input, output and error.
        stdout, stderr: what to read from its streams, where they are pipes.
        settings: "cwd" and "start_new_session", as for `subprocess.Popen`.

    Raises:
        OSError: it was not started, with the reason.
    """

    def __init__(
        self,
        args: Sequence[str],
        env: Mapping[str, str],
        streams: Sequence[int],
        stdout: IO[str] | None = None,
        stderr: IO[str] | None = None,
        **settings: Any,
    ):
        self.args, self.stdout, self.stderr = list(args), stdout, stderr
        self.returncode: int | None = None
        self._answers, theirs = socket.socketpair()
        self._received = b""
        with theirs:
            socket.send_fds(_control(env.get(PRELOAD, "")), [b"+"], [theirs.fileno(), *streams])
        self._answers.sendall(json.dumps([self.args, dict(env), settings]).encode() + b"\n")
        answer = self._line(None)
        if not answer.isdecimal():
            raise OSError(answer)
        self.pid = int(answer)

    def poll(self) -> int | None:
        """Returns the exit code, minus the signal for a killed process, or None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self.returncode = int(self._line(timeout))
            self._answers.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Reads the streams to their ends, waits for the end, and returns both. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        texts = ["", ""]

        def read(index: int, stream: IO[str] | None) -> None:
            if stream and not stream.closed:
                with stream:
                    texts[index] = stream.read()

        threads = [threading.Thread(target=read, args=found) for found in enumerate((self.stdout, self.stderr))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _line(self, timeout: float | None) -> str:
        while b"\n" not in self._received:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            if not (data := self._answers.recv(1 << 12)):
                raise OSError("the server of tests/warm.py has ended; its error is above")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()


def can_fork(args: Any, env: Mapping[str, str]) -> bool:
    """Whether a fork of the server can be the program that `args` and the whole environment `env` start."""
    if not sys.platform.startswith("linux") or not isinstance(args, list) or len(args) < 3:
        return False
    own = {**(_environment or os.environ), **_tunables()}  # which the server has or will have
    env = {**_tunables(), **env}
    names = {name for name in {*env, *own} if env.get(name) not in (own.get(name), _added.get(name))}
    if _environment.get(PRELOAD) is None and os.path.exists(env.get(PRELOAD, "")):
        names.discard(PRELOAD)
    fits = all(name in env if name in JAX else name in OTHERS or name.startswith(("AWS_", "CONVOY_")) for name in names)
    added = set(_folders(env)) - set(_folders(own))  # which must not change the libraries or the start of Python
    fits = fits and not any(glob.glob(f"{folder}/{name}*") for folder in added for name in SHADOWED)
    return args[0] == sys.executable and args[1] in ("-m", "-c") and fits


def _tunables() -> dict[str, str]:
    """Returns the variable that the engine sets when it restarts a program with huge pages, where it does so."""
    with contextlib.suppress(OSError), open(huge_pages.KERNEL_SETTING) as file:
        if huge_pages.needs_restart(file.read(), ""):
            return {huge_pages.VARIABLE: f"{huge_pages.TUNABLE}=1"}
    return {}


_servers: dict[str, socket.socket] = {}  # library that is loaded before all others, or "" -> connection


def _control(preload: str) -> socket.socket:
    """Returns the connection to a server, which ends with this process; starts it for the first program."""
    if preload not in _servers:
        ours, theirs = socket.socketpair()
        _environment.update({**os.environ, **_tunables()})
        room = "x" * (sum(len(name) + len(value) + 2 for name, value in _environment.items()) + (1 << 14))
        words = [sys.executable, "-m", __name__, str(theirs.fileno())]
        env = {ROOM: room, **_environment, **({PRELOAD: preload} if preload else {})}
        with theirs:
            server = subprocess.Popen(words, env=env, pass_fds=[theirs.fileno()], stdin=-3)
        _servers[preload] = ours
        atexit.register(lambda: (ours.close(), server.wait()))
    return _servers[preload]


def serve(control: socket.socket) -> None:
    """Starts a program for each message on `control`, and tells its exit code, until the other end is closed."""
    del os.environ[ROOM]
    atexit.register(_keep_libraries)  # the first one is called last
    _environment.update(os.environ)
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in ENGINE:
        with contextlib.suppress(ModuleNotFoundError):  # Bazel gives tests of lower packages a part of the engine
            importlib.import_module(name)
    _engine.update(name for name in sys.modules if name.partition(".")[0] == "engine")
    _added.update({name: value for name, value in os.environ.items() if name not in _environment})
    _libraries.update({name.partition(".")[0] for name in sys.modules} - {"__main__", *REPOSITORY})
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the memory of all these objects
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    data, descriptors, *_ = socket.recv_fds(control, 1, 4)
                    if not data:
                        return
                    answers = socket.socket(fileno=descriptors[0])
                    if process := _start(answers, descriptors[1:]):
                        selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ, (process, answers))
                else:
                    process, answers = key.data
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    with answers, contextlib.suppress(BrokenPipeError):
                        answers.sendall(b"%d\n" % process.wait())


def _start(answers: socket.socket, streams: Sequence[int]) -> Popen | None:
    """Starts the program that a message describes, and answers with its pid or with the reason why it cannot."""
    with answers.makefile("rb") as file:
        args, env, settings = json.loads(file.readline())
    stdin, stdout, stderr = streams
    try:
        process = Popen(args, env=env, stdin=stdin, stdout=stdout, stderr=stderr, **settings)
    except OSError as error:
        with answers:
            answers.sendall(f"{error}\n".encode())
        return None
    finally:
        for descriptor in streams:
            os.close(descriptor)
    answers.sendall(b"%d\n" % process.pid)
    return process


def _become(
    args: Sequence[str],
    env: Mapping[str, str],
    first: Callable[[], object] | None,
    kept: Sequence[int],
    launches: bool,
) -> None:
    """Makes a new process the program that `args` and `env` start, as `execve` does, and runs it to its end."""
    code = 1
    try:
        if first:
            first()
        _forget(kept)
        _set_environment(env)
        _open_streams(unbuffered=bool(env.get("PYTHONUNBUFFERED")))
        if launches:
            _let_launch()
        code = _run(args[1], args[2], args[3:])
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):  # Python ends itself with the signal
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        ctypes.pythonapi.Py_Exit(ctypes.c_int(code))  # waits for threads, calls the callbacks, as at the end of Python


def _forget(kept: Sequence[int]) -> None:
    """Drops what belongs to the process from which this one was forked."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python when it starts; subprocess restores them
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    for function in _at_exit:
        atexit.unregister(function)
    kept_modules = _libraries | {"__main__"}
    own = [name for name in sys.modules if name.partition(".")[0] not in kept_modules and name not in _engine]
    _left.extend([sys.stdin, sys.stdout, sys.stderr, *(sys.modules.pop(name) for name in own)])
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_left))
    bounds = [2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]
    for low, high in itertools.pairwise(bounds):
        os.closerange(low + 1, high)
    gc.enable()  # `subprocess` has disabled it


def _keep_libraries() -> None:
    """Lets the end of Python not free the modules of the libraries, which took a fork a tenth of a second."""
    own = _libraries - sys.stdlib_module_names
    _left.extend([sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] in own])


def _set_environment(env: Mapping[str, str]) -> None:
    """Sets the variables, and what JAX and Python have read from them; /proc shows them too."""
    former = _folders(os.environ)
    os.environ.clear()
    os.environ.update({**_added, **_tunables(), **env})
    libraries = [folder for folder in sys.path[1:] if folder not in former]
    sys.path[:] = [os.getcwd(), *dict.fromkeys(_folders(os.environ) + libraries)]
    importlib.invalidate_caches()
    tempfile.tempdir = None
    import jax

    for name in JAX.keys() & os.environ.keys():
        jax.config.update(name.lower(), JAX[name](os.environ[name]))
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47:49])
    text = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in os.environ.items())
    if len(text) > end - begin:
        raise ValueError("the variables of a program need more room than those of the server of tests/warm.py have")
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def _folders(environment: Mapping[str, str]) -> list[str]:
    return [os.path.abspath(folder) for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]


def _open_streams(unbuffered: bool) -> None:
    """Opens the standard streams of Python."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        raw = io.FileIO(number, "w" if number else "r", closefd=False)
        raw.name = f"<{name}>"
        buffer = io.BufferedReader(raw) if number == 0 else raw if unbuffered else io.BufferedWriter(raw)
        lines = number == 2 or raw.isatty()
        errors = "backslashreplace" if number == 2 else "strict"
        stream = io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=lines, write_through=unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _let_launch() -> None:
    """Makes the processes that this one starts forks of it, which import the engine anew."""
    _engine.clear()
    register = atexit.register

    def recorded(function: Callable[..., object], *args: Any, **settings: Any) -> Callable[..., object]:
        _at_exit.append(function)
        return register(function, *args, **settings)

    atexit.register = recorded
    subprocess.Popen = Popen


def _run(kind: str, text: str, words: Sequence[str]) -> int:
    """Runs a program and returns its exit code."""
    sys.orig_argv[:] = [sys.executable, kind, text, *words]
    sys.argv[:] = [kind, *words]
    try:
        if kind == "-m":
            runpy.run_module(text, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = ""
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(text, "<string>", "exec"), main.__dict__)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code & 0xFF if isinstance(error.code, int) else bool(error.code)
    return 0


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
