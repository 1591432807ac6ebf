"""The batch script: its content, and its behaviour in a real shell for every exit code of the step."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from engine.base.errors import ConfigError
from engine.cluster.exit_status import ExitStatus, is_retried
from engine.launch.slurm import SlurmJob, time_limit_s
from tests.launch.fakes import fake_command, linter, path_with

COMMAND = ["train", "--config=configs.digits", "--config.train.total=2 epochs", "--workdir=runs/it's $HOME"]


def job(**settings) -> SlurmJob:
    return SlurmJob(**{"command": COMMAND, "nodes": 2, "time": "1:00:00", **settings})


def directives(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))


def run(folder: Path, srun: str, *, made=None, restarts: int = 0) -> tuple[int, str, bool]:
    """Runs a script with a fake srun. Returns its exit code, its output, and whether it requeued the job."""
    script = folder / "job.sh"
    script.write_text((made or job()).script())
    fake_command(folder / "bin", "srun", srun)
    fake_command(folder / "bin", "scontrol", f'echo "$@" >> {folder}/asked')
    variables = {"PATH": path_with(folder / "bin"), "SLURM_JOB_ID": "7"}
    if restarts:
        variables["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run(["bash", script], env=variables, cwd=folder, capture_output=True, text=True, timeout=60)
    asked = folder / "asked"
    assert done.stderr == ""
    assert not asked.exists() or asked.read_text() == "requeue 7\n"
    return done.returncode, done.stdout, asked.exists()


def test_directives_match_the_arguments():
    script = job(partition="gpu", account="a1", gpus_per_node=8, cpus_per_task=12, options=["exclusive"]).script()
    assert directives(script) == {
        "job-name": "convoy", "nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "8", "cpus-per-task": "12",
        "partition": "gpu", "account": "a1", "time": "1:00:00", "signal": "TERM@180", "requeue": "",
        "open-mode": "append", "output": "logs/convoy-%j.out", "exclusive": "",
    }  # fmt: skip
    assert " --cpus-per-task=12 \\\n" in script
    per_gpu = directives(job(gpus_per_node=8, task_per="gpu").script())
    assert (per_gpu["ntasks-per-node"], per_gpu["gpus-per-node"]) == ("8", "8")


def test_batch_script_passes_shellcheck(tmp_path):
    for i, made in enumerate((job(), job(image="registry/convoy:1", mounts=["/data:/data"], program=["a b/convoy"]))):
        (tmp_path / f"{i}.sh").write_text(made.script())
    found = subprocess.run(
        [linter("shellcheck"), "--exclude=SC2016", *tmp_path.iterdir()],  # a quoted $ in the command is intended
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_command_words_reach_srun_unchanged(tmp_path):
    _, output, _ = run(tmp_path, "printf '<%s>\\n' \"$@\"", made=job(program=["/shared/my env/bin/convoy"]))
    words = re.findall("<(.*)>", output)
    assert words[-len(COMMAND) - 1 :] == ["/shared/my env/bin/convoy", *COMMAND]
    assert words[: -len(COMMAND) - 1] == [
        "--kill-on-bad-exit=0", "--wait=60", "--open-mode=append", "--output=logs/convoy-%j-%t.out",
    ]  # fmt: skip


def test_container_mounts_the_submission_folder():
    script = job(image="registry/convoy:1", mounts=["/data:/data"]).script()
    mounts = "--container-mounts=.:/convoy,/data:/data"
    for words in ("--container-image=registry/convoy:1", mounts, "-workdir=/convoy"):
        assert words in script


@pytest.mark.parametrize("code", [*ExitStatus, 2, 127])
def test_job_is_requeued_after_retried_exit_codes(tmp_path, code):
    returned, output, asked = run(tmp_path, f"exit {code}")
    assert (returned, asked) == (code, is_retried(code))
    assert f"convoy: exit code {code}, " in output


@pytest.mark.parametrize(("restarts", "asked"), [(1, True), (2, False)])
def test_job_is_not_requeued_beyond_the_restart_limit(tmp_path, restarts, asked):
    code, output, found = run(tmp_path, "exit 42", made=job(restarts=2), restarts=restarts)
    assert (code, found) == (42, asked)
    assert ("restart 2 of at most 2" if asked else "no restart") in output


def test_all_restarts_of_a_job_share_one_token(tmp_path):
    _, output, _ = run(tmp_path, "echo $CONVOY_RUN_TOKEN")
    assert output.startswith("slurm--7\n")


def test_cancelled_job_is_not_requeued(tmp_path):
    (tmp_path / "job.sh").write_text(job().script())
    step = f"trap 'echo saved; exit 42' TERM; touch {tmp_path}/started; for i in {{1..600}}; do sleep 0.1; done"
    fake_command(tmp_path / "bin", "srun", step)
    fake_command(tmp_path / "bin", "scontrol", "echo requeued")
    shell = subprocess.Popen(
        ["bash", tmp_path / "job.sh"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={"PATH": path_with(tmp_path / "bin"), "SLURM_JOB_ID": "7"},
    )  # fmt: skip
    while not (tmp_path / "started").exists():
        assert shell.poll() is None
        time.sleep(0.02)
    os.kill(shell.pid, signal.SIGTERM)  # the step has not received it yet: the shell must wait
    time.sleep(0.3)
    assert shell.poll() is None
    os.killpg(shell.pid, signal.SIGTERM)
    output, _ = shell.communicate(timeout=180)
    assert (shell.returncode, output.splitlines()) == (42, ["saved", "convoy: exit code 42, no restart"])


def test_submit_passes_the_script_to_sbatch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path_with(tmp_path / "bin"))
    fake_command(tmp_path / "bin", "sbatch", "cat > submitted")
    made = job(logs="out/logs")
    made.submit()
    assert Path("submitted").read_text() == made.script()
    assert Path("out/logs").is_dir()


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 5400), ("90:30", 5430), ("1:00:00", 3600), ("2-12", 216000), ("2-12:30", 217800), ("1-0:0:5", 86405)],
)
def test_time_limits_parse_like_slurm(time, expected):
    assert time_limit_s(time) == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(command=[]), "convoy launch slurm: found nothing after --. Write a command"),
        (dict(command=["supervise"]), "convoy launch slurm: found supervise after --"),
        (dict(nodes=0), "--nodes = 0: allowed is a whole number from 1"),
        (dict(restarts=-1), "--restarts = -1: allowed is a whole number from 0"),
        (dict(task_per="gpu"), "--task-per = gpu: requires GPUs. Set --gpus-per-node."),
        (dict(time="soon"), "--time = 'soon': allowed are MINUTES"),
        (dict(time="0"), "--time = '0': allowed are MINUTES"),
        (dict(time="3"), "--stop-before = 180: allowed are seconds below the time limit, which is 180 s"),
        (dict(partition="a b"), "--partition = 'a b': allowed are letters"),
        (dict(name="x\n#SBATCH --uid=0"), "--name = 'x"),
        (dict(logs="logs/%j"), "--logs = 'logs/%j': allowed are letters"),
        (dict(options=["output=x"]), "--option = 'output=x': the script sets this option"),
    ],
)  # fmt: skip
def test_invalid_job_is_a_config_error(settings, sentence):
    with pytest.raises(ConfigError) as error:
        job(**settings).script()
    assert str(error.value).startswith(sentence)
