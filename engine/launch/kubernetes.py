"""Kubernetes: the JobSet manifest of a run, as plain data, and `kubectl apply`.

A JobSet has one Job per TPU slice, or a single Job for all nodes without TPUs. A pod that is evicted or exits with a
retried code (`exit_status.is_retried`) fails its Job, and JobSet restarts all Jobs. Any other code fails the JobSet.
`cluster/cluster_detection.py` reads the variables that are set here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.base.errors import ConfigError, did_you_mean
from engine.base.types import Json
from engine.cluster.exit_status import KILLED, ExitStatus
from engine.launch import cli_args, timeouts
from engine.run.owner import TOKEN

RESTARTS = 50
USER = 1000  # user and group of the Dockerfile
JOB = "worker"

# Variables of a pod whose values are labels that JobSet sets. The uid of the JobSet is the token of the run: with it, a
# restart may take over the lease that an earlier start held.
LABELS: Mapping[str, str] = {
    "JOBSET_NAME": "jobset.sigs.k8s.io/jobset-name",
    "REPLICATED_JOB_NAME": "jobset.sigs.k8s.io/replicatedjob-name",
    "JOB_GLOBAL_INDEX": "jobset.sigs.k8s.io/job-global-index",
    TOKEN: "jobset.sigs.k8s.io/jobset-uid",
}
_RESERVED = (*LABELS, "JOBS", "PODS_PER_JOB", "JOB_COMPLETION_INDEX")

# GKE's name of each TPU, and the number of dimensions of its topologies.
TPUS: Mapping[str, tuple[str, int]] = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
    "v7x": ("tpu7x", 3),
}


@dataclass(frozen=True)
class Tpu:
    """Identical TPU slices."""

    kind: str  # a key of TPUS
    topology: str  # chips along each axis, such as "4x4x8"
    slices: int = 1
    chips_per_host: int = 4

    def hosts(self) -> int:
        """Returns the number of hosts of a slice. Raises ConfigError for an impossible slice."""
        if self.kind not in TPUS:
            raise ConfigError(f"--tpu = {self.kind!r}: not one of {', '.join(TPUS)}.{did_you_mean(self.kind, TPUS)}")
        axes = TPUS[self.kind][1]
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", self.topology) or self.topology.count("x") != axes - 1:
            example = "x".join(["4"] * axes)
            raise ConfigError(
                f"--topology = {self.topology!r}: {self.kind} has {axes} axes of chips, such as {example}."
            )
        cli_args.check_at_least("--slices", self.slices)
        chips = math.prod(map(int, self.topology.split("x")))
        if chips % cli_args.check_at_least("--chips-per-host", self.chips_per_host):
            raise ConfigError(
                f"--topology = {self.topology}: {chips} chips are not a multiple of --chips-per-host = "
                f"{self.chips_per_host}. Set --chips-per-host to the number of chips of the node pool's machine type."
            )
        return chips // self.chips_per_host


@dataclass(frozen=True, kw_only=True)
class JobSet:
    """The JobSet of one run. `nodes` and `gpus_per_node` apply only without TPUs."""

    name: str
    image: str
    command: Sequence[str]  # verb and arguments, such as ["train", "--config=configs.digits"]
    claim: str  # PersistentVolumeClaim of the run directories; every pod writes to it
    nodes: int = 1
    gpus_per_node: int = 0
    gpu: str | None = None  # GKE's name of the GPU, such as "nvidia-h100-80gb"
    tpu: Tpu | None = None
    namespace: str | None = None
    queue: str | None = None  # Kueue queue
    cpus: str | None = None  # per pod, as a Kubernetes quantity
    memory: str | None = None
    shared_memory: str = "8Gi"
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)  # variable -> SECRET:KEY
    restarts: int = RESTARTS
    grace_s: int = timeouts.STOP_GRACE_S

    def manifest(self) -> dict[str, Any]:
        """Returns the JobSet as plain data.

        Raises:
            ConfigError: a name, number or text that Kubernetes would reject.
        """
        self._check()
        jobs, pods = self._size()
        metadata: dict[str, Json] = {"name": self.name}
        if self.namespace:
            metadata["namespace"] = self.namespace
        if self.queue:
            metadata["labels"] = {"kueue.x-k8s.io/queue-name": self.queue}
        if self.tpu is not None and pods > 1:  # a slice is one node pool; a Job on two node pools has no fast network
            metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {
                "network": {"enableDNSHostnames": True, "subdomain": self.name},
                "failurePolicy": {
                    "maxRestarts": self.restarts,
                    # Every other failure restarts all Jobs.
                    "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
                },
                "replicatedJobs": [{"name": JOB, "replicas": jobs, "template": {"spec": self._job(pods)}}],
            },
        }

    def text(self) -> str:
        """Returns the manifest as YAML. Raises like `manifest`."""
        import yaml  # no other verb needs it

        return "# Made by `convoy launch k8s`.\n" + yaml.safe_dump(self.manifest(), sort_keys=False, width=120)

    def apply(self) -> None:
        """Passes the manifest to kubectl. Raises like `manifest`, and LaunchError if kubectl is missing or fails."""
        cli_args.run_command(["kubectl", "apply", "--filename=-"], self.text())

    def _size(self) -> tuple[int, int]:
        """Returns the number of Jobs, and the number of pods per Job."""
        return (1, self.nodes) if self.tpu is None else (self.tpu.slices, self.tpu.hosts())

    def _job(self, pods: int) -> dict[str, Json]:
        retried = [int(code) for code in (ExitStatus.RETRY, *KILLED)]  # PyYAML writes plain integers only
        return {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [
                    # Drained, preempted or evicted: the exit code of the pod does not matter.
                    {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "convoy", "operator": "NotIn", "values": retried},
                    },
                ]
            },
            "template": {"spec": self._pod()},
        }

    def _pod(self) -> dict[str, Json]:
        selector = {}
        if self.tpu is not None:
            selector["cloud.google.com/gke-tpu-accelerator"] = TPUS[self.tpu.kind][0]
            selector["cloud.google.com/gke-tpu-topology"] = self.tpu.topology
        elif self.gpu:
            selector["cloud.google.com/gke-accelerator"] = self.gpu
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace_s,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **({"nodeSelector": selector} if selector else {}),
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [self._container()],
            "volumes": [
                {"name": "runs", "persistentVolumeClaim": {"claimName": self.claim}},
                {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": self.shared_memory}},
                {"name": "tmp", "emptyDir": {}},
            ],
        }

    def _container(self) -> dict[str, Json]:
        limits = {"cpu": self.cpus, "memory": self.memory}
        limits["google.com/tpu" if self.tpu else "nvidia.com/gpu"] = self._devices()
        return {
            "name": "convoy",
            "image": self.image,
            "command": ["convoy", *self.command],  # no shell, so that SIGTERM reaches the program
            "workingDir": "/convoy",  # so that the default run directory, `runs/NAME`, is on the claim
            "env": self._environment(),
            "resources": {"limits": {name: value for name, value in limits.items() if value}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "runs", "mountPath": "/convoy/runs"},
                {"name": "shared-memory", "mountPath": "/dev/shm"},
                {"name": "tmp", "mountPath": "/tmp"},
            ],
        }

    def _devices(self) -> str | None:
        count = self.tpu.chips_per_host if self.tpu else self.gpus_per_node
        return str(count) if count else None

    def _environment(self) -> list[dict[str, Json]]:
        """Returns variables for cluster detection and caches, and the user's. Kubernetes sets JOB_COMPLETION_INDEX."""
        jobs, pods = self._size()
        values = {"JOBS": str(jobs), "PODS_PER_JOB": str(pods), "HOME": "/tmp", "XDG_CACHE_HOME": "/convoy/runs/.cache"}
        sources = {name: {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}} for name, label in LABELS.items()}
        for name, text in self.secrets.items():
            secret, key = text.split(":")
            sources[name] = {"secretKeyRef": {"name": secret, "key": key}}
        return [
            *({"name": name, "valueFrom": source} for name, source in sources.items()),
            *({"name": name, "value": value} for name, value in {**values, **self.variables}.items()),
        ]

    def _check(self) -> None:
        cli_args.check_command("convoy launch k8s", self.command)
        jobs, pods = self._size()
        cli_args.check_at_least("--nodes", self.nodes)
        cli_args.check_at_least("--gpus-per-node", self.gpus_per_node, 0)
        cli_args.check_at_least("--restarts", self.restarts, 0)
        cli_args.check_at_least("--grace", self.grace_s)
        # The host name of a pod is JOBSET-worker-JOB-POD, with at most 63 characters.
        cli_args.check_label("--name", self.name, 63 - len(f"-{JOB}-{jobs - 1}-{pods - 1}"))
        for flag, text in {"--claim": self.claim, "--namespace": self.namespace, "--queue": self.queue}.items():
            if text is not None:
                cli_args.check_label(flag, text)
        if self.tpu is not None and (self.gpus_per_node or self.nodes != 1):
            raise ConfigError("--tpu: --topology determines the number of nodes. Remove --nodes and --gpus-per-node.")
        if not re.search(r"(@sha256:[0-9a-f]{64}|:(?!latest$)[\w.-]+)$", self.image):
            raise ConfigError(
                f"--image = {self.image!r}: a restart may pull another image than the first start. "
                "Use a fixed tag or a digest, such as registry/convoy:1.4 or registry/convoy@sha256:..."
            )
        for flag, text in {"--cpus": self.cpus, "--memory": self.memory, "--shm": self.shared_memory}.items():
            if text is not None and not re.fullmatch(r"\d+(\.\d+)?(m|[kMGTPE]i?|Ki)?", text):
                raise ConfigError(f"{flag} = {text!r}: allowed is a Kubernetes quantity, such as 8, 500m or 64Gi.")
        for name, text in self.secrets.items():
            if not re.fullmatch(r"[a-z0-9.-]+:[\w.-]+", text):  # the text may be the secret itself: it is not shown
                raise ConfigError(f"--secret-env {name}: allowed is NAME=SECRET:KEY, with a Secret of the cluster.")
        if taken := [name for name in (*self.variables, *self.secrets) if name in _RESERVED]:
            raise ConfigError(f"--env {taken[0]}: the launcher sets this variable. Remove it.")
