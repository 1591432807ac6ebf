"""What a process may use of this host (cores, memory), its garbage collector, killed processes, and marks of processes.

The limit of the memory is that of the machine or of a control group (cgroup, version 1 or 2), such as that of a
container or a Slurm job. It includes swap space. Only Linux states these numbers.
"""

import gc
import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from engine.base.errors import ConfigError
from engine.base.formatting import size_text

# Measured with jax 0.12 on CPUs, a run of a linear model: 1.64 GiB with 2 cores, 1.69 with 4 CPU devices and 1.81 with
# 8. JAX starts four threads for each core or device, and a thread reserves 8 MiB for its stack.
JAX_BYTES, JAX_BYTES_PER_CORE = 1650 << 20, 32 << 20
_STATISTICS = Path("/proc/stat")
# Imports and tracing make some 300,000 objects that stay: the usual thresholds cost 12 % of the time of the imports.
_RARELY = (100_000, 20, 100)
_usual: list[tuple[int, int, int]] = []  # thresholds of the garbage collector before `collect_rarely`


def collect_rarely() -> None:
    """Lets Python collect garbage rarely while a program starts, until `collect_as_usual`."""
    if not _usual:
        _usual.append(gc.get_threshold())
        gc.set_threshold(*_RARELY)


def collect_as_usual() -> None:
    """Ends `collect_rarely`; does nothing without it."""
    while _usual:
        gc.set_threshold(*_usual.pop())


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_seconds() -> float | None:
    """Returns the seconds that the usable cores have been idle since the start of the system, added up over them.

    None if the system does not state them. Cores that only wait for storage count as idle.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    try:
        lines = [line.split() for line in _STATISTICS.read_text().splitlines()]
        ticks = [int(words[4]) + int(words[5]) for words in lines if words and words[0] in {f"cpu{n}" for n in usable}]
    except (OSError, ValueError, IndexError):
        return None
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


ADVICE = "a smaller train.global_batch_size, evaluations.NAME.batch_size, data.prefetch or data.workers"
"""Settings that need less host memory, for error texts."""

_MEMORY_INFO = Path("/proc/meminfo")
_VM_STATISTICS = Path("/proc/vmstat")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class HostMemory:
    """The memory that this process and the others of its control group may use together."""

    bytes: int
    container: bool
    """Whether it is the limit of a control group, and not the memory of the machine."""

    def __str__(self) -> str:
        return f"{self.bytes / 2**30:.1f} GiB ({'the limit of this container' if self.container else 'this machine'})"


def host_memory() -> HostMemory | None:
    """Returns the smallest limit that applies to this process; None if the system does not state it."""
    info = _read_table(_MEMORY_INFO)
    if "MemTotal:" not in info:
        return None
    swap = info.get("SwapTotal:", 0) * 1024
    limits = [HostMemory(info["MemTotal:"] * 1024 + swap, container=False)]
    for group, version in _groups():
        limits += [HostMemory(limit, container=True) for limit in _limits(group, version, swap)]
    return min(limits, key=lambda limit: limit.bytes)


def virtual_memory_limit() -> int | None:
    """Returns the limit of the virtual memory of this process in bytes (`ulimit -v`); None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def check_virtual_memory() -> None:
    """Raises ConfigError if `ulimit -v` is too low for JAX, whose libraries and threads would crash the process."""
    limit, cores = virtual_memory_limit(), usable_cores()
    needed = JAX_BYTES + JAX_BYTES_PER_CORE * cores
    if limit is not None and limit < needed:
        raise ConfigError(
            f"ulimit -v: the limit of virtual memory is {size_text(limit)}, and JAX needs {size_text(needed)} with "
            f"{cores} core{'s' if cores > 1 else ''} before its first array, most of it only reserved. Remove the "
            "limit (ulimit -v unlimited). A control group or a container limits the memory that is really used."
        )


def free_share() -> float:
    """Returns the free share of the memory that this process may use, 0 to 1; 1 if the system does not state it.

    Memory that only caches files counts as free.
    """
    info = _read_table(_MEMORY_INFO)
    shares = [1.0]
    if info.get("MemTotal:") and "MemAvailable:" in info:
        shares.append(info["MemAvailable:"] / info["MemTotal:"])
    for group, version in _groups():
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (_read_number(group / name) for name in names)
        if limit and used:
            cached = _read_table(group / "memory.stat").get(
                "inactive_file" if version == 2 else "total_inactive_file", 0
            )
            shares.append(1 - (used[0] - cached) / max(1, limit[0]))
    return max(0.0, min(shares))


