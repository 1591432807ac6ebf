"""Slurm: the batch script of a run, which requeues its own job, and `sbatch`.

Before the time limit Slurm sends SIGTERM to the tasks. The run saves and exits with 42, and the script requeues the
job, which keeps its number, its logs and the lease of its run.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import ConfigError
from engine.cluster.exit_status import KILLED, ExitStatus
from engine.launch import cli_args, timeouts
from engine.run.owner import TOKEN

RESTARTS = 50
_RESERVED = ("job-name", "nodes", "ntasks-per-node", "time", "signal", "requeue", "no-requeue", "open-mode", "output")


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """One job. Paths are paths on the nodes; relative paths start at the folder of the submission."""

    command: Sequence[str]  # verb and arguments, such as ["train", "--config=configs.digits"]
    nodes: int
    time: str  # time limit in Slurm's format: "90", "4:00:00", "2-12"
    gpus_per_node: int = 0
    task_per: str = "node"  # or "gpu"
    cpus_per_task: int | None = None
    name: str = "convoy"
    partition: str | None = None
    account: str | None = None
    options: Sequence[str] = ()  # further options of sbatch, such as "qos=high" or "exclusive"
    program: Sequence[str] = ("convoy",)  # the words that start convoy on a node
    image: str | None = None  # container image, for Pyxis
    mounts: Sequence[str] = ()  # container mounts, such as "/data:/data"; the submission folder is always mounted
    logs: str = "logs"
    stop_before_s: int = timeouts.SLURM_NOTICE_S
    restarts: int = RESTARTS

    def script(self) -> str:
        """Returns the batch script.

        Raises:
            ConfigError: a number or text that Slurm would reject.
        """
        self._check()
        retried = [ExitStatus.RETRY, *KILLED]
        directives = "\n".join(f"#SBATCH {text}" for text in self._directives())
        return _SCRIPT.format(
            directives=directives,
            token=TOKEN,
            stop_before=self.stop_before_s,
            step=self._step(),
            retried=" | ".join(map(str, retried)),
            restarts=self.restarts,
            logs=shlex.quote(self.logs),
        )

    def submit(self) -> None:
        """Passes the script to sbatch, which prints the number of the job.

        Raises:
            ConfigError: like `script`.
            LaunchError: sbatch is missing or failed.
        """
        script = self.script()
        Path(self.logs).mkdir(parents=True, exist_ok=True)  # Slurm creates no folder
        cli_args.run_command(["sbatch"], script)
        print(f"Logs: {self.logs}/{self.name}-JOB.out and, for each task, {self.logs}/{self.name}-JOB-TASK.out")

    def _directives(self) -> list[str]:
        optional = {
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task,
            "partition": self.partition,
            "account": self.account,
        }
        return [
            f"--job-name={self.name}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.gpus_per_node if self.task_per == 'gpu' else 1}",
            *(f"--{name}={value}" for name, value in optional.items() if value is not None),
            f"--time={self.time}",
            f"--signal=TERM@{self.stop_before_s}",
            "--requeue",
            "--open-mode=append",
            f"--output={self.logs}/{self.name}-%j.out",
            *(f"--{text}" for text in self.options),
        ]

    def _step(self) -> str:
        """Returns the srun command. Tasks exit on their own when another task fails, so srun waits before killing."""
        srun = ["srun", "--kill-on-bad-exit=0", f"--wait={timeouts.SLURM_KILL_S}", "--open-mode=append"]
        srun.append(f"--output={self.logs}/{self.name}-%j-%t.out")
        if self.cpus_per_task:
            srun.append(f"--cpus-per-task={self.cpus_per_task}")  # srun does not inherit it from the job
        if self.image:
            srun += [f"--container-image={self.image}", f"--container-mounts={','.join(['.:/convoy', *self.mounts])}"]
            srun.append("--container-workdir=/convoy")
        return cli_args.format_command(srun, [*self.program, *self.command])

    def _check(self) -> None:
        cli_args.check_command("convoy launch slurm", self.command)
        cli_args.check_at_least("--nodes", self.nodes)
        cli_args.check_at_least("--gpus-per-node", self.gpus_per_node, 0)
        cli_args.check_at_least("--restarts", self.restarts, 0)
        if self.task_per == "gpu" and not self.gpus_per_node:
            raise ConfigError("--task-per = gpu: requires GPUs. Set --gpus-per-node.")
        named = {"--name": self.name, "--logs": self.logs, "--partition": self.partition, "--account": self.account}
        named |= {"--option": self.options, "--container-image": self.image, "--container-mount": self.mounts}
        for flag, values in named.items():
            for text in [values] if isinstance(values, str) else values or ():
                if not re.fullmatch(r"[\w./:=,@+#-]+", text):
                    raise ConfigError(f"{flag} = {text!r}: allowed are letters, digits and ._-/:=,@+#, without spaces.")
        if taken := [text for text in self.options if text.partition("=")[0] in _RESERVED]:
            raise ConfigError(
                f"--option = {taken[0]!r}: the script sets this option. Use the flag of convoy launch slurm, if any."
            )
        if self.stop_before_s >= (limit := time_limit_s(self.time)):
            raise ConfigError(
                f"--stop-before = {self.stop_before_s}: allowed are seconds below the time limit, which is {limit} s. "
                "The run needs time to train before it saves and stops."
            )


def time_limit_s(time: str) -> int:
    """Returns a Slurm time limit in seconds.

    Raises:
        ConfigError: not one of Slurm's formats, or 0.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    days, *rest = match.groups() if match else (None, None)
    given = [int(text) for text in rest if text is not None]
    # The first number is hours after days, or if there are three numbers; otherwise it is minutes.
    units = (3600, 60, 1) if days is not None or len(given) == 3 else (60, 1)
    total = int(days or 0) * 86400 + sum(number * unit for number, unit in zip(given, units, strict=False))
    if not total:
        raise ConfigError(
            f"--time = {time!r}: allowed are MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, "
            "DAYS-HOURS:MINUTES and DAYS-HOURS:MINUTES:SECONDS."
        )
    return total


_SCRIPT = """\
#!/usr/bin/env bash
# Made by `convoy launch slurm`. Slurm makes no folder for the logs: mkdir -p {logs}
{directives}
set -uo pipefail
export {token}="slurm-${{SLURM_CLUSTER_NAME:-}}-$SLURM_JOB_ID"  # all restarts of the job may write to its run

# {stop_before} s before the time limit Slurm sends SIGTERM to the tasks only: they save and exit with 42.
# SIGTERM to this shell means that Slurm cancels the job. Slurm also signals the tasks; the shell waits for them.
cancelled=no
trap 'cancelled=yes' TERM
{step}
code=$?

case $code in
  {retried})  # to be retried, or killed by a signal
    restarts=${{SLURM_RESTART_COUNT:-0}}
    if [[ $cancelled == no && $restarts -lt {restarts} ]]; then
      echo "convoy: exit code $code, requeueing for restart $((restarts + 1)) of at most {restarts}"
      scontrol requeue "$SLURM_JOB_ID" && exit "$code"
    fi
    ;;
esac
echo "convoy: exit code $code, no restart"
exit "$code"
"""
