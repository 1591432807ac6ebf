"""The JobSet manifest: published types, restarts by exit code, process indices of the pods, and their rights."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from engine.base.errors import ConfigError
from engine.cluster.cluster_detection import detect
from engine.cluster.exit_status import ExitStatus, is_retried
from engine.launch.cli_args import LaunchError
from engine.launch.kubernetes import TPUS, JobSet, Tpu
from tests.launch.fakes import fake_command, path_with

COMMAND = ["train", "--config=configs.digits", "--config.train.total=2 epochs"]
TOPOLOGIES = {"v4": "2x2x4", "v5e": "4x4", "v5p": "4x4x4", "v6e": "4x8", "v7x": "2x2x2"}


def jobset(**settings) -> JobSet:
    given = {"name": "convoy", "image": "registry/convoy:1.0", "command": COMMAND, "claim": "runs", **settings}
    return JobSet(**given)


JOBSETS = [
    jobset(),
    jobset(nodes=4, gpus_per_node=8, gpu="nvidia-h100-80gb", cpus="200", memory="1500Gi", shared_memory="64Gi"),
    jobset(namespace="perception", queue="research", variables={"A": "1"}, secrets={"API_KEY": "tracker:key"}),
    *(jobset(tpu=Tpu(kind, TOPOLOGIES[kind], slices)) for kind in TPUS for slices in (1, 3)),
]


def job_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return job_of(manifest)["template"]["spec"]


def through_published_types(manifest: dict[str, Any]) -> dict[str, Any]:
    """Converts a manifest to the types of Kubernetes and JobSet and back, which drops unknown fields."""
    found = JobsetV1alpha2JobSet.from_dict(manifest)
    assert found is not None
    return found.to_dict()


@pytest.mark.parametrize("made", JOBSETS, ids=str)
def test_jobset_conforms_to_the_published_types(made):
    manifest = made.manifest()
    assert through_published_types(manifest) == manifest
    assert yaml.safe_load(made.text()) == manifest


def test_published_types_reject_a_wrong_field_and_a_wrong_type():
    manifest = jobset().manifest()
    pod_of(manifest)["restartPolicies"] = "Never"
    assert through_published_types(manifest) != manifest
    manifest = jobset().manifest()
    job_of(manifest)["backoffLimit"] = "0"
    with pytest.raises(ValueError, match="backoffLimit"):
        through_published_types(manifest)


def test_jobset_uses_documented_enum_values():
    manifest = jobset().manifest()
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = job_of(manifest)
    assert job["completionMode"] == "Indexed"
    assert {rule["action"] for rule in job["podFailurePolicy"]["rules"]} <= {"FailJob", "FailIndex", "Ignore", "Count"}
    assert pod_of(manifest)["restartPolicy"] == "Never"  # required by podFailurePolicy
    codes = job["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    assert codes == sorted(set(codes)) and 0 not in codes
    rules = manifest["spec"]["failurePolicy"]["rules"]
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in rules] == [("FailJobSet", ["PodFailurePolicy"])]
    assert all(re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"]) for rule in rules)


def restarted(manifest: dict[str, Any], code: int, disrupted: bool = False) -> bool:
    """Whether the JobSet restarts after a pod ends: the first matching rule decides; without one the pod counts."""
    action = "Count"
    for rule in job_of(manifest)["podFailurePolicy"]["rules"]:
        if "onPodConditions" in rule:
            fits = disrupted and rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        else:
            assert rule["onExitCodes"]["operator"] == "NotIn"
            assert rule["onExitCodes"]["containerName"] == pod_of(manifest)["containers"][0]["name"]
            fits = code not in rule["onExitCodes"]["values"]
        if fits:
            action = rule["action"]
            break
    assert job_of(manifest)["backoffLimit"] == 0  # so that one failure that counts fails the Job
    reason = {"FailJob": "PodFailurePolicy", "Count": "BackoffLimitExceeded"}[action]
    return not any(reason in rule["onJobFailureReasons"] for rule in manifest["spec"]["failurePolicy"]["rules"])


@pytest.mark.parametrize("code", [*filter(None, ExitStatus), 2, 126, 127])
def test_pods_restart_after_retried_exit_codes(code):
    assert restarted(jobset().manifest(), code) == is_retried(code)


def test_evicted_pod_restarts_after_any_exit_code():
    assert restarted(jobset().manifest(), 1, disrupted=True)


def environment(manifest: dict[str, Any], job: int, pod: int) -> dict[str, str]:
    """Returns the environment that Kubernetes gives one pod."""
    name = manifest["metadata"]["name"]
    labels = {
        "jobset.sigs.k8s.io/jobset-name": name,
        "jobset.sigs.k8s.io/jobset-uid": "5f1c",
        "jobset.sigs.k8s.io/replicatedjob-name": manifest["spec"]["replicatedJobs"][0]["name"],
        "jobset.sigs.k8s.io/job-global-index": str(job),
    }
    found = {"JOB_COMPLETION_INDEX": str(pod), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    for variable in pod_of(manifest)["containers"][0]["env"]:
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        elif "fieldRef" in variable["valueFrom"]:
            label = re.fullmatch(r"metadata\.labels\['(.*)'\]", variable["valueFrom"]["fieldRef"]["fieldPath"])
            assert label
            found[variable["name"]] = labels[label[1]]
    return found


@pytest.mark.parametrize("made", JOBSETS, ids=str)
def test_each_pod_detects_its_own_index_and_the_same_coordinator(made):
    manifest = made.manifest()
    jobs, pods = manifest["spec"]["replicatedJobs"][0]["replicas"], job_of(manifest)["parallelism"]
    assert job_of(manifest)["completions"] == pods
    processes = [detect({}, environment(manifest, *at)).process for at in itertools.product(range(jobs), range(pods))]
    assert [p.index for p in processes] == list(range(jobs * pods))
    assert {(p.count, p.coordinator) for p in processes} == {(jobs * pods, "convoy-worker-0-0.convoy:8476")}
    assert manifest["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "convoy"}


@pytest.mark.parametrize(
    ("tpu", "jobs", "pods", "chips", "selector"),
    [
        (Tpu("v5p", "4x4x4", 2), 2, 16, "4", "tpu-v5p-slice"),
        (Tpu("v5e", "2x4", 1, 8), 1, 1, "8", "tpu-v5-lite-podslice"),
        (Tpu("v6e", "16x16"), 1, 64, "4", "tpu-v6e-slice"),
    ],
)  # fmt: skip
def test_each_tpu_slice_is_a_job_with_one_pod_per_host(tpu, jobs, pods, chips, selector):
    manifest = jobset(tpu=tpu).manifest()
    assert (manifest["spec"]["replicatedJobs"][0]["replicas"], job_of(manifest)["parallelism"]) == (jobs, pods)
    pod = pod_of(manifest)
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": chips}}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": selector, "cloud.google.com/gke-tpu-topology": tpu.topology,
    }  # fmt: skip
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert manifest["metadata"].get("annotations") == (exclusive if pods > 1 else None)


def test_pods_request_gpus_and_select_their_nodes():
    manifest = JOBSETS[1].manifest()
    assert (job_of(manifest)["parallelism"], manifest["spec"]["replicatedJobs"][0]["replicas"]) == (4, 1)
    limits = pod_of(manifest)["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "200", "memory": "1500Gi", "nvidia.com/gpu": "8"}
    assert pod_of(manifest)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}


@pytest.mark.parametrize("made", JOBSETS, ids=str)
def test_pods_run_unprivileged_with_writable_volumes_only(made):
    pod = pod_of(made.manifest())
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert volumes[mounts["/tmp"]]["emptyDir"] == {}
    assert volumes[mounts["/convoy/runs"]]["persistentVolumeClaim"] == {"claimName": "runs"}
    variables = {v["name"]: v.get("value", "") for v in container["env"]}
    for name in ("HOME", "XDG_CACHE_HOME"):  # on a volume, since everything else is read-only
        assert any(variables[name].startswith(path) for path in mounts)


def test_pod_runs_the_program_without_a_shell_and_with_a_grace_period():
    pod = pod_of(jobset(grace_s=45).manifest())
    assert pod["terminationGracePeriodSeconds"] == 45
    assert pod["containers"][0]["command"] == ["convoy", *COMMAND]  # without a shell


def test_secret_is_referenced_by_name():
    text = JOBSETS[2].text()
    secret = {"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "tracker", "key": "key"}}}
    assert secret in pod_of(yaml.safe_load(text))["containers"][0]["env"]
    assert yaml.safe_load(text)["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"}


def test_apply_passes_the_manifest_to_kubectl(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", path_with(tmp_path))
    fake_command(tmp_path, "kubectl", f'echo "$@" > {tmp_path}/words; cat > {tmp_path}/applied')
    jobset().apply()
    assert Path(tmp_path, "words").read_text() == "apply --filename=-\n"
    assert yaml.safe_load(Path(tmp_path, "applied").read_text()) == jobset().manifest()
    fake_command(tmp_path, "kubectl", "cat > /dev/null; exit 3")
    with pytest.raises(LaunchError, match="kubectl apply --filename=- failed with exit code 3"):
        jobset().apply()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(command=["launch"]), "convoy launch k8s: found launch after --"),
        (dict(name="Convoy"), "--name = 'Convoy': allowed are lower-case letters"),
        (dict(name="c" * 53), f"--name = '{'c' * 53}': allowed are"),
        (dict(name="c" * 52, nodes=11), f"--name = '{'c' * 52}': allowed are"),
        (dict(claim="no_such"), "--claim = 'no_such': allowed are"),
        (dict(nodes=0), "--nodes = 0"),
        (dict(image="registry:5000/convoy"), "--image = 'registry:5000/convoy': a restart may pull another image"),
        (dict(image="convoy:latest"), "--image = 'convoy:latest': a restart may pull another image"),
        (dict(memory="64 GB"), "--memory = '64 GB': allowed is a Kubernetes quantity"),
        (dict(secrets={"KEY": "abc"}), "--secret-env KEY: allowed is NAME=SECRET:KEY"),
        (dict(variables={"JOBS": "3"}), "--env JOBS: the launcher sets this variable"),
        (dict(tpu=Tpu("v5", "4x4")), "--tpu = 'v5': not one of v4, v5e, v5p, v6e, v7x. Did you mean"),
        (dict(tpu=Tpu("v5p", "4x4")), "--topology = '4x4': v5p has 3 axes of chips, such as 4x4x4"),
        (dict(tpu=Tpu("v5e", "1x1")), "--topology = 1x1: 1 chips are not a multiple of --chips-per-host = 4."),
        (dict(tpu=Tpu("v5e", "4x4", 0)), "--slices = 0"),
        (dict(tpu=Tpu("v5e", "4x4"), nodes=4), "--tpu: --topology determines the number of nodes"),
    ],
)  # fmt: skip
def test_invalid_jobset_is_a_config_error(settings, sentence):
    with pytest.raises(ConfigError) as error:
        jobset(**settings).manifest()
    assert str(error.value).startswith(sentence)
