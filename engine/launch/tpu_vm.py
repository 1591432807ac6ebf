"""A run on Cloud TPU VMs: the gcloud commands that make them, install the engine, run it everywhere, and end it all.

Owns: these commands, and what systemd does on a host when the run ends. Does not own: who a host is among the others
(JAX reads the VM's metadata), or the folder that all hosts share, which the user mounts.

On each host the run is a service of systemd, so it outlives the ssh connection, gets SIGTERM when the VM is taken away,
and starts again after the exit codes that `exit_codes.is_retried` names, and no others.

Terms. *Slice*: the hosts of one TPU VM resource. *Queued resource*: a request that waits until there is room.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.cluster import exit_codes
from engine.config.errors import ConfigError
from engine.launch import cli_args
from engine.run.owner import TOKEN

PYTHON = "3.13"
SOURCES = ("pyproject.toml", "README.md", "engine", "models", "configs", "tools/image/tpu.lock")
GRACE_S = 120  # from SIGTERM to SIGKILL
_UNIT = "convoy"  # of systemd
_AGAIN_S = 15  # for all hosts to have ended before any starts again
_SIGNALS = ("SIGABRT", "SIGKILL", "SIGSEGV")  # systemd tells a killed process by its signal

Command = list[str]


@dataclass(frozen=True, kw_only=True)
class TpuVm:
    """One slice, or several that are asked for together."""

    name: str
    zone: str
    type: str = ""  # as "v5litepod-16"; needed to create one
    version: str = ""  # of the VM's image, as "v2-alpha-tpuv5-lite"; needed to create one
    project: str | None = None  # None: gcloud's own
    queued: bool = False
    slices: int = 1
    spot: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        cli_args.label("--name", self.name, 50)
        cli_args.whole("--slices", self.slices)
        if self.slices > 1 and not self.queued:
            raise ConfigError(
                f"--slices = {self.slices}: several slices come together as a queued resource. Add --queued."
            )

    def create(self) -> list[Command]:
        """Returns what asks for the VMs. Raises ConfigError without a type and an image."""
        if not self.type or not self.version:
            raise ConfigError(
                "convoy launch tpu-vm create: which TPUs? Give --type and --version, as the docs list them."
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
        """Returns what puts the engine of this folder and its pinned packages on every host."""
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
        """Returns what starts a command on every host.

        Args:
            command: verb and arguments, as `["train", "--config=configs.digits"]`.

        Raises:
            ConfigError: none that can be started elsewhere.
        """
        cli_args.verb("convoy launch tpu-vm run", command)
        again = " ".join(map(str, [exit_codes.RETRY, *exit_codes.KILLED, *_SIGNALS]))
        variables = {TOKEN: f"tpu-vm-{self.name}", **self.variables}
        properties = {
            "User": "$USER",
            "WorkingDirectory": "$HOME",
            "RestartForceExitStatus": again,
            "KillMode": "mixed",  # SIGTERM to the run alone: what it has started ends when it has saved
            "RestartSec": str(_AGAIN_S),
            "TimeoutStopSec": str(GRACE_S),
        }
        words = ["sudo", "systemd-run", f"--unit={_UNIT}", "--collect"]
        words += [_quoted(f"--property={name}=", value) for name, value in properties.items()]
        words += [_quoted(f"--setenv={name}=", value) for name, value in variables.items()]
        line = " ".join([*words, '"$HOME"/convoy-env/bin/convoy', shlex.join(command)])
        return [self._ssh(node, line) for node in self._nodes()]

    def stop(self) -> list[Command]:
        """Returns what sends SIGTERM everywhere: the run saves and ends."""
        return [self._ssh(node, f"sudo systemctl stop {_UNIT}") for node in self._nodes()]

    def logs(self) -> list[Command]:
        """Returns what follows the output of the first host, which speaks for the run."""
        follow = f"journalctl --unit={_UNIT} --output=cat --lines=100 --follow"
        return [self._ssh(self._nodes()[0], follow, worker="0")]

    def delete(self) -> list[Command]:
        """Returns what gives the VMs back, with all that lies on them."""
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
    """An option for the host's shell, which fills in $USER and $HOME and nothing else."""
    return f'{option}"{value}"' if value in ("$USER", "$HOME") else shlex.quote(option + value)
