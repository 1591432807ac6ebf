"""Runs the coordination of N processes without devices, and counts the requests to the key-value store.

A program that has imported the engine forks N processes, which share its memory: a process costs some 15 MB. Each one
joins, starts, agrees, saves and restores with the code of a real run. Only the arrays are replaced (`_no_arrays`): each
process writes two small files as its part of a state. The requests are counted in `kv_store.observe`.

python -m benchmarks.simulated_processes N FOLDER IDLE writes FOLDER/<process>.json
"""

import dataclasses
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

PHASES = ("join", "start", "agree", "save", "restore", "idle", "leave")
"""What each process does, in this order; in `idle`, only threads poll."""
IDLE_S = 5.0
REAL_TIME, SLOWER = 400, 2.0
"""Most processes that poll in real time, and how much slower the polls of more are for each such number."""
ARRAYS, FACTS = 400, 300
"""Arrays of the state and facts of the consistency check: those of a large model."""
IMPORTED = (
    "encodings.idna", "engine.api.resume", "engine.checkpoint.checkpointer", "engine.checkpoint.tree_compat",
    "engine.cluster.consistency_check", "engine.cluster.joining", "engine.cluster.processes",
    "engine.cluster.signal_thread", "engine.cluster.stop_signal", "engine.config.zoo", "engine.data.dataset_summary",
    "engine.loop.stacks", "engine.loop.watchdog", "engine.run.goodput", "ml_collections", "multiprocessing.connection",
)  # fmt: skip
"""Modules that each process uses. They are imported before the fork, since each would have a copy of them."""
_GROUP, _STORE = ("broadcast", "gather", "scatter"), ("facts",)
_TIMEOUT_S = 540.0
_BARRIER = "before the phase "  # in the topics of barriers of the simulation, which it does not count


@dataclasses.dataclass
class Requests:
    """Requests of one process or of all, by kind: "gather set", or "poll watchdog" if their number depends on time."""

    number: Counter[str] = dataclasses.field(default_factory=Counter)
    values: Counter[str] = dataclasses.field(default_factory=Counter)  # values that the answers contain
    bytes: Counter[str] = dataclasses.field(default_factory=Counter)  # bytes of keys and values, in both directions

    def add(self, kind: str, values: int, size: int) -> None:
        """Counts one request."""
        self.number[kind] += 1
        self.values[kind] += values
        self.bytes[kind] += size

    def __add__(self, other: "Requests") -> "Requests":
        return Requests(self.number + other.number, self.values + other.values, self.bytes + other.bytes)

    def total(self, *, polls: bool) -> tuple[int, int]:
        """Returns the number and bytes of the polls, whose number depends on time, or of all other requests."""
        kinds = [kind for kind in self.number if kind.startswith("poll ") == polls]
        return sum(self.number[kind] for kind in kinds), sum(self.bytes[kind] for kind in kinds)


@dataclasses.dataclass
class Result:
    """What the processes of one simulation did.

    Attributes:
        seconds: duration of each phase, from the first process that enters to the last one that leaves it.
        requests: by phase, of each process in order.
        cpu_s: by phase, processor time of each process in order; process 0 hosts the store.
        memory_mib: private memory of a process other than process 0.
    """

    seconds: dict[str, float]
    requests: dict[str, list[Requests]]
    cpu_s: dict[str, list[float]]
    memory_mib: float

    def all(self, phase: str) -> Requests:
        """Returns the requests of all processes, which process 0 answers."""
        return sum(self.requests[phase], Requests())


def simulate(count: int, folder: Path, idle_s: float = IDLE_S) -> Result:
    """Runs `count` processes, whose files are in `folder`; `idle_s` is the duration of the phase `idle`.

    Raises:
        RuntimeError: a process failed; the text has its output.
    """
    command = [sys.executable, "-m", __spec__.name, str(count), str(folder), str(idle_s)]
    # No thread may run at the fork; numpy's library of linear algebra would start some.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S + 30)
    if done.returncode != 0:
        raise RuntimeError(f"{count} processes: {(done.stdout + done.stderr).strip()[-2000:]}")
    found = [json.loads((folder / f"{index}.json").read_text()) for index in range(count)]
    times = {phase: [one["times"][phase] for one in found] for phase in PHASES}
    return Result(
        seconds={phase: max(end for _, end in t) - min(begin for begin, _ in t) for phase, t in times.items()},
        requests={
            phase: [Requests(*(Counter(part) for part in one["requests"].get(phase, ()))) for one in found]
            for phase in PHASES
        },
        cpu_s={phase: [one["cpu_s"][phase] for one in found] for phase in PHASES},
        memory_mib=found[-1]["memory_mib"],
    )