def oom_kills() -> int:
    """Returns how many processes the kernel has killed for lack of memory; 0 if unknown.

    They are those of this process's control group, or of the machine if that has no count.
    """
    for group, version in _groups():
        found = _read_table(group / ("memory.events" if version == 2 else "memory.oom_control"))
        if "oom_kill" in found:
            return found["oom_kill"]
    return _read_table(_VM_STATISTICS).get("oom_kill", 0)


def _groups() -> Iterator[tuple[Path, int]]:
    """Yields the folder and the version of each control group with this process in it, the innermost first."""
    try:
        lines = [line.split(":", 2) for line in _OWN_CGROUP.read_text().splitlines()]
    except OSError:
        return
    for fields in lines:
        if len(fields) == 3 and ("memory" in fields[1].split(",") or not fields[1]):
            version, root = (1, _CGROUP_ROOT / "memory") if fields[1] else (2, _CGROUP_ROOT)
            inner = root / fields[2].strip("/")
            # A container may see the path that its group has on the host, but only its own group, as the root.
            yield from ((group, version) for group in (inner, *inner.parents) if group.is_relative_to(root))


def _limits(group: Path, version: int, swap: int) -> Iterator[int]:
    """Yields the limits of a control group on its memory and swap space together, in bytes."""
    if version == 1:
        yield from _read_number(group / "memory.memsw.limit_in_bytes")
        yield from (limit + swap for limit in _read_number(group / "memory.limit_in_bytes"))
    else:
        own_swap = min([swap, *_read_number(group / "memory.swap.max")])
        yield from (limit + own_swap for limit in _read_number(group / "memory.max"))


def _read_number(file: Path) -> list[int]:
    """Returns the number in a file as a list; an empty list if there is none, such as for "max"."""
    try:
        return [int(file.read_text())]
    except (OSError, ValueError):
        return []


def _read_table(file: Path) -> dict[str, int]:
    """Returns the lines `name number` of a file; an empty dict if it cannot be read."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
        return {words[0]: int(words[1]) for words in lines if len(words) > 1}
    except (OSError, ValueError):
        return {}


HOST_NAMESPACE = "pid:[4026531836]"  # outside of containers; the number is a constant of Linux (PROC_PID_INIT_INO)


def process_mark() -> str:
    """Returns a word for file names that identifies this process on all hosts: machine, boot, pid and start."""
    pid = os.getpid()
    machine = f"{socket.gethostname()} {machine_id()} {pid_namespace()}"
    return f"{crc32(machine.encode()):08x}-{crc32(boot_id().encode()):08x}-{pid}-{start_ticks(pid) or ''}"


def has_ended(mark: str) -> bool:
    """Whether a process has certainly ended; False for one on another machine or in another container."""
    (machine, boot, pid, ticks), here = mark.split("-"), process_mark().split("-")
    if machine != here[0]:
        return False
    if boot != here[1]:  # outside of containers, another boot id means that this machine has rebooted
        return bool(machine_id()) and pid_namespace() == HOST_NAMESPACE
    if not pid_exists(int(pid)):
        return True
    started = start_ticks(int(pid))
    return started is not None and bool(ticks) and started != ticks


def pid_exists(pid: int) -> bool:
    """Whether a process has this pid, be it a zombie."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # the process of another user
        pass
    return True


def boot_id() -> str:
    """Returns Linux's id of this boot; "" on other systems."""
    return _text("/proc/sys/kernel/random/boot_id")


def start_ticks(pid: int) -> str | None:
    """Returns the ticks from the boot to the start of a process; "" for a zombie, None if it is not known."""
    stat = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()  # a name may contain spaces and brackets
    if len(stat) < 20:
        return None
    state, started = stat[0], stat[19]
    return "" if state in "ZX" else started


def machine_id() -> str:
    """Returns the id of this installation of an operating system; "" if it has none."""
    return _text("/etc/machine-id")


def pid_namespace() -> str:
    """Returns the name of the namespace that pids count in, such as that of a container; "" if unknown."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
