"""Whatever the files of a run directory hold, each reader of them succeeds or raises a ConvoyError."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine.api import prepared
from engine.api.resume import Accepted, check_config, check_data
from engine.api.saved_run import SavedRun
from engine.base import json_text
from engine.base.errors import ConvoyError
from engine.checkpoint.integrity import verify_all
from engine.checkpoint.store import CheckpointStore
from engine.config.text import field_texts
from engine.data import dataset_summary
from engine.loop import stopping
from engine.observe.goodput_table import goodput_text
from engine.observe.summary import Summary, summary_text
from engine.planning import record
from engine.planning.record import Measured, PlanFile, Predicted
from engine.planning.record_table import plan_table
from engine.report import page
from engine.report.gather import Gathered
from engine.run import lease, ledger, status
from engine.run.directory import RunDirectory
from tests import runs, zoo
from tests.properties import examples

CONFIG = runs.config(
    train__total="4 steps",
    checkpoint__every="2 steps",
    checkpoint__best="heldout/loss",
    checkpoint__best_mode="min",
    evaluations__heldout__every="2 steps",
    log__examples=True,
)
STEP = "checkpoints/4"
FILES = [
    "config.txt", "code.json", "data.json", "status.json", "goodput.jsonl", "metrics.jsonl", "examples/0-of-1.jsonl",
    "checkpoints/results.json", f"{STEP}/manifest.json", f"{STEP}/position/position.json", f"{STEP}/config/config.json",
    "lease/LEASE", "stopped.json", "plan.json",
]  # fmt: skip

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([-1, 2**31, 2**63, 10**400, "NaN", "-1", 1e300]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.sampled_from(["training", "../x"]))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
)
RAW = st.one_of(
    st.binary(max_size=20),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"\n\n", b"task.target: 3"]),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run_files") / "run"
    engine.train(CONFIG, workdir=path)
    stopping.write(RunDirectory(path), stopping.StopRecord.of(4, "the target is reached", field_texts(CONFIG)))
    predicted = Predicted(
        candidate="data=1", rows=16, machine={"margin": 0.5}, seconds={"compute": 2.0}, memory={"a": 3.0}
    )
    measured = Measured(step_s=1.0, data_wait=0.0, seconds=9.0, bytes=4, peak_bytes=5, attempt=1, time="")
    (path / "plan.json").write_text(record.to_text(PlanFile(predicted, measured)))
    return path


@pytest.fixture(scope="module")
def program() -> Any:
    return prepared.program(CONFIG)[0]


def path_of(run: Path, name: str) -> Path:
    """Returns the path of a file; the newest lease for LEASE."""
    return next((run / "lease").iterdir()) if name.endswith("LEASE") else run / name


def put(value: Any, data: st.DataObject, depth: int = 0) -> Any:
    """Returns JSON in which one value, at any depth, is another one or is missing."""
    if isinstance(value, dict | list) and value and depth < 6 and data.draw(st.integers(0, 4)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = data.draw(st.sampled_from(keys))
        changed = dict(value) if isinstance(value, dict) else list(value)
        if data.draw(st.integers(0, 5)):
            changed[key] = put(value[key], data, depth + 1)
        else:
            del changed[key]
        return changed
    return data.draw(JSON)


def changed(content: bytes, name: str, data: st.DataObject) -> bytes:
    """Returns other content for a file: random, truncated, or with one changed value."""
    kind = data.draw(st.sampled_from(["raw", "truncated", "value", "value", "value"]))
    if kind == "raw":
        return data.draw(RAW)
    if kind == "truncated":
        return content[: data.draw(st.integers(0, len(content)))]
    if name == "config.txt":
        lines = content.decode().splitlines()
        number = data.draw(st.integers(0, len(lines) - 1))
        value = data.draw(st.one_of(SCALARS.map(str), st.text(max_size=10)))
        lines[number] = f"{lines[number].partition(':')[0]}: {value}"
        return "\n".join(lines).encode(errors="replace")
    if name.endswith(".jsonl"):
        lines = content.splitlines()
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(put(json.loads(lines[number]), data)).encode()
        return b"\n".join(lines)
    return json.dumps(put(json.loads(content), data)).encode()


def readers(run: Path, name: str) -> dict[str, Callable[[], object]]:
    """Returns what the verbs and a resume do with a run directory, by name."""
    directory = RunDirectory(run)
    summaries = {"data": dataset_summary.summarize(zoo.source())}
    store = CheckpointStore(run / "checkpoints")

    def read_status() -> None:
        found = status.read(directory.status)
        summary_text(Summary(state="done", name="x", directory=directory, step=4, total_steps=4, metrics=found.metrics))

    def take_lease() -> None:
        lease.acquire(run / "lease", stale_s=0.02, grace_s=0.02).release()

    found: dict[str, Callable[[], object]] = {
        "status": read_status,
        "goodput": lambda: goodput_text(directory),
        "report": lambda: json_text.dumps(page.report([Gathered(run)])),
        "plans": lambda: plan_table([directory]),
        "resume: config": lambda: check_config(CONFIG, directory, Accepted()),
        "resume: data": lambda: check_data(summaries, directory, Accepted()),
        "resume: lease": take_lease,
        "resume: stop": lambda: stopping.stopped_reason(directory, 4, field_texts(CONFIG)),
        "examples": lambda: ledger.read(run / "examples"),
    }
    if name.startswith(("checkpoints", "config")):
        found |= {
            "checkpoints": lambda: engine.checkpoints(run),
            "choose": lambda: SavedRun(run).choose(None),
            "verify": lambda: verify_all(run / "checkpoints", lambda text: None),
            "resume: position": lambda: store.position(4),
            "checkpoint: config": lambda: store.config_text(4),
        }
    return found


def read_all(run: Path, name: str) -> None:
    for reader, read in readers(run, name).items():
        try:
            read()
        except ConvoyError as error:
            assert str(error).strip(), reader
        except Exception as error:
            raise AssertionError(f"{reader}, after {name} was changed: {type(error).__name__}: {error}") from error


@examples(120)
@given(st.sampled_from(FILES), st.data())
def test_readers_of_a_run_directory_raise_no_other_errors(run: Path, name: str, data: st.DataObject):
    path = path_of(run, name)
    content = path.read_bytes()
    leases = {file: file.read_bytes() for file in (run / "lease").iterdir()}
    path.write_bytes(changed(content, name, data))
    try:
        read_all(run, name)
    finally:
        path.write_bytes(content)
        shutil.rmtree(run / "lease")
        (run / "lease").mkdir()
        for file, text in leases.items():
            file.write_bytes(text)


def replace_by(kind: str, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    elif kind == "file":
        path.write_text("x")


@pytest.mark.parametrize("kind", ["folder", "loop", "link to nothing", "file", "missing"])
def test_other_kinds_of_files_raise_no_other_errors(run: Path, tmp_path: Path, kind: str):
    for number, name in enumerate([*FILES, STEP, f"{STEP}/state", "checkpoints", "lease", "examples"]):
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        replace_by(kind, path_of(copy, name))
        read_all(copy, name)


def test_names_that_are_no_steps_or_leases_are_ignored(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for name in ("9", "007", "٣", "9" * 200, "5.bad"):
        (copy / "checkpoints" / name).write_text("x")
        (copy / "lease" / f"{name}.json").write_text("x") if name != "9" else None
    (copy / "checkpoints/008").mkdir()
    assert [info.step for info in engine.checkpoints(copy)] == [2, 4]
    read_all(copy, "checkpoints")


def test_restore_of_a_changed_step_raises_no_other_errors(run: Path, tmp_path: Path, program: Any):
    """For evaluations, exports and a resume: random files are verified before Orbax reads them."""
    abstract = program.abstract_state.to_tree()
    files = sorted(path.relative_to(run) for path in (run / STEP).rglob("*") if path.is_file())
    for number, name in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        (copy / name).write_bytes(b"\xff" * (number % 3))
        with pytest.raises(ConvoyError, match="4"):
            CheckpointStore(copy / "checkpoints").restore(4, abstract)
    assert int(jax.device_get(CheckpointStore(run / "checkpoints").restore(4, abstract)["step"])) == 4
