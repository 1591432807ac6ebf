"""A pod of the manifest without Kubernetes: Linux namespaces reproduce its user, its rights and its mounts.

The program is process 1, user and group are those of the manifest, and only the volumes are writable. An image would
make its files readable for everyone; here the capability dac_read_search does, which permits no writes.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from engine.launch.kubernetes import JobSet
from tests import runs
from tests.faults import harness

PROGRAMS = ("unshare", "setpriv", "mount", "findmnt")
BEGIN = """\
set -eu
mount --make-rprivate /
for volume in {volumes}; do mount -t tmpfs -o uid={user},gid={group},mode=0755 tmpfs "$volume"; done
findmnt --raw --noheadings --output=TARGET | while read -r target; do
  case $target in {keep}) ;; *) mount -o remount,bind,ro "$target" 2>/dev/null || true ;; esac
done
cd {work}
exec setpriv --reuid={user} --regid={group} --clear-groups --no-new-privs --inh-caps=-all,+dac_read_search \\
  --ambient-caps=+dac_read_search --bounding-set=-all,+dac_read_search -- "$@"
"""


def possible() -> bool:
    """Whether this user may create mount and process namespaces."""
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in PROGRAMS):
        return False
    return subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.skipif(not possible(), reason="requires root and permission to create namespaces"),
]


class Pod:
    """A running pod whose volumes are in `folder`. A context manager."""

    def __init__(self, folder: Path, command: list[str]):
        jobset = JobSet(name="pod", image="none:1", command=command, claim="runs").manifest()
        pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        self.volumes = sorted(folder / mount["mountPath"][1:] for mount in container["volumeMounts"])
        for volume in self.volumes:
            volume.mkdir(parents=True)
        variables = {"JOB_COMPLETION_INDEX": "0", "TMPDIR": str(folder / "tmp")}
        for variable in container["env"]:
            value = variable.get("value", {"JOB_GLOBAL_INDEX": "0"}.get(variable["name"], "pod"))
            variables[variable["name"]] = f"{folder}{value}" if value.startswith("/") else value
        work = folder / container["workingDir"][1:]
        self.runs = work / "runs"
        begin = BEGIN.format(
            volumes=" ".join(map(str, self.volumes)),
            keep="|".join([*map(str, self.volumes), "/proc"]),
            work=work,
            user=pod["securityContext"]["runAsUser"],
            group=pod["securityContext"]["runAsGroup"],
        )
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", begin, "sh"]
        environment = runs.environment(**variables)
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # belongs to the tests; a pod has a separate cache
        self.process = subprocess.Popen(
            [*words, *runs.command(*container["command"][1:])],
            env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Pod":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    @property
    def first(self) -> int:
        """Host pid of process 1 of the pod; waits until it exists."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (found := children.read_text().split()):
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.01)
        return int(found[0])

    def host_path(self, path: Path) -> Path:
        """Returns the path by which the host can read a path of the pod."""
        return Path(f"/proc/{self.first}/root{path}")

    def writable(self) -> set[Path]:
        """Returns the mount points that process 1 of the pod can write to."""
        lines = [line.split() for line in Path(f"/proc/{self.first}/mountinfo").read_text().splitlines()]
        visible = {Path(words[4]): words[5].split(",") for words in lines}  # a later mount hides an earlier one
        return {target for target, options in visible.items() if "rw" in options}


def test_unprivileged_pod_trains_and_saves_on_sigterm(tmp_path):
    config = harness.config(
        tmp_path / "config", pause=0.3, cache__compiled=True, log__progress="lines", log__verbose=True
    )
    with Pod(tmp_path / "pod", ["train", config]) as pod:
        end = time.monotonic() + 180
        while not [*pod.host_path(pod.runs).glob("zoo/metrics.jsonl")]:
            assert pod.process.poll() is None and time.monotonic() < end, pod.process.communicate()[0]
            time.sleep(0.1)
        status = Path(f"/proc/{pod.first}/status").read_text()
        writable = pod.writable()
        os.kill(pod.first, signal.SIGTERM)
        output, _ = pod.process.communicate(timeout=180)
    assert pod.process.returncode == 42, output
    assert "Uid:\t1000\t1000\t1000\t1000" in status and "NoNewPrivs:\t1" in status
    assert writable == {*pod.volumes, Path("/proc")}
    assert "cannot be written" not in output
    assert re.search(r"the state of step \d+/60 is saved in", output)
