"""Detects process index, process count and coordinator from flags and the variables of the scheduler.

The first source that applies is used: flags, CONVOY_*, Kubeflow's JAX_*, JobSet (also xpk), SkyPilot, torchrun, Slurm,
Open MPI, TPU hosts, JAX's own detection, a single process. If flags and CONVOY_* variables give only some of
coordinator, count and index, the scheduler's variables give the others.
"""

import os
import re
import socket
import subprocess
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.base.errors import ConfigError

PORT = 8476  # port of the coordinator if the scheduler sets none
FLAGS = {"coordinator": "--coordinator", "count": "--num-processes", "index": "--process-id"}
VARIABLES = {
    "coordinator": "CONVOY_COORDINATOR",
    "count": "CONVOY_NUM_PROCESSES",
    "index": "CONVOY_PROCESS_ID",
}
_WANTED = {"coordinator": "HOST:PORT of process 0", "count": "process count", "index": "0 to process count - 1"}

Environment = Mapping[str, str]
Setting = tuple[str, str]  # name of the flag or variable, and its value
Settings = dict[str, Setting]  # "coordinator", "count", "index" and, with several processes on a host, "local"


@dataclass(frozen=True)
class ProcessInfo:
    """One process of a run with `count` processes; by default the only one."""

    index: int = 0
    count: int = 1
    coordinator: str = ""  # HOST:PORT at which process 0 listens
    local_devices: tuple[int, ...] | None = None  # devices of this process, if those of its host are divided; None: all
    detected_by_jax: bool = False  # the other fields are unknown: JAX detects them itself


@dataclass(frozen=True)
class Detection:
    """The detected process, and what it was detected from."""

    process: ProcessInfo
    source: str  # the scheduler, or the reason for a single process
    variables: tuple[str, ...] = ()  # flags and variables that were read
    notes: tuple[str, ...] = ()  # warnings for the user

    def __str__(self) -> str:
        info = self.process
        if info.detected_by_jax:
            return f"processes: detected by JAX ({self.source})"
        if info.count == 1:
            return f"processes: one ({self.source})"
        devices = "" if info.local_devices is None else f", local devices {', '.join(map(str, info.local_devices))}"
        read = f": {', '.join(self.variables)}" if self.variables else ""
        return f"processes: {info.index} of {info.count}, coordinator {info.coordinator}{devices} ({self.source}{read})"


def detect(flags: Mapping[str, str | None] | None = None, environment: Environment = os.environ) -> Detection:
    """Detects which process of the run this is.

    Args:
        flags: "coordinator", "count" and "index" of the command line; each takes precedence over its variable.
        environment: the variables; empty variables count as unset.

    Raises:
        ConfigError: some of the three settings are missing or invalid.
    """
    environment = {name: value for name, value in environment.items() if value}
    explicit = _explicit(flags or {}, environment)
    name, found = "flags and CONVOY_*", {}
    if len(explicit) < len(VARIABLES):
        for scheduler, read in SCHEDULERS.items():
            if settings := read(environment):
                name, found = (f"{scheduler} and {name}" if explicit else scheduler), settings
                break
    if not explicit and not found:
        return _single_process(environment)
    settings = {**found, **explicit}
    if missing := [setting for setting in VARIABLES if setting not in settings]:
        raise ConfigError(
            f"several processes: found {', '.join(f'{where}={value}' for where, value in settings.values())}, but not "
            f"{' and '.join(f'{FLAGS[name]} or {VARIABLES[name]} ({_WANTED[name]})' for name in missing)}. "
            "Give all three, or none for a single process."
        )
    process = _checked(settings)
    variables = tuple(dict.fromkeys(where for where, _ in settings.values()))
    return Detection(process, name, variables, tuple(_proxy_notes(process, environment)))


def _explicit(flags: Mapping[str, str | None], environment: Environment) -> Settings:
    found: Settings = {}
    for name, variable in VARIABLES.items():
        if (value := flags.get(name)) is not None:
            found[name] = (FLAGS[name], value)
        elif variable in environment:
            found[name] = (variable, environment[variable])
    return found


def _checked(settings: Settings) -> ProcessInfo:
    count = _integer(*settings["count"], least=1, allowed="a number of processes from 1")
    allowed = f"0 to {count - 1}, as there are {settings['count'][0]}={count} processes"
    index = _integer(*settings["index"], least=0, allowed=allowed)
    if index >= count:
        raise ConfigError(f"{settings['index'][0]} = {index}: allowed is {allowed}. Each process needs its own index.")
    address(*settings["coordinator"])
    local = None
    if "local" in settings:
        local = (_integer(*settings["local"], least=0, allowed="the index of this process on its host"),)
    return ProcessInfo(index, count, settings["coordinator"][1], local)


