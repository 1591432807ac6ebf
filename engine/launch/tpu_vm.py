"""Cloud TPU VMs: the gcloud commands that create them, install the engine, run it on all hosts, and delete them.

On each host the run is a systemd service. It outlives the ssh connection, receives SIGTERM when the VM is preempted,
and restarts only after exit codes of `exit_status.is_retried`. JAX reads the metadata of the VM to number the hosts.
The user must mount a folder that all hosts share.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.base.errors import ConfigError
from engine.cluster.exit_status import KILLED, ExitStatus
from engine.launch import cli_args, timeouts
from engine.run.owner import TOKEN

PYTHON = "3.13"
SOURCES = ("pyproject.toml", "README.md", "engine", "convoy_zoo", "models", "configs", "tools/image/tpu.lock")
_UNIT = "convoy"  # name of the systemd service
_SIGNALS = ("SIGABRT", "SIGKILL", "SIGSEGV")  # systemd identifies a killed process by its signal, not by a code

Command = list[str]


@dataclass(frozen=True, kw_only=True)
class TpuVm:
    """One slice (the hosts of one TPU VM resource), or several slices that are requested together."""

    name: str
    zone: str
    type: str = ""  # such as "v5litepod-16"; required by `create`
    version: str = ""  # image of the VM, such as "v2-alpha-tpuv5-lite"; required by `create`
    project: str | None = None  # None: gcloud's default
    queued: bool = False
    slices: int = 1
    spot: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        cli_args.check_label("--name", self.name, 50)
        cli_args.check_at_least("--slices", self.slices)
        if self.slices > 1 and not self.queued:
            raise ConfigError(
                f"--slices = {self.slices}: several slices are requested as one queued resource. Add --queued."
            )

    def create(self) -> list[Command]:
        """Returns the commands that request the VMs. Raises ConfigError without a type and an image."""
        if not self.type or not self.version:
            raise ConfigError(
                "convoy launch tpu-vm create: --type and --version are required, such as --type=v5litepod-16 "
                "--version=v2-alpha-tpuv5-lite."
            )
        spot = ["--spot"] if self.spot else []
        if not self.queued:
            what = [f"--accelerator-type={self.type}", f"--version={self.version}"]
            return [[*self._gcloud("tpu-vm", "create", self.name), *what, *spot]]
        what = [f"--accelerator-type={self.type}", f"--runtime-version={self.version}"]
        nodes = [f"--node-id={self.name}"]
        if self.slices > 1:
            nodes = [f"--node-prefix={self.name}", f"--node-count={self.slices}"]
        return [[*self._gcloud("queued-resources", "create", self.name), *what, *nodes, *spot]]

    def install(self) -> list[Command]:
        """Returns the commands that install the engine of the current folder and its locked packages on every host."""
        make = (
            f"python3 -m pip install --user --quiet uv && ~/.local/bin/uv venv --clear --python {PYTHON} convoy-env"
            " && mkdir -p convoy"
        )
        put = (
            "cd convoy && ~/.local/bin/uv pip install --quiet --python ../convoy-env --require-hashes -r tpu.lock"
            " && ~/.local/bin/uv pip install --quiet --python ../convoy-env --no-deps ."
        )
        commands = []
        for node in self._nodes():
            copy = self._gcloud("tpu-vm", "scp", "--recurse", *SOURCES, f"{node}:convoy/", "--worker=all")
            commands += [self._ssh(node, make), copy, self._ssh(node, put)]
        return commands

    def run(self, command: Sequence[str]) -> list[Command]:
        """Returns the commands that start a command on every host.

        Args:
            command: verb and arguments, such as `["train", "--config=configs.digits"]`.

        Raises:
            ConfigError: a command that cannot run on another machine.
        """
        cli_args.check_command("convoy launch tpu-vm run", command)
        retried = " ".join(map(str, [ExitStatus.RETRY, *KILLED, *_SIGNALS]))
        variables = {TOKEN: f"tpu-vm-{self.name}", **self.variables}
        properties = {
            "User": "$USER",
            "WorkingDirectory": "$HOME",
            "RestartForceExitStatus": retried,
            "KillMode": "mixed",  # SIGTERM to the main process only: its workers end after it has saved
            "RestartSec": str(timeouts.RESTART_S),
            "TimeoutStopSec": str(timeouts.STOP_GRACE_S),
        }
        words = ["sudo", "systemd-run", f"--unit={_UNIT}", "--collect"]
        words += [_quoted(f"--property={name}=", value) for name, value in properties.items()]
        words += [_quoted(f"--setenv={name}=", value) for name, value in variables.items()]
        line = " ".join([*words, '"$HOME"/convoy-env/bin/convoy', shlex.join(command)])
        return [self._ssh(node, line) for node in self._nodes()]

    def stop(self) -> list[Command]:
        """Returns the commands that stop the service on every host with SIGTERM; the run saves and ends."""
        return [self._ssh(node, f"sudo systemctl stop {_UNIT}") for node in self._nodes()]

    def logs(self) -> list[Command]:
        """Returns the command that follows the output of the first host, which runs the primary."""
        follow = f"journalctl --unit={_UNIT} --output=cat --lines=100 --follow"
        return [self._ssh(self._nodes()[0], follow, worker="0")]

    def delete(self) -> list[Command]:
        """Returns the command that deletes the VMs and their disks."""
        if self.queued:
            return [[*self._gcloud("queued-resources", "delete", self.name), "--force", "--quiet"]]
        return [[*self._gcloud("tpu-vm", "delete", self.name), "--quiet"]]

    def _nodes(self) -> list[str]:
        return [self.name] if self.slices == 1 else [f"{self.name}-{i}" for i in range(self.slices)]

    def _ssh(self, node: str, line: str, worker: str = "all") -> Command:
        return [*self._gcloud("tpu-vm", "ssh", node), f"--worker={worker}", f"--command={line}"]

    def _gcloud(self, kind: str, *words: str) -> Command:
        project = [f"--project={self.project}"] if self.project else []
        return ["gcloud", "compute", "tpus", kind, *words, f"--zone={self.zone}", *project]


def _quoted(option: str, value: str) -> str:
    """Quotes an option for the shell of the host, which expands only $USER and $HOME."""
    return f'{option}"{value}"' if value in ("$USER", "$HOME") else shlex.quote(option + value)
