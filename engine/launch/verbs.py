"""The arguments of `convoy launch slurm`, `k8s` and `tpu-vm`, and the job that each makes of them.

`engine/arguments.py` has the arguments of all other verbs, and of `convoy launch local`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from engine.cluster.exit_status import ExitStatus
from engine.config.errors import ConfigError
from engine.launch import cli_args, kubernetes, slurm, timeouts, tpu_vm

type AddParser = Callable[..., argparse.ArgumentParser]  # `add_parser` of a subparsers object

ACTIONS = ("create", "install", "run", "logs", "stop", "delete")  # of a TPU VM, in the order of its life


def add_slurm(add: AddParser) -> None:
    """Adds the parser of `convoy launch slurm`, by `add_parser` of a subparsers object."""
    parser = add(
        "slurm",
        help="submit a Slurm job that saves before its time limit and puts itself back into the queue",
        usage="convoy launch slurm --nodes N --time LIMIT [options] -- train ...",
    )
    parser.add_argument("--nodes", type=int, required=True, help="how many")
    parser.add_argument("--time", required=True, help="limit of one run of the job, as 4:00:00 or 2-12")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs to ask for on each node (default: none)")
    parser.add_argument(
        "--task-per", choices=["node", "gpu"], default="node", help="a process for each node (default), or each GPU"
    )
    parser.add_argument("--cpus-per-task", type=int, help="cores of each process")
    parser.add_argument("--name", default="convoy", help="of the job and its logs (default: convoy)")
    parser.add_argument("--partition", help="where to queue")
    parser.add_argument("--account", help="who pays")
    parser.add_argument("--option", action="append", default=[], help="any other one of sbatch, as --option=qos=high")
    program = parser.add_mutually_exclusive_group()
    program.add_argument("--venv", help="environment that has convoy, on a disk that the nodes share")
    program.add_argument("--binary", help="convoy as a program, as bazel-bin/convoy")
    program.add_argument("--container-image", metavar="IMAGE", help="with convoy in it, for Pyxis and Enroot")
    parser.add_argument(
        "--container-mount", action="append", default=[], metavar="HOST:INSIDE", help="beside this folder, as /convoy"
    )
    parser.add_argument("--logs", default="logs", help="folder for the job's and each task's output (default: logs)")
    parser.add_argument(
        "--stop-before", type=int, default=timeouts.SLURM_NOTICE_S, metavar="SECONDS",
        help="when to save and stop before the limit; up to a minute earlier (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--restarts", type=int, default=slurm.RESTARTS, help="at most so many (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")


def add_k8s(add: AddParser) -> None:
    """Adds the parser of `convoy launch k8s`."""
    parser = add(
        "k8s",
        help="print a JobSet for Kubernetes, or apply it",
        usage="convoy launch k8s --name NAME --image IMAGE --claim CLAIM [options] -- train ...",
    )
    parser.add_argument("--name", required=True, help="of the JobSet")
    parser.add_argument("--image", required=True, help="with convoy in it (see the Dockerfile), and a tag or digest")
    parser.add_argument(
        "--claim", required=True, help="PersistentVolumeClaim for runs/, writable from all nodes at once"
    )
    parser.add_argument("--nodes", type=int, default=1, help="pods, one a node (default: 1)")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs of each pod (default: none)")
    parser.add_argument("--gpu", help="GKE's name of the GPU, as nvidia-h100-80gb (default: any)")
    parser.add_argument("--tpu", help=f"instead of GPUs: {', '.join(kubernetes.TPUS)}")
    parser.add_argument("--topology", help="chips of a TPU slice along its axes, as 4x4x8")
    parser.add_argument("--slices", type=int, default=1, help="TPU slices (default: 1)")
    parser.add_argument("--chips-per-host", type=int, default=4, help="of the TPU machine type (default: 4)")
    parser.add_argument("--namespace", help="default: kubectl's own")
    parser.add_argument("--queue", help="of Kueue")
    parser.add_argument("--cpus", help="of each pod")
    parser.add_argument("--memory", help="of each pod, shared memory included, as 200Gi")
    parser.add_argument("--shm", default="8Gi", help="shared memory of each pod (default: 8Gi)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable, no secret")
    parser.add_argument(
        "--secret-env", action="append", default=[], metavar="NAME=SECRET:KEY", help="a variable from a Secret"
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=kubernetes.RESTARTS,
        help="of the JobSet, at most so many (default: %(default)s)",
    )
    parser.add_argument(
        "--grace", type=int, default=timeouts.STOP_GRACE_S, metavar="SECONDS",
        help="for saving when a pod is taken away (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--apply", action="store_true", help="hand it to kubectl instead of printing it")


def add_tpu_vm(add: AddParser) -> None:
    """Adds the parser of `convoy launch tpu-vm`."""
    parser = add(
        "tpu-vm",
        help="print the gcloud commands for TPU VMs, or run them",
        usage=f"convoy launch tpu-vm {{{','.join(ACTIONS)}}} --name NAME --zone ZONE [options] [-- train ...]",
    )
    parser.add_argument("action", choices=ACTIONS, help="in this order; stop and delete end it")
    parser.add_argument("--name", required=True, help="of the TPU VM or the queued resource")
    parser.add_argument("--zone", required=True, help="as us-central2-b")
    parser.add_argument("--project", help="default: gcloud's own")
    parser.add_argument("--type", default="", help="to create: the slice, as v5litepod-16")
    parser.add_argument("--version", default="", help="to create: the VM's image, as v2-alpha-tpuv5-lite")
    parser.add_argument("--queued", action="store_true", help="ask for a queued resource, in each of the actions")
    parser.add_argument("--slices", type=int, default=1, help="slices of a queued resource (default: 1)")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="to run: a variable, no secret"
    )
    parser.add_argument("--execute", action="store_true", help="run the commands instead of printing them")


def run(args: argparse.Namespace) -> int:
    """Does what the arguments of one of these verbs say; `args.command` is what followed `--`. Returns the exit code.

    Raises:
        ConfigError: arguments that make no job.
        LaunchError: the scheduler's own command is missing or failed.
    """
    _RUN[args.where](args)
    return ExitStatus.DONE


def _slurm(args: argparse.Namespace) -> None:
    job = slurm.SlurmJob(
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
    if args.dry_run:
        print(job.script(), end="")
    else:
        job.submit()


def _program(args: argparse.Namespace) -> Sequence[str]:
    """How convoy is called on a node: by default as it was called here."""
    if args.container_image:
        return ["convoy"]
    if args.venv:
        return [f"{args.venv.rstrip('/')}/bin/convoy"]
    return [args.binary] if args.binary else [sys.executable, "-m", "engine.main"]


def _k8s(args: argparse.Namespace) -> None:
    if (args.tpu is None) != (args.topology is None):
        raise ConfigError("--tpu and --topology belong together, as --tpu=v5p --topology=4x4x8. Give both, or none.")
    tpu = None if args.tpu is None else kubernetes.Tpu(args.tpu, args.topology, args.slices, args.chips_per_host)
    jobset = kubernetes.JobSet(
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
        variables=cli_args.variables(args.env, "Take it from a Secret of the cluster by --secret-env NAME=SECRET:KEY."),
        secrets=cli_args.pairs("--secret-env", args.secret_env),
        restarts=args.restarts,
        grace_s=args.grace,
    )
    if args.apply:
        jobset.apply()
    else:
        print(jobset.text(), end="")


def _tpu_vm(args: argparse.Namespace) -> None:
    vm = tpu_vm.TpuVm(
        name=args.name,
        zone=args.zone,
        type=args.type,
        version=args.version,
        project=args.project,
        queued=args.queued,
        slices=args.slices,
        spot=args.spot,
        variables=cli_args.variables(args.env, "Put it into a file on the hosts, or give them a service account."),
    )
    if args.command and args.action != "run":
        raise ConfigError(f"convoy launch tpu-vm {args.action}: takes no command. Leave out -- and what follows it.")
    commands = vm.run(args.command) if args.action == "run" else getattr(vm, args.action)()
    for command in commands:
        if args.execute:
            cli_args.call(command)
        else:
            print(cli_args.lines(command))


ADD = {"slurm": add_slurm, "k8s": add_k8s, "tpu-vm": add_tpu_vm}
_RUN = {"slurm": _slurm, "k8s": _k8s, "tpu-vm": _tpu_vm}