def _integer(where: str, text: str, *, least: int, allowed: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise ConfigError(f"{where} = {text!r}: allowed is {allowed}. Give a whole number.")
    return int(text)


def address(where: str, text: str) -> tuple[str, int]:
    """Parses `HOST:PORT` or `[IPv6]:PORT` to (host, port). Raises ConfigError, which names `where`."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%]+)\]|([^:\s\[\]/]+)):(\d+)", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ConfigError(
            f"{where} = {text!r}: allowed is HOST:PORT with a port from 1 to 65535, such as 10.0.0.1:8476. "
            "It is the address of process 0, the same in every process."
        )
    return match[1] or match[2], int(match[3])


def _take(environment: Environment, **names: str) -> Settings:
    """Returns the settings whose variables are set."""
    return {setting: (name, environment[name]) for setting, name in names.items() if name in environment}


def _kubeflow(env: Environment) -> Settings:
    """Reads the variables of Kubeflow's Trainer (JAX_*), or of its older JAXJob (the same names without the prefix)."""
    for prefix in ("JAX_", ""):
        found = _take(env, count=f"{prefix}NUM_PROCESSES", index=f"{prefix}PROCESS_ID")
        host, port = f"{prefix}COORDINATOR_ADDRESS", f"{prefix}COORDINATOR_PORT"
        if len(found) == 2 and host in env:
            return found | {"coordinator": (host, _with_port(env[host], env.get(port, PORT)))}
    return {}


def _jobset(env: Environment) -> Settings:
    """Reads the variables of a JobSet: jobs are numbered in the set and pods in their job. xpk sets the same."""
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
        host = f"{name}-{env['REPLICATED_JOB_NAME']}-0-0.{name}"  # JobSet's name of the first pod
        return found | {"coordinator": ("JOBSET_NAME, REPLICATED_JOB_NAME", _with_port(host, port))}
    return found


def _skypilot(env: Environment) -> Settings:
    found = _take(env, count="SKYPILOT_NUM_NODES", index="SKYPILOT_NODE_RANK")
    hosts = env.get("SKYPILOT_NODE_IPS", "").split()
    if len(found) < 2 or not hosts:
        return {}
    return found | {"coordinator": ("SKYPILOT_NODE_IPS", _with_port(hosts[0], PORT))}


def _torchrun(env: Environment) -> Settings:
    """Reads the variables of torchrun. It listens at MASTER_PORT itself, so the coordinator uses the next port."""
    found = _take(env, count="WORLD_SIZE", index="RANK")
    if len(found) < 2 or "MASTER_ADDR" not in env:
        return {}
    port = int(env["MASTER_PORT"]) + 1 if env.get("MASTER_PORT", "").isdecimal() else PORT
    found["coordinator"] = ("MASTER_ADDR", _with_port(env["MASTER_ADDR"], port))
    return found | _local(env, "LOCAL_WORLD_SIZE", "LOCAL_RANK")


def _slurm(env: Environment) -> Settings:
    """Reads the variables of a task of srun. A shell in an allocation has only some of them: a single process."""
    wanted = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if any(name not in env for name in wanted):
        return {}
    found = _take(env, count="SLURM_NTASKS", index="SLURM_PROCID")
    step = env.get("SLURM_STEP_ID", "0")
    port = _port_of(f"{env['SLURM_JOB_ID']}.{step}")  # steps of a job may run concurrently
    host = _slurm_address(first_host(env["SLURM_STEP_NODELIST"]))
    found["coordinator"] = ("SLURM_STEP_NODELIST", _with_port(host, port))
    tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1")))
    return found | _local({**env, "_TASKS": tasks[0] if tasks else "1"}, "_TASKS", "SLURM_LOCALID")


def first_host(nodes: str) -> str:
    """Returns the first node of Slurm's node list: "gpu1" of "gpu[1-4,7],cpu2". Keeps leading zeros."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?", nodes)
    return nodes if match is None else match[1] + (match[2] or "")


def _slurm_address(node: str) -> str:
    """Returns Slurm's name of a node, or its address according to Slurm if the name does not resolve."""
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
    """Reads the variables of mpirun; assumes that rank 0 runs on the host of mpirun."""
    found = _take(env, count="OMPI_COMM_WORLD_SIZE", index="OMPI_COMM_WORLD_RANK")
    if len(found) < 2:
        return {}
    found |= _local(env, "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    for name in ("PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri"):  # Open MPI 5, and older versions
        if (host := _mpirun_host(env.get(name, ""))) is not None:
            if env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == env["OMPI_COMM_WORLD_SIZE"]:
                host = "127.0.0.1"
            return found | {"coordinator": (name, _with_port(host, _port_of(env[name])))}
    return found


def _mpirun_host(text: str) -> str | None:
    """Returns the host in `prterun-HOST-PID@JOB`, or the first host in `JOB.0;tcp://HOST,HOST:PORT`."""
    match = re.fullmatch(r"prterun-(.+)-\d+@\d+", text) or re.match(
        r"[\d.]+;tcp6?://\[?([^,\]]+?)(?:[,\]]|:\d+$)", text
    )
    return match[1] if match else None


def _tpu(env: Environment) -> Settings:
    """Reads the variables of TPU slices on Kubernetes, where the cluster sets the host names."""
    hosts = env.get("TPU_WORKER_HOSTNAMES", "").split(",")
    worker = env.get("TPU_WORKER_ID", "")
    slices, number = env.get("MEGASCALE_NUM_SLICES", "1"), env.get("MEGASCALE_SLICE_ID", "0")
    if not hosts[0] or not all(text.isdecimal() for text in (worker, slices, number)):
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
    """Returns the device of each process, its local rank, if several processes on a host see all devices."""
    if env.get(size, "1") == "1" or rank not in env or "JAX_LOCAL_DEVICE_IDS" in env:
        return {}
    visible = env.get("CUDA_VISIBLE_DEVICES")  # with fewer devices than processes, the scheduler has assigned them
    shared = visible is None or len(visible.split(",")) >= int(env[size])
    return {"local": (rank, env[rank])} if shared else {}


SCHEDULERS: Mapping[str, Callable[[Environment], Settings]] = {
    "Kubeflow": _kubeflow,
    "JobSet": _jobset,
    "SkyPilot": _skypilot,
    "torchrun": _torchrun,
    "Slurm": _slurm,
    "Open MPI": _open_mpi,
    "TPU hosts": _tpu,
}


def _single_process(env: Environment) -> Detection:
    """Returns the detection if no scheduler applies: JAX's own on a TPU VM, otherwise a single process."""
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        note = (
            "this pod has a JOB_COMPLETION_INDEX, but the number of pods is unknown. "
            "Set CONVOY_NUM_PROCESSES, or start it with convoy launch k8s."
        )
        return Detection(ProcessInfo(), "no scheduler's variables are complete", ("JOB_COMPLETION_INDEX",), (note,))
    if "SLURM_JOB_ID" in env and env.get("SLURM_NTASKS", "1") != "1":
        note = (
            f"Slurm has allocated {env['SLURM_NTASKS']} tasks, but this process was not started by srun and is alone. "
            "Start it with srun or convoy launch slurm."
        )
        return Detection(ProcessInfo(), "a shell in a Slurm allocation", ("SLURM_JOB_ID",), (note,))
    if "TPU_SKIP_MDS_QUERY" not in env and on_tpu_vm():
        return Detection(ProcessInfo(detected_by_jax=True), "a TPU VM's metadata")
    return Detection(ProcessInfo(), "no scheduler found")


def on_tpu_vm() -> bool:
    """Whether this host has TPU chips and JAX's TPU plugin, so that its metadata names its peers."""
    from importlib.util import find_spec
    from pathlib import Path

    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and find_spec("libtpu") is not None


def _port_of(job: str) -> int:
    """Returns a port that is equal in all processes of a job, and different for most other jobs."""
    return 61440 + zlib.crc32(job.encode()) % 4096


def _with_port(host: str, port: int | str) -> str:
    """Returns HOST:PORT; keeps the port of a host that already has one."""
    if re.search(r"\]:\d+$|^[^:]+:\d+$", host):
        return host
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _proxy_notes(process: ProcessInfo, env: Environment) -> list[str]:
    """Returns a warning if gRPC would use a proxy from the environment, through which it never reaches process 0."""
    if process.count == 1:
        return []
    host, _ = address("the coordinator", process.coordinator)
    proxies = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if name in env]
    exempt = [suffix.strip() for name in ("no_grpc_proxy", "no_proxy") for suffix in env.get(name, "").split(",")]
    if not proxies or any(suffix and host.endswith(suffix) for suffix in exempt):
        return []
    return [f"{proxies[0]} is set, so gRPC would connect to {host} through it. Add {host} to no_proxy."]
