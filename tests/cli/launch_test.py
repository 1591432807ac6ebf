"""Command lines of `convoy launch`."""

import shlex

import pytest
import yaml

from engine.base.errors import ConfigError
from engine.cli.arguments import parse, split_overrides
from engine.cli.launch import ACTIONS, run
from tests.launch.fakes import fake_command, path_with

K8S = "launch k8s --name=c --image=r/c:1 --claim=runs"
DIGITS = "--config=configs.digits"
TPU_VM = "--name=v5e --zone=z"


def launch(text: str) -> int:
    """Runs a command line, given without the word `convoy`."""
    words = shlex.split(text)
    end = words.index("--") if "--" in words else len(words)
    rest, overrides = split_overrides(words[:end])
    return run(parse(rest, words[end:]), overrides)


def printed(capsys, text: str) -> str:
    assert launch(text) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ("--venv=/shared/env/", "/shared/env/bin/convoy train"),
        ("--binary=bazel-bin/convoy", "bazel-bin/convoy train"),
        ("--container-image=r/c:1", "convoy train"),
        ("", "-m engine.cli.main train"),
    ],
)
def test_slurm_uses_the_given_convoy_program(capsys, words, program):
    script = printed(capsys, f"launch slurm --nodes=2 --time=60 {words} --dry-run -- train --config=configs.digits")
    assert f"{program} \\\n  --config=configs.digits" in script


def test_slurm_submits_without_dry_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", path_with(tmp_path))
    monkeypatch.chdir(tmp_path)
    fake_command(tmp_path, "sbatch", "cat > submitted; echo Submitted batch job 7")
    assert launch("launch slurm --nodes=2 --time=60 --logs=out --name=x -- train --config=configs.digits") == 0
    assert "#SBATCH --nodes=2\n" in (tmp_path / "submitted").read_text()
    assert "out/x-JOB-TASK.out" in capfd.readouterr().out


def test_k8s_prints_or_applies_the_jobset(capsys, tmp_path, monkeypatch):
    text = printed(
        capsys, f"{K8S} --tpu=v5p --topology=4x4x4 --slices=2 --env A=1 --secret-env B=s:k -- train --config=c"
    )
    manifest = yaml.safe_load(text)
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 2
    monkeypatch.setenv("PATH", path_with(tmp_path))
    fake_command(tmp_path, "kubectl", f"cat > {tmp_path}/applied")
    assert printed(capsys, f"{K8S} --nodes=3 --apply -- train") == ""
    assert "parallelism: 3\n" in (tmp_path / "applied").read_text()


def test_tpu_vm_prints_or_executes_the_commands(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", path_with(tmp_path))
    fake_command(tmp_path, "gcloud", 'echo "did $*"')
    text = printed(capfd, f"launch tpu-vm stop {TPU_VM}")
    assert text.startswith("gcloud compute tpus tpu-vm ssh v5e")
    assert printed(capfd, f"launch tpu-vm stop {TPU_VM} --execute").startswith("did compute tpus tpu-vm ssh v5e")
    for action in set(ACTIONS) - {"run", "create"}:
        assert printed(capfd, f"launch tpu-vm {action} {TPU_VM}").startswith("gcloud ")
    assert "convoy train" in printed(capfd, f"launch tpu-vm run {TPU_VM} -- train --config=c")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("launch slrum", "convoy launch: argument WHERE: invalid choice: 'slrum'"),
        ("launch slurm --nodes=2", "convoy launch slurm: the following arguments are required: --time"),
        ("launch slurm --nodes=2 --time=9 --node=3", "--node=3: unknown argument of convoy launch slurm."),
        ("launch slurm --nodes=2 --time=9 --venv=a --binary=b", "convoy launch slurm: argument --binary: not"),
        ("launch slurm --nodes=2 --time=60", "convoy launch slurm: found nothing after --"),
        ("launch slurm --nodes=2 --time=60 -- trian", "trian: unknown command. Did you mean train?"),
        (f"launch slurm --nodes=2 --time=60 -- train {DIGITS} --fresch", "--fresch: unknown argument of convoy train."),
        (f"launch slurm --nodes=2 --time=60 -- train {DIGITS} --config.train.totl=1", "train.totl: unknown field"),
        (f"{K8S} --config.train.seed=1 -- train", "--config.train.seed=1: belongs to the command. Write it after --."),
        (f"{K8S} --topology=4x4 -- train", "--tpu and --topology are required together"),
        (f"{K8S} --env WANDB_API_KEY=x -- train", "--env WANDB_API_KEY: is a secret, which everybody could read"),
        (f"launch tpu-vm delete {TPU_VM} -- train", "convoy launch tpu-vm delete: takes no command"),
        ("launch local", "convoy launch local: the following arguments are required: --processes"),
        ("launch local --processes=2", "convoy launch local: found nothing after --. Write a command: convoy launch"),
        ("launch local --processes=2 -- launch", "convoy launch local: found launch after --. Write a command"),
        ("launch local --processes=0 -- train", "--processes = 0: allowed is a whole number from 1"),
        ("launch local --processes=2 --config.train.seed=1 -- train", "--config.train.seed=1: belongs to the command."),
        ("launch local --processes=2 --restarts=1 -- evaluate x", "convoy launch: found evaluate after --. Write"),
        ("launch ray --processes=2", "convoy launch ray: found nothing after --. Write a command: convoy launch ray"),
        ("launch ray --processes=0 -- train", "--processes = 0: allowed is a whole number from 1"),
        ("launch ray --processes=2 --gpus=-1 -- train", "--gpus = -1: allowed is a number from 0"),
        ("launch ray --processes=2 --resource=TPU -- train", "--resource = 'TPU': allowed is NAME=VALUE"),
        ("launch ray --processes=2 --resource=TPU=a -- train", "--resource TPU = 'a': allowed is a number"),
        ("launch ray --processes=2 --resource=GPU=1 -- train", "--resource GPU: is a resource of Ray's own"),
        ("launch ray --processes=2 --restarts=1 -- evaluate x", "convoy launch: found evaluate after --. Write"),
        ("launch ray --processes=2 --address=x:1:2 -- evaluate x", "--address = 'x:1:2': allowed is HOST:PORT"),
        (f"launch tpu-vm begin {TPU_VM}", "convoy launch tpu-vm: argument action: invalid choice: 'begin'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_config_errors(text, sentence):
    with pytest.raises(ConfigError) as error:
        launch(text)
    assert str(error.value).startswith(sentence)
