"""The runs of the references that are killed and resumed, with a small model: a backbone frozen first, and adapters."""

import dataclasses

import pytest
from flax import nnx

from benchmarks.references import adapter_run, backbone_run, killed_run
from engine import hub
from engine.base.errors import RunError
from engine.config import validate
from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import runs, zoo

BODY = dict(match="^hidden/.*(kernel|bias)$", frozen_until="3 steps")


def forked(words, env):
    """Runs a program as a fork (`tests/warm.py`), compiled in less time."""
    return runs.run(words, env={**env, **runs.COMPILING, "JAX_NUM_CPU_DEVICES": "2"})


def test_killed_run_with_imported_weights_resumes_with_equal_bits(tmp_path):
    """Adapters are trained from the first step, the imported layers from step 3 on. The run is killed before."""
    hub.save(zoo.Classify(width=8).build(nnx.Rngs(1)), tmp_path / "model.safetensors")
    task = dict(target="tests.zoo.Classify", width=8)
    config = runs.config(
        task=dict(target="engine.adapters.adapted", task=task, match="kernel$", train="."),
        train__total="4 steps", mesh__cpu_devices=2, mesh__data=2, optimizer__groups__body=BODY, evaluations={},
        init__checkpoint=f"hf:{tmp_path}", checkpoint__every="2 steps", log__examples=True,
    )  # fmt: skip
    config = dataclasses.replace(config, hooks=runs.config(hooks__kill=killed_run.HOOK).hooks)
    (tmp_path / "config").mkdir()
    RunDirectory(tmp_path / "config").write_config_text(to_text(config))
    rows = list(killed_run.compare("run", [f"--config={tmp_path / 'config'}"], tmp_path, (2,), forked))
    assert [row.item for row in rows if not row.agrees] == []
    assert [row.cases for row in rows][::2] == [4, 4]
    log = (tmp_path / killed_run.KILLED / "log.txt").read_text()
    assert "initialized 6 arrays from" in log
    assert [step for step in range(5) if f"resuming from step {step}" in log] == [2]


def test_run_that_is_not_killed_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"\(exit code, kills to come\) = \(1, 1\). Expected: \(137, 0\)"):
        killed_run.train(["--config=no.such.config"], tmp_path / "run", [3], forked)


@pytest.mark.parametrize("run", [adapter_run, backbone_run])
def test_runs_of_the_references_are_configs(run):
    assert validate(run.get_config()).hooks.keys() == {"kill"}
