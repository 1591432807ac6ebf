import json
from pathlib import Path

import pytest
import yaml

from engine.launch.cli_args import LaunchError
from engine.launch.kubernetes import JobSet
from engine.sweeps import kubernetes_jobs
from engine.sweeps.kubernetes_jobs import KubernetesScheduler
from engine.sweeps.workers import Job
from tests.launch.fakes import fake_command, path_with

KUBECTL = """
echo "$@" >> {folder}/calls
if [ "$1" = apply ]; then cat > {folder}/applied; fi
if [ "$1" = get ]; then cat {folder}/jobsets.json; fi
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Puts a `kubectl` on the PATH that writes its calls to a file; returns that file."""
    fake_command(tmp_path / "bin", "kubectl", KUBECTL.format(folder=tmp_path))
    monkeypatch.setenv("PATH", path_with(tmp_path / "bin"))
    return tmp_path / "calls"


def scheduler(**changes) -> KubernetesScheduler:
    return KubernetesScheduler(JobSet(name="sweep", image="image:1", command=["train"], claim="runs", **changes))


def test_jobset_of_the_run_replaces_one_that_has_ended(calls):
    job = Job("trial-0000", ["train", "--config=configs.digits", "--workdir=runs/a b"], Path("runs/a b"))
    scheduler(namespace="team", nodes=2).submit("sweep-1-trial-0000", job)
    deleted, applied = calls.read_text().splitlines()
    assert deleted == "delete jobset sweep-1-trial-0000 --ignore-not-found --wait=true --namespace=team"
    assert applied == "apply --filename=- --namespace=team"
    manifest = yaml.safe_load((calls.parent / "applied").read_text())
    assert manifest["metadata"]["name"] == "sweep-1-trial-0000"
    assert "--workdir=runs/a b" in json.dumps(manifest)


def test_jobset_runs_until_it_has_a_terminal_state(calls):
    items = [
        {"metadata": {"name": "queued"}},
        {"metadata": {"name": "running"}, "status": {"restarts": 1}},
        {"metadata": {"name": "done"}, "status": {"terminalState": "Completed"}},
        {"metadata": {"name": "failed"}, "status": {"terminalState": "Failed"}},
        {"metadata": {"name": "of-another-sweep"}},
    ]
    (calls.parent / "jobsets.json").write_text(json.dumps({"items": items}))
    found = scheduler().states(["queued", "running", "done", "failed", "gone"])
    assert found == {"queued": True, "running": True, "done": False, "failed": False}
    assert calls.read_text() == "get jobsets --output=json\n"


def test_cancel_deletes_without_waiting(calls):
    scheduler().cancel("sweep-1-trial-0000")
    assert calls.read_text() == "delete jobset sweep-1-trial-0000 --ignore-not-found --wait=false\n"


def test_refusal_of_kubectl_is_told(calls, monkeypatch):
    fake_command(calls.parent / "bin", "kubectl", "echo 'error: forbidden' >&2; exit 3")
    with pytest.raises(LaunchError, match="kubectl get failed with exit code 3: error: forbidden"):
        scheduler().states(["a"])
    monkeypatch.setenv("PATH", str(calls.parent / "empty"))
    with pytest.raises(LaunchError, match="kubectl: not installed on this machine"):
        scheduler().states(["a"])


def test_kubectl_that_hangs_is_told(calls, monkeypatch):
    fake_command(calls.parent / "bin", "kubectl", "exec sleep 60")
    monkeypatch.setattr(kubernetes_jobs, "TIMEOUT_S", 0.1)
    with pytest.raises(LaunchError, match="kubectl has not answered in 0 s"):
        scheduler().states(["a"])