class _Recorder:
    """Times and requests of this process, by phase."""

    def __init__(self):
        self.phase = ""
        self.times: dict[str, tuple[float, float]] = {}
        self.cpu_s: dict[str, float] = {}
        self.requests: dict[str, Requests] = {}
        self._lock = threading.Lock()

    def observe(self, method: str, arguments: tuple[Any, ...], answer: Any) -> None:
        """Counts a request, as `kv_store.observe` reports it."""
        key = arguments[0] if isinstance(arguments[0], str) else ""
        if _BARRIER in key:
            return
        words = key.removeprefix("convoy/").split("/")
        topic = words[1] if words[0] == "group" else words[0] or "alive"
        name = method.removeprefix("key_value_").removeprefix("blocking_key_value_")
        # A wait is cut into slices: a slice without an answer is a poll.
        exchange = topic in (*_GROUP, *_STORE) and not (name == "get" and answer is None)
        kind = f"{topic} {name}" if exchange else f"poll {topic}"
        sent = sum(len(a) if isinstance(a, str) else 4 * len(a) if isinstance(a, list) else 8 for a in arguments)
        received = sum(len(k) + len(v) for k, v in answer) if name == "dir_get" and answer else len(str(answer or ""))
        values = len(answer) if name == "dir_get" and answer else int(answer is not None)
        with self._lock:
            self.requests.setdefault(self.phase, Requests()).add(kind, values, sent + received)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Counts as one phase what the process does until the next phase begins: threads may outlast the block."""
        self.phase, begin, cpu = phase, time.monotonic(), time.process_time()
        yield
        self.times[phase], self.cpu_s[phase] = (begin, time.monotonic()), time.process_time() - cpu

    def write(self, path: Path) -> None:
        """Writes the file that `simulate` reads."""
        requests = {phase: [r.number, r.values, r.bytes] for phase, r in self.requests.items()}
        found = {"times": self.times, "cpu_s": self.cpu_s, "requests": requests, "memory_mib": _private_mib()}
        path.write_text(json.dumps(found))


def _run(index: int, count: int, port: int, folder: Path, idle_s: float) -> None:
    """The work of one process."""
    from engine.api.resume import Accepted, check_config, check_data
    from engine.base.duration import RunSize
    from engine.checkpoint.checkpointer import build_checkpointer
    from engine.cluster import group, kv_store, processes
    from engine.cluster.cluster_detection import ProcessInfo
    from engine.cluster.consistency_check import check_consistency
    from engine.config.schema import Config
    from engine.config.text import to_text
    from engine.loop.watchdog import Watchdog
    from engine.run.directory import RunDirectory

    recorder, config = _Recorder(), Config()
    kv_store.observe(recorder.observe)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        group.barrier(f"{_BARRIER}{name}", _TIMEOUT_S)
        with recorder.during(name):
            yield

    with recorder.during("join"):
        processes.initialize(ProcessInfo(index, count, f"127.0.0.1:{port}"), timeout_s=_TIMEOUT_S)
    with phase("start"):
        check_consistency({f"engine/module_{i}.py": f"{i:012x}" for i in range(FACTS)}, "start")
        directory = RunDirectory.open(folder / "run")
        check_config(config, directory, Accepted())
        check_consistency({"data: examples": "1000"}, "data")
        check_data({}, directory, Accepted())
        size = RunSize(16, 1000, 100)
        checkpoints = build_checkpointer(config.checkpoint, to_text(config), directory, size, lambda text: None)
        checkpoints.store.restore_latest({})
        group.run_on_primary(checkpoints.store.latest, "the newest checkpoint")
        for program in ("the initial state", "the first step"):  # before each runs first
            group.meet(program)
    watchdog = Watchdog(600.0, 600.0, folder, 1)
    with group.StepAgreement("stop/0", lambda: None) as agreement, watchdog, watchdog.training(0):
        with phase("idle"):
            time.sleep(idle_s)
        with phase("agree"):
            if index == count - 1:
                agreement.request("preempted")
            while not agreement.reached():
                time.sleep(0.1)
    with phase("save"):
        checkpoints.maybe_save(1, {}, {"next_batch": 1}, force=True)
        checkpoints.finish()
    with phase("restore"):
        assert checkpoints.store.restore_latest({}) == ({}, 1)
    directory.close()
    with phase("leave"):
        processes.leave()
    recorder.write(folder / f"{index}.json")


class _NoArrays:
    """Stands in for `Digests`: every process has the digest 1 of each of `ARRAYS` arrays."""

    def __init__(self, abstract_state: object):
        pass

    def matches(self, state: object) -> bool:
        """As that of Digests."""
        return True

    def rows(self, state: object) -> object:
        """As that of Digests."""
        return self

    def partial_sum(self, rows: object) -> Any:
        """As that of Digests."""
        import numpy as np

        return np.full((ARRAYS, 2), 0xFFFFFFFF, np.uint32)

    def texts(self, total: Any) -> dict[str, str]:
        """As that of Digests."""
        return {f"params/layer_{i}/kernel": f"{a:08x}{b:08x}" for i, (a, b) in enumerate(total.tolist())}

    def of(self, state: object) -> Mapping[str, str]:
        """As that of Digests."""
        from engine.cluster import group

        return self.texts(self.partial_sum(None) * group.count())


def _no_arrays() -> None:
    """Replaces all that needs devices: arrays are two small files of each process."""
    from engine.checkpoint import arrays, async_save
    from engine.cluster import group
    from engine.parallel import digest

    def write(folder: Path, state: object, copied: Callable[[], None]) -> None:
        part = folder / f"ocdbt.process_{group.index()}"
        (part / "d").mkdir(parents=True)
        for file in (part / "manifest.ocdbt", part / "d" / f"{group.index():032x}"):
            file.write_bytes(b"\0" * 64)
        copied()

    arrays.copied_on_cpu = lambda state: (True, state)
    arrays.write, arrays.finish = write, lambda folder: None
    arrays.describe, arrays.read = lambda folder: {}, lambda folder, abstract_state, **options: {}
    async_save.read_back = lambda folder, state: None
    digest.Digests = _NoArrays


def _wait_longer() -> None:
    """Tolerates that process 0 answers late, since hundreds of processes share the cores of this machine."""
    from engine.cluster import timeouts

    # The thread that waits for process 0 would wake ten times a second in each process.
    waits = (("COORDINATOR_S", 120.0), ("COORDINATOR_POLL_S", 2.0), ("HEARTBEAT_S", 240), ("JOIN_JAX_S", 300.0))
    for name, seconds in waits:
        setattr(timeouts, name, seconds)


def dilation(count: int) -> float:
    """Returns how many times less often than in a real run the processes poll, and how much longer they are idle.

    A poll takes 1 ms of processor time, most of it of the process that asks. The 1,850 polls a second of 1,000
    processes would need 1.9 cores. On two cores nothing else would run, and JAX's heartbeats would get no answer.
    """
    return 1.0 if count <= REAL_TIME else SLOWER * count / REAL_TIME


def _poll_less_often(factor: float) -> None:
    """Makes all polls of the engine `factor` times as far apart."""
    from engine.cluster import kv_store

    period = kv_store.poll_period
    kv_store.poll_period = lambda *arguments: factor * period(*arguments)


def _private_mib() -> float:
    """Returns the memory of this process that no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _fork(run: Callable[[], None]) -> int:
    """Starts a process that calls `run`; returns its pid."""
    if (pid := os.fork()) != 0:
        return pid
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def main(count: int, folder: Path, idle_s: float) -> NoReturn:
    """Forks the processes and waits for them; ends all of them if one fails."""

    for name in IMPORTED:
        importlib.import_module(name)
    _no_arrays()
    _wait_longer()
    _poll_less_often(factor := dilation(count))
    gc.collect()
    gc.freeze()  # a collection would otherwise write to the pages of all objects, and so copy them into each process
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of a process with threads may hang"
    port, running = _free_port(), set[int]()
    for index in range(count):
        running.add(_fork(functools.partial(_run, index, count, port, folder, factor * idle_s)))
    signal.signal(signal.SIGALRM, lambda *_: _end(running))
    signal.alarm(int(_TIMEOUT_S))
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status != 0:
            print(f"process {pid} ended with status {status}", file=sys.stderr)
            _end(running)
    sys.exit(0)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _end(running: set[int]) -> NoReturn:
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
