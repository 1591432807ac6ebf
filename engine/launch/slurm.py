"""A run as a Slurm job: the batch script, which requeues itself, and its submission.

Before the time limit Slurm sends SIGTERM to the tasks: the run saves and ends with 42, upon which the script asks for
its own requeue. The job keeps its number, its logs and the lease of its run.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.cluster.exit_status import KILLED, ExitStatus
from engine.config.errors import ConfigError
from engine.launch import cli_args, timeouts
from engine.run.owner import TOKEN

RESTARTS = 50
_OURS = ("job-name", "nodes", "ntasks-per-node", "time", "signal", "requeue", "no-requeue", "open-mode", "output")


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """One job. Paths are those of the nodes, relative ones from the folder of the submission."""

    command: Sequence[str]  # verb and arguments, as ["train", "--config=configs.digits"]
    nodes: int
    time: str  # limit, as Slurm reads it: "90", "4:00:00", "2-12"
    gpus_per_node: int = 0
    task_per: str = "node"  # or "gpu"
    cpus_per_task: int | None = None
    name: str = "convoy"
    partition: str | None = None
    account: str | None = None
    options: Sequence[str] = ()  # of sbatch, as "qos=high" or "exclusive"
    program: Sequence[str] = ("convoy",)  # how convoy is called on a node
    image: str | None = None  # of a container, for Pyxis
    mounts: Sequence[str] = ()  # into it, as "/data:/data"; the folder of the submission is always mounted
    logs: str = "logs"
    stop_before_s: int = timeouts.SLURM_NOTICE_S
    restarts: int = RESTARTS

    def script(self) -> str:
        """Returns the batch script.

        Raises:
            ConfigError: a number or text that Slurm would refuse.
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
        )

    def submit(self) -> None:
        """Hands the script to sbatch, which prints the job's number.

        Raises:
            ConfigError: as `script`.
            LaunchError: sbatch is missing or refuses.
        """
        script = self.script()
        Path(self.logs).mkdir(parents=True, exist_ok=True)  # Slurm makes none
        cli_args.call(["sbatch"], script)
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
        """Returns the srun command. Each task ends by itself when another one fails, so Slurm waits a while."""
        srun = ["srun", "--kill-on-bad-exit=0", f"--wait={timeouts.SLURM_KILL_S}", "--open-mode=append"]
        srun.append(f"--output={self.logs}/{self.name}-%j-%t.out")
        if self.cpus_per_task:
            srun.append(f"--cpus-per-task={self.cpus_per_task}")  # srun does not inherit the number of the job
        if self.image:
            srun += [f"--container-image={self.image}", f"--container-mounts={','.join(['.:/convoy', *self.mounts])}"]
            srun.append("--container-workdir=/convoy")
        return cli_args.lines(srun, [*self.program, *self.command])

    def _check(self) -> None:
        cli_args.verb("convoy launch slurm", self.command)
        cli_args.whole("--nodes", self.nodes)
        cli_args.whole("--gpus-per-node", self.gpus_per_node, 0)
        cli_args.whole("--restarts", self.restarts, 0)
        if self.task_per == "gpu" and not self.gpus_per_node:
            raise ConfigError("--task-per = gpu: there is no GPU without --gpus-per-node. Give their number.")
        named = {"--name": self.name, "--logs": self.logs, "--partition": self.partition, "--account": self.account}
        named |= {"--option": self.options, "--container-image": self.image, "--container-mount": self.mounts}
        for flag, values in named.items():
            for text in [values] if isinstance(values, str) else values or ():
                if not re.fullmatch(r"[\w./:=,@+#-]+", text):
                    raise ConfigError(f"{flag} = {text!r}: allowed are letters, digits and ._-/:=,@+#, without spaces.")
        if taken := [text for text in self.options if text.partition("=")[0] in _OURS]:
            raise ConfigError(f"--option = {taken[0]!r}: the script sets this one itself. Use its own flag, or none.")
        if self.stop_before_s >= (limit := seconds(self.time)):
            raise ConfigError(
                f"--stop-before = {self.stop_before_s}: allowed are seconds below the time limit, which is {limit} s. "
                "The run has to train before it has to save."
            )


def seconds(time: str) -> int:
    """Returns the seconds of a Slurm time limit.

    Raises:
        ConfigError: not one of Slurm's formats, or 0.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    days, *rest = match.groups() if match else (None, None)
    given = [int(text) for text in rest if text is not None]
    # With days the first number is hours; without, hours only where there are three.
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
# Made by `convoy launch slurm`.
{directives}
set -uo pipefail
export {token}="slurm-${{SLURM_CLUSTER_NAME:-}}-$SLURM_JOB_ID"  # restarts are the same job, and go on in its run

# {stop_before} s before the time limit the tasks get SIGTERM, and this shell does not: they save and end with 42.
# SIGTERM to this shell means that Slurm ends the job, of which it tells the tasks too: the shell lets them finish.
ended=no
trap 'ended=yes' TERM
{step}
code=$?

case $code in
  {retried})  # start me again, or killed from outside
    restarts=${{SLURM_RESTART_COUNT:-0}}
    if [[ $ended == no && $restarts -lt {restarts} ]]; then
      echo "convoy: ended with $code, back into the queue for restart $((restarts + 1)) of at most {restarts}"
      scontrol requeue "$SLURM_JOB_ID" && exit "$code"
    fi
    ;;
esac
echo "convoy: ended with $code, no restart"
exit "$code"
"""
