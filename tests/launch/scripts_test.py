"""Golden text of what each script in scripts/ submits, so that a diff shows the effect of a change; and linters.

To accept a change: CONVOY_UPDATE_GOLDENS=1 python -m pytest tests/launch/scripts_test.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from engine.launch.kubernetes import USER
from tests.launch.fakes import ROOT, fake_command, linter, path_with

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "CONVOY_UPDATE_GOLDENS"
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))

# Variables that a user fills in, and the arguments with which a script only prints.
FILLED = {
    "IMAGE": "registry.example/convoy:1.0", "CLAIM": "runs", "QUEUE": "research", "VENV": "/shared/convoy-env",
    "PARTITION": "gpu", "ACCOUNT": "perception", "ZONE": "us-west4-a", "WORKDIR": "/mnt/runs/v5e",
}  # fmt: skip
CALLS = {"slurm_gpu": ["--dry-run"], "tpu_vm": ["create", "install", "run", "logs", "stop", "delete"]}


def printed(script: Path, folder: Path) -> str:
    """Returns what a script prints, with the real `convoy`; `convoy launch local` is printed instead of run."""
    print_local = 'if [[ $2 == local ]]; then printf "%q " convoy "$@"; echo; exit; fi'
    fake_command(folder, "convoy", f'{print_local}\nexec {sys.executable} -m engine.cli.main "$@"')
    environment = {**os.environ, **FILLED, "PATH": path_with(folder)}
    text = ""
    for words in [[word] for word in CALLS.get(script.stem, [])] or [[]]:
        done = subprocess.run(
            ["bash", script, *words], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        text += f"$ {' '.join([f'scripts/{script.name}', *words])}\n{done.stdout}"
    return text


def test_every_golden_text_has_a_script():
    assert SCRIPTS
    assert {file.stem for file in GOLDEN.glob("*.txt")} <= {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_prints_its_golden_text(script, tmp_path):
    golden, text = GOLDEN / f"{script.stem}.txt", printed(script, tmp_path)
    if os.environ.get(UPDATE) == "1":
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text)
    command = f"{UPDATE}=1 python -m pytest tests/launch/scripts_test.py"
    assert golden.is_file() and text == golden.read_text(), (
        f"{script.name} differs from its golden text. To accept: {command}"
    )
    if script.stem.startswith("gke"):
        manifest = yaml.safe_load(text.partition("\n")[2])
        found = JobsetV1alpha2JobSet.from_dict(manifest)
        assert found is not None and found.to_dict() == manifest


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_header_explains_variables_and_cost(script):
    header = script.read_text().partition("set -euo pipefail")[0]
    assert "# Fill in: " in header
    assert script.stem == "laptop" or "# Costs " in header
    needed = re.findall(r"\$\{([A-Z]+):\?\}", script.read_text())
    assert all(re.search(rf"\b{name}\b", header) for name in needed)
    assert os.access(script, os.X_OK)


def test_scripts_pass_shellcheck():
    found = subprocess.run([linter("shellcheck"), *SCRIPTS], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_dockerfile_passes_hadolint():
    found = subprocess.run([linter("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_image_is_pinned_unprivileged_and_runs_without_a_shell():
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == [f"{USER}:{USER}"]
    assert re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE) == ['["convoy"]']  # without a shell
    assert "--require-hashes" in text
    versions = {}
    for variant in re.findall(r"VARIANT is (\w+), (\w+) or (\w+)", text)[0]:
        lock = (ROOT / "tools" / "image" / f"{variant}.lock").read_text()
        versions[variant] = dict(re.findall(r"^([\w.-]+)==([\w.]+)", lock, re.MULTILINE))
    locks = "".join((ROOT / name).read_text() for name in ("requirements.lock", "tools/locks/examples.lock"))
    newest = dict(re.findall(r"^([\w.-]+)==([\w.]+)", locks, re.MULTILINE))
    for variant, packages in versions.items():
        different = {name: version for name, version in packages.items() if newest.get(name, version) != version}
        assert not different, f"tools/image/{variant}.lock and requirements.lock differ. Run tools/lock."
    assert "libtpu" in versions["tpu"] and "jax-cuda13-plugin" in versions["cuda"] and "libtpu" not in versions["cpu"]
