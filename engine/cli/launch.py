"""`convoy launch`: runs a command in several processes, on this machine or on a cluster.

A launcher is a function that adds its arguments and a function that runs it, in the table at the end.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.base.errors import ConfigError
from engine.cli import common, supervise
from engine.cluster.exit_status import ExitStatus
from engine.launch import cli_args, kubernetes, slurm, timeouts, tpu_vm

ACTIONS = ("create", "install", "run", "logs", "stop", "delete")  # on a TPU VM, in their usual order


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the parsers of the launchers."""
    parser.usage = "convoy launch WHERE [options] -- VERB ..."
    launchers = parser.add_subparsers(dest="where", metavar="WHERE", required=True, prog="convoy launch")
    for name, launcher in _LAUNCHERS.items():
        below = launchers.add_parser(name, help=launcher.help)
        launcher.add_arguments(below)
        below.set_defaults(parser=below, prints_result=name not in ("local", "ray"))  # their results are on disk


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy launch WHERE` and returns the exit code.

    Args:
        args: the parsed arguments; `args.command` is the command after `--`.
        overrides: overrides before `--`, which are errors.

    Raises:
        ConfigError: the arguments do not describe a valid job.
        LaunchError: the command of the scheduler is missing or failed.
    """
    return _LAUNCHERS[args.where].run(args, overrides)


def _add_local(parser: argparse.ArgumentParser) -> None:
    parser.usage = "convoy launch local --processes N [options] -- VERB ..."
    parser.add_argument("--processes", type=int, required=True, help="number of processes")
    common.add_devices_flag(parser)
    parser.add_argument("--restarts", type=int, default=0, help="maximum number of restarts of a failed training")


def _run_local(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.launch import local

    if args.restarts:
        return supervise.run(args, overrides)
    words = common.command_words(args, overrides, "convoy launch local", "a command")
    return local.launch(words, processes=args.processes, devices=args.devices_per_process)


def _add_ray(parser: argparse.ArgumentParser) -> None:
    parser.usage = "convoy launch ray --processes N [options] -- VERB ..."
    parser.add_argument("--processes", type=int, required=True, help="number of processes")
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs of each process (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of each process (default: none)")
    parser.add_argument(
        "--resource", action="append", default=[], metavar="NAME=N",
        help="another resource of each process, as the nodes name it: --resource TPU=4",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--spread", action="store_true", help="each process on a node of its own")
    where.add_argument("--pack", action="store_true", help="on as few nodes as possible (default)")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="the cluster (default: RAY_ADDRESS, or that started here)"
    )
    parser.add_argument(
        "--wait-for-nodes", type=float, default=30.0, metavar="SECONDS",
        help="wait so long for the resources, also of a lost node (default: 30)",
    )  # fmt: skip
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="environment variable; not for secrets"
    )
    parser.add_argument("--restarts", type=int, help="maximum number of restarts of a training (default: 50)")


def _run_ray(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.ray import launch, placement

    words = common.command_words(args, overrides, "convoy launch ray", "a command")
    job = placement.RayJob(
        processes=args.processes,
        cpus=args.cpus,
        gpus=args.gpus,
        resources=cli_args.parse_numbers("--resource", args.resource),
        spread=args.spread,
        address=args.address,
        wait_for_nodes_s=args.wait_for_nodes,
        variables=cli_args.parse_variables(args.env, "Put it into a file on the nodes."),
    )
    if args.restarts is None:
        restarted = args.command[0] == "train" and "--fast-dev-run" not in args.command
        args.restarts = slurm.RESTARTS if restarted else 0
    if args.restarts:
        return supervise.run(args, overrides, launch.RayAttempts(job).run)
    return launch.launch(words, job)


def _add_slurm(parser: argparse.ArgumentParser) -> None:
    parser.usage = "convoy launch slurm --nodes N --time LIMIT [options] -- train ..."
    parser.add_argument("--nodes", type=int, required=True, help="number of nodes")
    parser.add_argument("--time", required=True, help="time limit until the job is requeued, such as 4:00:00 or 2-12")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs to request on each node (default: none)")
    parser.add_argument(
        "--task-per", choices=["node", "gpu"], default="node", help="one process per node (default) or per GPU"
    )
    parser.add_argument("--cpus-per-task", type=int, help="CPU cores of each process (default: Slurm's)")
    parser.add_argument("--name", default="convoy", help="name of the job and its logs (default: convoy)")
    parser.add_argument("--partition", help="partition (queue) of the cluster; sinfo lists them")
    parser.add_argument("--account", help="account that is charged")
    parser.add_argument("--option", action="append", default=[], help="another option of sbatch: --option=qos=high")
    program = parser.add_mutually_exclusive_group()
    program.add_argument("--venv", help="Python environment with convoy, on a disk that all nodes share")
    program.add_argument("--binary", help="path of an executable convoy, such as bazel-bin/convoy")
    program.add_argument("--container-image", metavar="IMAGE", help="image with convoy, started by Pyxis and Enroot")
    parser.add_argument(
        "--container-mount", action="append", default=[], metavar="HOST:INSIDE",
        help="a mount in addition to the current folder, which is mounted at /convoy",
    )  # fmt: skip
    parser.add_argument("--logs", default="logs", help="folder for the output of the job and its tasks (default: logs)")
    parser.add_argument(
        "--stop-before", type=int, default=timeouts.SLURM_NOTICE_S, metavar="SECONDS",
        help="save and stop this long before the time limit, or up to a minute earlier (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--restarts", type=int, default=slurm.RESTARTS, help="maximum number of restarts (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script without submitting it")


def _run_slurm(args: argparse.Namespace, overrides: list[str]) -> int:
    common.refuse_overrides_before_command(overrides)
    if args.container_image is None:
        _check_command(args)
    job = slurm_job(args)
    if args.dry_run:
        print(job.script(), end="")
    else:
        job.submit()
    return ExitStatus.DONE


def slurm_job(args: argparse.Namespace) -> slurm.SlurmJob:
    """Returns the job that the arguments of `convoy launch slurm` describe."""
    return slurm.SlurmJob(
        command=args.command,
        nodes=args.nodes,
        time=args.time,
        gpus_per_node=args.gpus_per_node,
        task_per=args.task_per,
        cpus_per_task=args.cpus_per_task,
        name=args.name,
        partition=args.partition,
        account=args.account,
        options=args.option,
        program=_program(args),
        image=args.container_image,
        mounts=args.container_mount,
        logs=args.logs,
        stop_before_s=args.stop_before,
        restarts=args.restarts,
    )


def _check_command(args: argparse.Namespace) -> None:
    """Raises errors in a command now instead of after hours in a queue."""
    command, overrides = args.parse_command()
    if command.verb == "train" and command.config:  # a cooldown has the config of its run
        common.load_config(command.config, overrides)


def _program(args: argparse.Namespace) -> Sequence[str]:
    """Returns the words that start convoy on a node: by default the Python of this process."""
    if args.container_image:
        return ["convoy"]
    if args.venv:
        return [f"{args.venv.rstrip('/')}/bin/convoy"]
    return [args.binary] if args.binary else [sys.executable, "-m", "engine.cli.main"]


def _add_k8s(parser: argparse.ArgumentParser) -> None:
    parser.usage = "convoy launch k8s --name NAME --image IMAGE --claim CLAIM [options] -- train ..."
    parser.add_argument("--name", required=True, help="name of the JobSet")
    parser.add_argument("--image", required=True, help="image with convoy (see the Dockerfile), with a tag or digest")
    parser.add_argument(
        "--claim", required=True, help="PersistentVolumeClaim for runs/ that all nodes can write to (ReadWriteMany)"
    )
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes, with one pod each (default: 1)")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs of each pod (default: none)")
    parser.add_argument("--gpu", help="GKE's name of the GPU, such as nvidia-h100-80gb (default: any)")
    parser.add_argument("--tpu", help=f"kind of TPU, instead of GPUs: {', '.join(kubernetes.TPUS)}")
    parser.add_argument("--topology", help="chips of a TPU slice along each axis, such as 4x4x8")
    parser.add_argument("--slices", type=int, default=1, help="number of TPU slices (default: 1)")
    parser.add_argument("--chips-per-host", type=int, default=4, help="TPU chips of the machine type (default: 4)")
    parser.add_argument("--namespace", help="Kubernetes namespace (default: kubectl's)")
    parser.add_argument("--queue", help="Kueue queue (default: none)")
    parser.add_argument("--cpus", help="CPU limit of each pod, such as 200")
    parser.add_argument("--memory", help="memory limit of each pod, including shared memory, such as 200Gi")
    parser.add_argument("--shm", default="8Gi", help="shared memory of each pod (default: 8Gi)")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="environment variable; not for secrets"
    )
    parser.add_argument(
        "--secret-env", action="append", default=[], metavar="NAME=SECRET:KEY",
        help="environment variable from a key of a Kubernetes Secret",
    )  # fmt: skip
    parser.add_argument(
        "--restarts", type=int, default=kubernetes.RESTARTS, help="maximum number of restarts (default: %(default)s)"
    )
    parser.add_argument(
        "--grace", type=int, default=timeouts.STOP_GRACE_S, metavar="SECONDS",
        help="time for saving when a pod is evicted (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--apply", action="store_true", help="pass the JobSet to kubectl instead of printing it")


def _run_k8s(args: argparse.Namespace, overrides: list[str]) -> int:
    common.refuse_overrides_before_command(overrides)
    jobset = kubernetes_jobset(args)
    if args.apply:
        jobset.apply()
    else:
        print(jobset.text(), end="")
    return ExitStatus.DONE


def kubernetes_jobset(args: argparse.Namespace) -> kubernetes.JobSet:
    """Returns the JobSet that the arguments of `convoy launch k8s` describe."""
    if (args.tpu is None) != (args.topology is None):
        raise ConfigError("--tpu and --topology are required together, such as --tpu=v5p --topology=4x4x8.")
    tpu = None if args.tpu is None else kubernetes.Tpu(args.tpu, args.topology, args.slices, args.chips_per_host)
    return kubernetes.JobSet(
        name=args.name,
        image=args.image,
        command=args.command,
        claim=args.claim,
        nodes=args.nodes,
        gpus_per_node=args.gpus_per_node,
        gpu=args.gpu,
        tpu=tpu,
        namespace=args.namespace,
        queue=args.queue,
        cpus=args.cpus,
        memory=args.memory,
        shared_memory=args.shm,
        variables=cli_args.parse_variables(
            args.env, "Take it from a Secret of the cluster: --secret-env NAME=SECRET:KEY."
        ),
        secrets=cli_args.parse_pairs("--secret-env", args.secret_env),
        restarts=args.restarts,
        grace_s=args.grace,
    )


def _add_tpu_vm(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"convoy launch tpu-vm {{{','.join(ACTIONS)}}} --name NAME --zone ZONE [options] [-- train ...]"
    parser.add_argument("action", choices=ACTIONS, help="what to do; this is the usual order")
    parser.add_argument("--name", required=True, help="name of the TPU VM or queued resource")
    parser.add_argument("--zone", required=True, help="zone, such as us-central2-b")
    parser.add_argument("--project", help="Google Cloud project (default: gcloud's)")
    parser.add_argument("--type", default="", help="for create: accelerator type, such as v5litepod-16")
    parser.add_argument("--version", default="", help="for create: image of the VM, such as v2-alpha-tpuv5-lite")
    parser.add_argument("--queued", action="store_true", help="use a queued resource; the same flag for every action")
    parser.add_argument("--slices", type=int, default=1, help="number of slices of a queued resource (default: 1)")
    parser.add_argument("--spot", action="store_true", help="for create: cheaper VMs that may be preempted")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for run: a variable; not for secrets"
    )
    parser.add_argument("--execute", action="store_true", help="run the commands instead of printing them")


def _run_tpu_vm(args: argparse.Namespace, overrides: list[str]) -> int:
    common.refuse_overrides_before_command(overrides)
    vm = tpu_vm.TpuVm(
        name=args.name,
        zone=args.zone,
        type=args.type,
        version=args.version,
        project=args.project,
        queued=args.queued,
        slices=args.slices,
        spot=args.spot,
        variables=cli_args.parse_variables(args.env, "Put it into a file on the hosts, or use a service account."),
    )
    if args.command and args.action != "run":
        raise ConfigError(f"convoy launch tpu-vm {args.action}: takes no command. Remove -- and what follows it.")
    commands = vm.run(args.command) if args.action == "run" else getattr(vm, args.action)()
    for command in commands:
        if args.execute:
            cli_args.run_command(command)
        else:
            print(cli_args.format_command(command))
    return ExitStatus.DONE


class _Launcher(NamedTuple):
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], int]
    help: str


_LAUNCHERS = {
    "local": _Launcher(_add_local, _run_local, "on this machine"),
    "ray": _Launcher(_add_ray, _run_ray, "on the nodes of a Ray cluster"),
    "slurm": _Launcher(
        _add_slurm, _run_slurm, "submit a Slurm job that saves before its time limit and requeues itself"
    ),
    "k8s": _Launcher(_add_k8s, _run_k8s, "print a Kubernetes JobSet, or apply it"),
    "tpu-vm": _Launcher(_add_tpu_vm, _run_tpu_vm, "print gcloud commands for Cloud TPU VMs, or run them"),
}
