"""Who this process is, read from the variables that its scheduler sets.

The first that applies decides: flags, CONVOY_*, Kubeflow's JAX_*, JobSet (xpk too), SkyPilot, torchrun, Slurm, Open
MPI, TPU hosts, what JAX itself detects, a single process. Where a flag or a CONVOY_* variable gives only some of
coordinator, count and index, the scheduler gives the rest.
"""

import os
import re
import socket
import subprocess
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.config.errors import ConfigError

PORT = 8476  # of the coordinator where a scheduler names none
FLAGS = {"coordinator": "--coordinator", "count": "--num-processes", "index": "--process-id"}
VARIABLES = {
    "coordinator": "CONVOY_COORDINATOR",
    "count": "CONVOY_NUM_PROCESSES",
    "index": "CONVOY_PROCESS_ID",
}
_WANTED = {"coordinator": "HOST:PORT of process 0", "count": "their number", "index": "0 to their number - 1"}

Environment = Mapping[str, str]
Setting = tuple[str, str]  # where it was read, and the value
Settings = dict[str, Setting]  # "coordinator", "count", "index" and, of several processes on a host, "local"


@dataclass(frozen=True)
class Processes:
    """One process among `count`; by default it is the only one."""

    index: int = 0
    count: int = 1
    coordinator: str = ""  # HOST:PORT at which process 0 listens
    local_devices: tuple[int, ...] | None = None  # of this host, where its processes share them; None: all
    detected: bool = False  # JAX detects the rest by itself


@dataclass(frozen=True)
class Decision:
    """Who this process is, and from what that was decided."""

    who: Processes
    by: str  # the scheduler, or the reason for a single process
    read: tuple[str, ...] = ()  # flags and variables
    notes: tuple[str, ...] = ()  # warnings for the user

    def __str__(self) -> str:
        who = self.who
        if who.detected:
            return f"processes: as JAX detects them ({self.by})"
        if who.count == 1:
            return f"processes: one ({self.by})"
        devices = "" if who.local_devices is None else f", local devices {', '.join(map(str, who.local_devices))}"
        read = f": {', '.join(self.read)}" if self.read else ""
        return f"processes: {who.index} of {who.count}, coordinator {who.coordinator}{devices} ({self.by}{read})"


def resolve(flags: Mapping[str, str | None] | None = None, environment: Environment = os.environ) -> Decision:
    """Returns who this process is.

    Args:
        flags: "coordinator", "count" and "index" of the command line; each wins over its variable.
        environment: the variables; empty ones count as unset.

    Raises:
        ConfigError: some of the three are missing, or one is not what it must be.
    """
    environment = {name: value for name, value in environment.items() if value}
    explicit = _explicit(flags or {}, environment)
    name, found = "flags and CONVOY_*", {}
    if len(explicit) < len(VARIABLES):
        for scheme, read in SCHEMES.items():
            if settings := read(environment):
                name, found = (f"{scheme} and {name}" if explicit else scheme), settings
                break
    if not explicit and not found:
        return _alone(environment)
    settings = {**found, **explicit}
    if missing := [setting for setting in VARIABLES if setting not in settings]:
        raise ConfigError(
            f"several processes: found {', '.join(f'{where}={value}' for where, value in settings.values())}, but not "
            f"{' and '.join(f'{FLAGS[name]} or {VARIABLES[name]} ({_WANTED[name]})' for name in missing)}. "
            "Give all three, or none for a single process."
        )
    who = _checked(settings)
    read = tuple(dict.fromkeys(where for where, _ in settings.values()))
    return Decision(who, name, read, tuple(_proxy_notes(who, environment)))


def _explicit(flags: Mapping[str, str | None], environment: Environment) -> Settings:
    found: Settings = {}
    for name, variable in VARIABLES.items():
        if (value := flags.get(name)) is not None:
            found[name] = (FLAGS[name], value)
        elif variable in environment:
            found[name] = (variable, environment[variable])
    return found


