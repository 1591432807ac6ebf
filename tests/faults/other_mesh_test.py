"""A run that resumes with another number of processes, on another mesh, reads every example once."""

import itertools
import signal
from pathlib import Path

import numpy as np
import optax
import pytest
from flax import nnx

from engine import Loss, Packed, Task
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

TOLERANCE = 1e-5  # sums of a batch over another number of devices, after 60 steps of AdamW


class Documents:
    """Texts of 3 to 40 tokens."""

    def __init__(self, n: int = 50):
        rng = np.random.default_rng(3)
        self._texts = [rng.integers(1, 60, rng.integers(3, 40)) for _ in range(n)]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict:
        return {"tokens": self._texts[index]}


class NextToken(Task):
    """Predicts each token from the one before it: a program that compiles in a fraction of that of a decoder."""

    def build(self, rngs):
        return nnx.Sequential(nnx.Embed(64, 16, rngs=rngs), nnx.Linear(16, 64, rngs=rngs))

    def loss(self, model, batch, rng):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["tokens"]), batch["targets"])
        return Loss.of(losses, batch["weight"])


def packed() -> Packed:
    return Packed(Documents(), 16, split=False)


KINDS = {
    "examples": {},
    "packed": {
        "task": {"target": "tests.faults.other_mesh_test.NextToken"},
        "data": {"target": "tests.faults.other_mesh_test.packed"},
        "evaluations": {},
    },
}
# Processes of one device each, and their mesh. supervisor_test.py continues a mixture in fewer processes.
MORE, FEWER = ((2, "data=2"), (4, "data=2 fsdp=2")), ((2, "fsdp=2"), (1, "data=1"))


def settings(mesh: str) -> dict[str, int]:
    axes = (word.split("=") for word in mesh.split())
    return {f"mesh__{axis}": int(size) for axis, size in axes}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, one: harness.Outcome) -> dict[str, harness.Outcome]:
    """The undisturbed run of one process, for each kind of data."""
    found = {"examples": one}  # which has no settings
    for kind in KINDS.keys() - found.keys():
        found[kind] = harness.undisturbed(tmp_path_factory.mktemp(kind), **KINDS[kind])
    return found


def kill_after(job: harness.Job, run: Path, step: int) -> None:
    """Kills all processes at once, at some moment after the step."""
    job.until_step(run, step)
    for pid in [job.pid_of(index) for index in range(job.processes)]:
        harness.kill(pid)
    assert job.end() == 128 + signal.SIGKILL, job.output


@pytest.mark.case("other processes and another mesh")
@pytest.mark.parametrize(("kind", "meshes"), [("examples", MORE), ("packed", FEWER)])
def test_run_resumes_with_other_processes_on_another_mesh(kind, meshes, tmp_path, alone, add_row):
    run, lost = tmp_path / "run", 0
    for i, (processes, mesh) in enumerate(meshes):
        before = max(harness.losses(run), default=0)
        where = harness.config(tmp_path / f"config{i}", pause=0.05, **KINDS[kind], **settings(mesh))
        with harness.Job("train", where, f"--workdir={run}", processes=processes) as job:
            if i + 1 < len(meshes):
                kill_after(job, run, 20 * (i + 1))
            else:
                assert job.end() == 0, job.output
        first = min(step for step, attempt in harness.attempts(run).items() if attempt == i + 1)
        lost += before - first + 1 if i else 0
    found = harness.outcome(run)
    assert found.examples == alone[kind].examples
    assert list(found.examples) == list(range(1, harness.STEPS + 1))
    for step, loss in found.losses.items():
        assert float.fromhex(loss) == pytest.approx(float.fromhex(alone[kind].losses[step]), rel=TOLERANCE), step
    words = " -> ".join(f"{processes} ({mesh})" for processes, mesh in meshes)
    add_row(f"{kind}: {words}", lost=lost, code=0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_epoch_reads_every_example_once(kind, alone):
    read = list(itertools.chain.from_iterable(alone[kind].examples.values()))
    assert len(read) == harness.STEPS * 16
    size = 64 if kind == "examples" else len(packed())
    epochs = [read[i : i + size] for i in range(0, len(read) - size + 1, size)]
    assert all(len(set(epoch)) == size for epoch in epochs)
