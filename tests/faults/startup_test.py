"""Runs that cannot or must not start are refused before training, with a message that shows the difference."""

import time
from pathlib import Path
from typing import Any

import pytest

from engine import ArraySource
from engine.readers.array_record import write_array_record
from tests import zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]


def refused(*words: str, say: tuple[str, ...], **env: Any) -> float:
    """Runs a job that must exit with 1 and print these texts; returns the seconds that it took."""
    with harness.Job(*words, **env) as job:
        assert job.end() == 1, job.output
        took = time.monotonic() - job.started
        for text in say:
            assert text in job.output, job.output
        assert "Traceback" not in job.output
    return took


@pytest.mark.case("a typo in the config")
@pytest.mark.parametrize(
    ("what", "word", "say"),
    [
        ("a field of the engine", "train.totl=5 steps", "train.totl: unknown field"),
        ("a value", "train.precision=float16", "train.precision"),
    ],
)
def test_config_typo_is_reported_without_importing_jax(what, word, say, tmp_path, add_row):
    (tmp_path / "broken/jax").mkdir(parents=True)
    (tmp_path / "broken/jax/__init__.py").write_text("raise SystemExit('jax was loaded')\n")
    run = tmp_path / "run"
    where = harness.config(tmp_path / "config")
    near = "Did you mean train.total?" if "totl" in word else "Did you mean bfloat16"
    words = ("train", where, f"--workdir={run}", f"--config.{word}")
    took = refused(*words, say=(say, near), PYTHONPATH=str(tmp_path / "broken"))
    assert not run.exists()
    add_row(f"a typo in {what}", detected_s=took, code=1)


@pytest.mark.case("a typo in the config")
def test_typo_in_a_task_argument_is_reported_before_devices_start(tmp_path, add_row):
    where, run = harness.config(tmp_path / "config"), tmp_path / "run"
    words = ("train", where, f"--workdir={run}", "--config.task.widht=8")
    took = refused(*words, say=("task.widht", "Did you mean", "width"), JAX_PLATFORMS="no-such-platform")
    assert not run.exists()
    add_row("a typo in an argument of the task, before devices start", detected_s=took, code=1)


@pytest.mark.case("a mesh that does not divide")
@pytest.mark.parametrize(
    ("devices", "word", "say"),
    [
        (2, "mesh.fsdp=3", ("data=-1 x fsdp=3 needs a multiple of 3 devices, found 2",)),
        (3, "mesh.fsdp=3", ("16", "3")),
    ],
)
def test_mesh_that_does_not_divide_is_reported_with_the_numbers(devices, word, say, tmp_path, add_row):
    where, run = harness.config(tmp_path / "config"), tmp_path / "run"
    words = ("train", where, f"--workdir={run}", f"--config.{word}")
    took = refused(*words, say=say, JAX_NUM_CPU_DEVICES=str(devices))
    assert not (run / "metrics.jsonl").exists() and not harness.saved(run)
    add_row(f"{word} on {devices} devices, batches of 16", detected_s=took, code=1)


TASK = "from tests import zoo\n\n\nclass Theirs(zoo.Classify):\n    pass\n"


def write_task(folder: Path, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "theirs.py").write_text(text)
    return str(folder)