def _checked(settings: Settings) -> Processes:
    count = _integer(*settings["count"], least=1, allowed="a number of processes from 1")
    allowed = f"0 to {count - 1}, as there are {settings['count'][0]}={count} processes"
    index = _integer(*settings["index"], least=0, allowed=allowed)
    if index >= count:
        raise ConfigError(f"{settings['index'][0]} = {index}: allowed is {allowed}. Each process has its own.")
    address(*settings["coordinator"])
    local = None
    if "local" in settings:
        local = (_integer(*settings["local"], least=0, allowed="the number of this process on its host"),)
    return Processes(index, count, settings["coordinator"][1], local)


def _integer(where: str, text: str, *, least: int, allowed: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise ConfigError(f"{where} = {text!r}: allowed is {allowed}. Give a whole number.")
    return int(text)


def address(where: str, text: str) -> tuple[str, int]:
    """Returns (host, port) of `HOST:PORT` or `[IPv6]:PORT`. Raises ConfigError, which names `where`."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%]+)\]|([^:\s\[\]/]+)):(\d+)", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ConfigError(
            f"{where} = {text!r}: allowed is HOST:PORT with a port from 1 to 65535, as 10.0.0.1:8476. "
            "It is the address of process 0, the same in every process."
        )
    return match[1] or match[2], int(match[3])


def _take(environment: Environment, **names: str) -> Settings:
    """Returns the settings whose variables are set."""
    return {setting: (name, environment[name]) for setting, name in names.items() if name in environment}


def _kubeflow(env: Environment) -> Settings:
    """Kubeflow's Trainer (JAX_*), and its older JAXJob, which has the same names without the prefix."""
    for prefix in ("JAX_", ""):
        found = _take(env, count=f"{prefix}NUM_PROCESSES", index=f"{prefix}PROCESS_ID")
        host, port = f"{prefix}COORDINATOR_ADDRESS", f"{prefix}COORDINATOR_PORT"
        if len(found) == 2 and host in env:
            return found | {"coordinator": (host, _with_port(env[host], env.get(port, PORT)))}
    return {}


def _jobset(env: Environment) -> Settings:
    """A JobSet, whose jobs are numbered over the whole set and whose pods over their job; xpk sets the same."""
    if "JOB_COMPLETION_INDEX" not in env:
        return {}
    pods = next((name for name in ("PODS_PER_JOB", "PROCESSES_IN_JOB") if name in env), None)
    job = next((name for name in ("JOB_GLOBAL_INDEX", "JOB_INDEX") if name in env), None)
    if "NNODES" in env and "NODE_RANK" in env:
        found = _take(env, count="NNODES", index="NODE_RANK")
    elif pods and job and all(env[name].isdecimal() for name in (pods, job, "JOB_COMPLETION_INDEX")):
        index = int(env[job]) * int(env[pods]) + int(env["JOB_COMPLETION_INDEX"])
        found = {"index": (f"{job} x {pods} + JOB_COMPLETION_INDEX", str(index))}
        if "JAX_PROCESS_COUNT" in env:
            found |= _take(env, count="JAX_PROCESS_COUNT")
        elif env.get("JOBS", "").isdecimal():
            found |= {"count": (f"JOBS x {pods}", str(int(env["JOBS"]) * int(env[pods])))}
    else:
        return {}
    port = env.get("JAX_COORDINATOR_PORT", PORT)
    if "JAX_COORDINATOR_ADDRESS" in env:
        host = env["JAX_COORDINATOR_ADDRESS"]
        return found | {"coordinator": ("JAX_COORDINATOR_ADDRESS", _with_port(host, port))}
    if "JOBSET_NAME" in env and "REPLICATED_JOB_NAME" in env:
        name = env["JOBSET_NAME"]
        host = f"{name}-{env['REPLICATED_JOB_NAME']}-0-0.{name}"  # the first pod, by the name that JobSet gives it
        return found | {"coordinator": ("JOBSET_NAME, REPLICATED_JOB_NAME", _with_port(host, port))}
    return found


def _skypilot(env: Environment) -> Settings:
    found = _take(env, count="SKYPILOT_NUM_NODES", index="SKYPILOT_NODE_RANK")
    hosts = env.get("SKYPILOT_NODE_IPS", "").split()
    if len(found) < 2 or not hosts:
        return {}
    return found | {"coordinator": ("SKYPILOT_NODE_IPS", _with_port(hosts[0], PORT))}


def _torchrun(env: Environment) -> Settings:
    """torchrun listens at MASTER_PORT itself, so the next port is ours."""
    found = _take(env, count="WORLD_SIZE", index="RANK")
    if len(found) < 2 or "MASTER_ADDR" not in env:
        return {}
    port = int(env["MASTER_PORT"]) + 1 if env.get("MASTER_PORT", "").isdecimal() else PORT
    found["coordinator"] = ("MASTER_ADDR", _with_port(env["MASTER_ADDR"], port))
    return found | _local(env, "LOCAL_WORLD_SIZE", "LOCAL_RANK")


def _slurm(env: Environment) -> Settings:
    """A task of srun; a shell in an allocation has a part of these variables and is a single process."""
    wanted = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if any(name not in env for name in wanted):
        return {}
    found = _take(env, count="SLURM_NTASKS", index="SLURM_PROCID")
    step = env.get("SLURM_STEP_ID", "0")
    port = _port_of(f"{env['SLURM_JOB_ID']}.{step}")  # steps of a job may run at once
    host = _slurm_address(first_host(env["SLURM_STEP_NODELIST"]))
    found["coordinator"] = ("SLURM_STEP_NODELIST", _with_port(host, port))
    tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1")))
    return found | _local({**env, "_TASKS": tasks[0] if tasks else "1"}, "_TASKS", "SLURM_LOCALID")


def first_host(nodes: str) -> str:
    """Returns the first of Slurm's node list: "gpu1" of "gpu[1-4,7],cpu2"; leading zeros stay."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?", nodes)
    return nodes if match is None else match[1] + (match[2] or "")


def _slurm_address(node: str) -> str:
    """Returns Slurm's name of a node, or the address that Slurm has for it where the name does not resolve."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        shown = subprocess.run(["scontrol", "show", "node", node], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return node
    match = re.search(r"NodeAddr=(\S+)", shown)
    return match[1] if match else node


def _open_mpi(env: Environment) -> Settings:
    """A process of mpirun; rank 0 is assumed to run on the host of mpirun."""
    found = _take(env, count="OMPI_COMM_WORLD_SIZE", index="OMPI_COMM_WORLD_RANK")
    if len(found) < 2:
        return {}
    found |= _local(env, "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    for name in ("PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri"):  # Open MPI 5, and those before it
        if (host := _mpirun_host(env.get(name, ""))) is not None:
            if env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == env["OMPI_COMM_WORLD_SIZE"]:
                host = "127.0.0.1"
            return found | {"coordinator": (name, _with_port(host, _port_of(env[name])))}
    return found


def _mpirun_host(text: str) -> str | None:
    """The host in `prterun-HOST-PID@JOB`, or the first in `JOB.0;tcp://HOST,HOST:PORT`."""
    match = re.fullmatch(r"prterun-(.+)-\d+@\d+", text) or re.match(
        r"[\d.]+;tcp6?://\[?([^,\]]+?)(?:[,\]]|:\d+$)", text
    )
    return match[1] if match else None


def _tpu(env: Environment) -> Settings:
    """The hosts of TPU slices on Kubernetes, where the cluster sets their names."""
    hosts = env.get("TPU_WORKER_HOSTNAMES", "").split(",")
    worker = env.get("TPU_WORKER_ID", "")
    slices, number = env.get("MEGASCALE_NUM_SLICES", "1"), env.get("MEGASCALE_SLICE_ID", "0")
    if not worker.isdecimal() or not slices.isdecimal() or not number.isdecimal() or not hosts[0]:
        return {}
    if len(hosts) * int(slices) == 1:
        return {}
    several = "MEGASCALE_COORDINATOR_ADDRESS" in env
    first = env["MEGASCALE_COORDINATOR_ADDRESS"].partition(":")[0] if several else hosts[0]
    where = "MEGASCALE_COORDINATOR_ADDRESS" if several else "TPU_WORKER_HOSTNAMES"
    names = ("TPU_WORKER_HOSTNAMES x MEGASCALE_NUM_SLICES", "TPU_WORKER_ID + MEGASCALE_SLICE_ID x hosts")
    return {
        "coordinator": (where, _with_port(first, PORT)),
        "count": (names[0] if several else "TPU_WORKER_HOSTNAMES", str(len(hosts) * int(slices))),
        "index": (names[1] if several else "TPU_WORKER_ID", str(int(worker) + int(number) * len(hosts))),
    }


def _local(env: Environment, size: str, rank: str) -> Settings:
    """Gives each process the device of its number on the host, where several processes see all devices."""
    if env.get(size, "1") == "1" or rank not in env or "JAX_LOCAL_DEVICE_IDS" in env:
        return {}
    visible = env.get("CUDA_VISIBLE_DEVICES")  # the scheduler has assigned devices where there are fewer than processes
    shared = visible is None or len(visible.split(",")) >= int(env[size])
    return {"local": (rank, env[rank])} if shared else {}


SCHEMES: Mapping[str, Callable[[Environment], Settings]] = {
    "Kubeflow": _kubeflow,
    "JobSet": _jobset,
    "SkyPilot": _skypilot,
    "torchrun": _torchrun,
    "Slurm": _slurm,
    "Open MPI": _open_mpi,
    "TPU hosts": _tpu,
}


def _alone(env: Environment) -> Decision:
    """Decides where no scheduler applies: what JAX detects where only it can, else a single process."""
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        note = (
            "this pod has a JOB_COMPLETION_INDEX, but nothing says how many pods there are. "
            "Set CONVOY_NUM_PROCESSES, or start it by convoy launch k8s."
        )
        return Decision(Processes(), "no scheduler's variables are complete", ("JOB_COMPLETION_INDEX",), (note,))
    if "SLURM_JOB_ID" in env and env.get("SLURM_NTASKS", "1") != "1":
        note = (
            f"Slurm has given {env['SLURM_NTASKS']} tasks, but this process was not started by srun and is one. "
            "Start it with srun, or by convoy launch slurm."
        )
        return Decision(Processes(), "a shell in a Slurm allocation", ("SLURM_JOB_ID",), (note,))
    if "TPU_SKIP_MDS_QUERY" not in env and on_tpu_vm():
        return Decision(Processes(detected=True), "a TPU VM's metadata")
    return Decision(Processes(), "no scheduler found")


def on_tpu_vm() -> bool:
    """Whether this host has TPU chips and JAX's plugin for them, so that its metadata names its peers."""
    from importlib.util import find_spec
    from pathlib import Path

    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and find_spec("libtpu") is not None


def _port_of(job: str) -> int:
    """Returns a port that is the same in all processes of a job, and differs from that of most other jobs."""
    return 61440 + zlib.crc32(job.encode()) % 4096


def _with_port(host: str, port: int | str) -> str:
    """Returns HOST:PORT; a port that the host has already wins."""
    if re.search(r"\]:\d+$|^[^:]+:\d+$", host):
        return host
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _proxy_notes(who: Processes, env: Environment) -> list[str]:
    """Warns that gRPC takes proxies from the environment, also for the coordinator, which it then never reaches."""
    if who.count == 1:
        return []
    host, _ = address("the coordinator", who.coordinator)
    proxies = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if name in env]
    spared = [word.strip() for name in ("no_grpc_proxy", "no_proxy") for word in env.get(name, "").split(",")]
    if not proxies or any(word and host.endswith(word) for word in spared):
        return []
    return [f"{proxies[0]} is set, and gRPC would look for {host} behind it. Add {host} to no_proxy."]
