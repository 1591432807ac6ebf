"""A real Slurm cluster on one machine: a controller and two nodes on loopback, for tests that run as root.

Requires Debian's packages slurm-wlm and munge. All files are in one folder, all ports are free ports of 127.0.0.1, and
a separate munged authenticates requests. Slurm checks time limits every 30 s; a requeued job waits until its
credential has expired (`cred_expire`).
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NODES = ("n1", "n2")
FIRST = "CONVOY_TEST_FIRST_START"  # path of a file with the number of the first start of the job that trained
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> str:
    """Returns why a cluster cannot be started here; empty if it can."""
    if os.geteuid() != 0:
        return "slurmd starts jobs as root only"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    return f"no {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


class SlowAtFirst:
    """A hook that makes every step of the first start that trains take a second, so that it exceeds the time limit."""

    def run(self, trainer: Any, state: Any, step: int) -> None:
        start, file = os.environ.get("SLURM_RESTART_COUNT", "0"), Path(os.environ[FIRST])
        if os.environ["SLURM_PROCID"] == "0" and not file.exists():
            temporary = file.with_suffix(".tmp")
            temporary.write_text(start)
            temporary.replace(file)
        if not file.exists() or file.read_text() == start:
            time.sleep(1)


class Cluster:
    """Context manager that runs the cluster; no job outlives it.

    `environment` holds the variable by which Slurm's commands find the cluster.
    """

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="convoy-slurm-"))
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if len(self._daemons) > 1:
            self.command("scancel", "--full", "--signal=KILL", *self.jobs())
            self.command("scancel", "--user=root")
            self.until(lambda: not self.jobs(), 60)  # slurmd waits for its jobs, and the jobs for the controller
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(self.folder)

    def command(self, *words: str) -> str:
        """Runs a command of Slurm and returns its output."""
        done = subprocess.run(words, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60)
        return done.stdout

    def jobs(self) -> list[str]:
        """Returns the numbers of queued and running jobs."""
        return self.command("squeue", "--noheader", "--format=%i").split()

    def job(self, number: str) -> dict[str, str]:
        """Returns Slurm's fields of a job, such as JobState and Restarts."""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, condition: Callable[[], bool], seconds: float, logs: Path | None = None) -> None:
        """Waits until the condition is true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s\n{self.log_tails(logs)}"
            time.sleep(0.2)

    def log_tails(self, logs: Path | None = None) -> str:
        """Returns the end of each log."""
        files = [*self.folder.glob("*.log"), *(logs.glob("*") if logs else ())]
        return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def _start(self) -> None:
        self.folder.chmod(0o755)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        ports = _free_ports(1 + len(NODES))
        (self.folder / "slurm.conf").write_text(self._configuration(ports))
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        files = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munged.log", "pid-file": "munged.pid"}
        files["seed-file"] = "munged.seed"
        self._daemon("munged", "--foreground", "--force", *(f"--{k}={self.folder / v}" for k, v in files.items()))
        self.until((self.folder / "munge.socket").exists, 30)
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self.until(lambda: self.command("sinfo", "--noheader", "--Node", "--format=%t").split() == ["idle"] * 2, 60)

    def _daemon(self, *words: str) -> None:
        with open(self.folder / f"{'-'.join([words[0], *words[2:][-1:]]).replace('/', '')}.log", "wb") as log:
            environment = {**os.environ, **self.environment, "PATH": _PATH}
            self._daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log, stdin=-3))

    def _configuration(self, ports: list[int]) -> str:
        host = socket.gethostname().partition(".")[0]
        nodes = "".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN\n"
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        return f"""\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=5
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
KillWait=20
{nodes}PartitionName=main Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