def other_library(folder: Path) -> str:
    """Writes a folder whose metadata states another version of optax."""
    where = folder / "optax-0.0.1.dist-info"
    where.mkdir(parents=True)
    (where / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
    return str(folder)


@pytest.mark.case("processes started differently")
@pytest.mark.parametrize("what", ["config", "code", "library"])
def test_processes_started_with_different_config_code_or_libraries_are_refused(what, tmp_path, add_row):
    where, run = harness.config(tmp_path / "config", task__target="theirs.Theirs"), tmp_path / "run"
    mine = theirs = write_task(tmp_path / "code", TASK)
    words: list[tuple[str, ...]] = [("train", where, f"--workdir={run}")] * 2
    say = "module theirs: "
    if what == "config":
        words[1] = (*words[1], "--config.train.seed=1")
        say = "train.seed: 1, but 0 in process 0"
    elif what == "code":
        theirs = write_task(tmp_path / "newer", f"{TASK}    margin = 0.1\n")
    else:
        theirs = f"{other_library(tmp_path / 'newer')}:{mine}"
        say = "optax: 0.0.1, but "
    with harness.start_processes(words, [{"PYTHONPATH": path} for path in (mine, theirs)]) as jobs:
        for job in jobs:
            assert job.end() == 1, job.output
            assert "InconsistentProcesses: the processes of this run differ.\nprocess 1 on " in job.output
            assert f"  {say}" in job.output and "Start all of them with the same command" in job.output
            assert "Traceback" not in job.output
        took = time.monotonic() - jobs[0].started
    assert not run.exists()
    add_row(f"processes with another {what}", detected_s=took, code=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps with a Task in a user file."""
    top = tmp_path_factory.mktemp("trained")
    where = harness.config(top / "config", task__target="theirs.Theirs", train__total="10 steps")
    path = write_task(top / "code", TASK)
    with harness.Job("train", where, f"--workdir={top / 'run'}", PYTHONPATH=path) as job:
        assert job.end() == 0, job.output
    return top


@pytest.mark.case("another model at resume")
def test_resume_with_another_config_is_refused_with_the_difference(trained, add_row):
    run = trained / "run"
    before = harness.state_hashes(run)
    changes = ("task.width=8", "optimizer.target=optax.sgd", "train.global_batch_size=32")
    words = ("train", f"--config={run}", f"--workdir={run}", *(f"--config.{change}" for change in changes))
    say = (
        f"{run} holds a run of another config:\n",
        "\n  task.width: (none) -> 8\n",
        "\n  optimizer.target: optax.adamw -> optax.sgd\n",
        "\n  train.global_batch_size: 16 -> 32\n",
        f"--config.init.checkpoint={run}",
    )
    took = refused(*words, say=say, PYTHONPATH=str(trained / "code"))
    assert harness.state_hashes(run) == before
    add_row("another model, optimizer and config at resume", detected_s=took, code=1)


NECK = """
from flax import nnx

from tests import zoo


class Mlp(zoo.Mlp):
    def __init__(self, width, dropout, rngs):
        super().__init__(width, dropout, rngs)
        self.neck = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, 6, rngs=rngs)


class Theirs(zoo.Classify):
    def build(self, rngs):
        return Mlp(self.width, self.dropout, rngs=rngs)
"""


@pytest.mark.case("another model at resume")
def test_resume_with_changed_model_code_is_refused_and_warm_start_works(trained, tmp_path, add_row):
    code, run, new = write_task(tmp_path / "code", NECK), trained / "run", tmp_path / "new"
    words = ("train", f"--config={run}", "--config.train.total=11 steps", "--config.optimizer.schedule=constant")
    tree = (
        "opt_state/",
        "params/head/kernel: checkpoint (32, 4) float32, model (32, 6) float32.",
        "params/neck/kernel: checkpoint has none, model (32, 32) float32.",
        f"--config.init.checkpoint={run}",
    )
    took = refused(
        "train", f"--config={run}", "--config.train.total=10 steps", f"--workdir={run}", say=tree, PYTHONPATH=code
    )
    add_row("changed model code: the difference of the trees", detected_s=took, code=1)

    begin = (*words, f"--workdir={new}", f"--config.init.checkpoint={run}")
    say = ("params/head/kernel: here (32, 6) float32, there (32, 4) float32", "params/neck/kernel: here", "there none")
    refused(*begin, say=say, PYTHONPATH=code)
    none = ("--config.init.paths.head=None", "--config.init.paths.neck=None", "--config.optimizer.learning_rate=0.0")
    with harness.Job(*begin, *none, "--config.mesh.fsdp=2", processes=2, PYTHONPATH=code) as job:  # another mesh
        assert job.end() == 0, job.output
    there, here = harness.state_hashes(run), harness.state_hashes(new)
    same = {path for path in here if path.startswith("params/") and here[path] == there.get(path)}
    assert same == {f"params/hidden/{i}/{name}" for i in (0, 1) for name in ("kernel", "bias")}
    assert (new / "log.txt").read_text().count("initialized 4 arrays from") == 1
    add_row("a warm start copies the arrays of init.paths", bitwise=True, code=0)


def write_records(folder: Path, seed: int, order: str = "ab") -> dict:
    """Writes two files of examples; returns the config section."""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate("ab"):
        write_array_record(ArraySource(zoo.examples(32, seed + i)), str(folder / f"{name}.arrayrecord"))
    paths = tuple(str(folder / f"{name}.arrayrecord") for name in order)
    return {"target": "engine.readers.array_record.ArrayRecordSource", "pattern": paths}


@pytest.mark.case("another dataset at resume")
def test_resume_on_another_dataset_is_refused_and_on_the_same_one_bitwise_equal(tmp_path, add_row):
    data, run = write_records(tmp_path / "data", 0), tmp_path / "run"
    whole = harness.undisturbed(tmp_path / "undisturbed", data=data)
    where = harness.config(tmp_path / "config", data=data, pause=0.05)
    with harness.Job("train", where, f"--workdir={run}") as job:
        job.until_step(run, 12)
        harness.kill(job.process.pid)
        job.end()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}

    write_records(tmp_path / "data", 7)
    took = refused(
        "train", where, f"--workdir={run}",
        say=(f"{run} holds a run on another dataset:\n  data: content: a.arrayrecord ", "--accept-data-change"),
    )  # fmt: skip
    assert harness.status(run)["state"] == "failed" and harness.status(run)["exit_code"] == 1
    add_row("other content of the same files", detected_s=took, code=1)

    write_array_record(ArraySource(zoo.examples(40, 1)), str(tmp_path / "data/b.arrayrecord"))
    took = refused(
        "train", where, f"--workdir={run}", say=("data: examples: 64 -> 72", "data: content: b.arrayrecord ")
    )
    add_row("more examples in one of the files", detected_s=took, code=1)

    for name, content in kept.items():
        (tmp_path / "data" / name).write_bytes(content)
    swapped = harness.config(tmp_path / "swapped", data=write_records(tmp_path / "data", 0, order="ba"))
    took = refused("train", swapped, f"--workdir={run}", say=("holds a run of another config:\n  data.pattern: ",))
    add_row("the same paths in another order", detected_s=took, code=1)

    for name, content in kept.items():
        (tmp_path / "data" / name).write_bytes(content)
    with harness.Job("train", where, f"--workdir={run}") as job:
        assert job.end() == 0, job.output
    assert harness.outcome(run) == whole
    add_row("the same dataset resumes", bitwise=True, code=0)
