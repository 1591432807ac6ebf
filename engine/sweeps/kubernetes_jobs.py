"""Kubernetes as the scheduler of a sweep: each run is a JobSet of `convoy launch k8s`."""

import dataclasses
import json
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from engine.launch.cli_args import LaunchError
from engine.launch.kubernetes import JobSet
from engine.sweeps.workers import Job

TIMEOUT_S = 60.0  # for a call of kubectl


@dataclass(frozen=True)
class KubernetesScheduler:
    """Calls of kubectl.

    Args:
        template: a JobSet with the image, the devices and other options of each run.
    """

    template: JobSet

    def submit(self, name: str, job: Job) -> None:
        """Applies the JobSet of a run, in place of one that has ended."""
        self._run("delete", "jobset", name, "--ignore-not-found", "--wait=true")
        jobset = dataclasses.replace(self.template, name=name, command=job.words)
        self._run("apply", "--filename=-", text=jobset.text())

    def states(self, names: Collection[str]) -> Mapping[str, bool]:
        """Returns name -> whether the JobSet has neither completed nor failed."""
        items: list[Any] = json.loads(self._run("get", "jobsets", "--output=json"))["items"]
        found = {item["metadata"]["name"]: item for item in items if item["metadata"]["name"] in names}
        return {name: not item.get("status", {}).get("terminalState") for name, item in found.items()}

    def cancel(self, name: str) -> None:
        """Deletes a JobSet: its pods get SIGTERM, and SIGKILL later."""
        self._run("delete", "jobset", name, "--ignore-not-found", "--wait=false")

    def _run(self, *words: str, text: str | None = None) -> str:
        namespace = [f"--namespace={self.template.namespace}"] if self.template.namespace else []
        try:
            command = ["kubectl", *words, *namespace]
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT_S)
        except FileNotFoundError as error:
            raise LaunchError("kubectl: not installed on this machine. Start the sweep where it is.") from error
        except subprocess.TimeoutExpired as error:
            raise LaunchError(f"kubectl has not answered in {TIMEOUT_S:.0f} s. The same command continues.") from error
        if done.returncode:
            raise LaunchError(f"kubectl {words[0]} failed with exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout
