"""A pod of the manifest without Kubernetes: its user, its rights and its mounts, made by the kernel's namespaces.

Process 1 is the program, user and group are the manifest's, everything is read-only but the volumes. What an image
would have readable for all is read here by the one capability for that; it writes nothing.
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
from tests.faults import bench

PROGRAMS = ("unshare", "setpriv", "mount", "findmnt")
BEGIN = """\
set -eu
mount --make-rprivate /
for volume in {volumes}; do mount -t tmpfs -o uid={user},gid={group},mode=0755 tmpfs "$volume"; done
findmnt --raw --noheadings --output=TARGET | while read -r place; do
  case $place in {keep}) ;; *) mount -o remount,bind,ro "$place" 2>/dev/null || true ;; esac
done
cd {work}
exec setpriv --reuid={user} --regid={group} --clear-groups --no-new-privs --inh-caps=-all,+dac_read_search \\
  --ambient-caps=+dac_read_search --bounding-set=-all,+dac_read_search -- "$@"
"""


def possible() -> bool:
    """Whether this user may make mounts and processes of their own."""
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in PROGRAMS):
        return False
    return subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.skipif(not possible(), reason="namespaces are for root, and not allowed everywhere"),
]


class Pod:
    """One pod, whose volumes lie in a folder; a context manager."""

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
        place = folder / container["workingDir"][1:]
        self.runs = place / "runs"
        begin = BEGIN.format(
            volumes=" ".join(map(str, self.volumes)),
            keep="|".join([*map(str, self.volumes), "/proc"]),
            work=place,
            user=pod["securityContext"]["runAsUser"],
            group=pod["securityContext"]["runAsGroup"],
        )
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", begin, "sh"]
        environment = runs.environment(**variables)
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # of the tests; a pod has its own
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
        """The pid of its process 1, from outside; waits for it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (found := children.read_text().split()):
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.01)
        return int(found[0])

    def seen(self, path: Path) -> Path:
        """A path of the pod, as it is seen from outside."""
        return Path(f"/proc/{self.first}/root{path}")

    def writable(self) -> set[Path]:
        """Where its process 1 finds file systems that are not read-only."""
        lines = [line.split() for line in Path(f"/proc/{self.first}/mountinfo").read_text().splitlines()]
        uppermost = {Path(words[4]): words[5].split(",") for words in lines}  # a later one hides an earlier
        return {place for place, options in uppermost.items() if "rw" in options}


def test_unprivileged_pod_trains_and_saves_on_sigterm(tmp_path):
    config = bench.config(tmp_path / "config", pause=0.3, cache__compiled=True, log__progress="lines")
    with Pod(tmp_path / "pod", ["train", config]) as pod:
        end = time.monotonic() + 180
        while not [*pod.seen(pod.runs).glob("zoo/metrics.jsonl")]:
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
    assert re.search(r"^saving checkpoint of step \d+$", output, re.MULTILINE)
