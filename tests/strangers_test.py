"""Run directories of strangers: only regular files inside of a step are read, and reading runs no code."""

import contextlib
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest

import engine
from engine.api.resume import Accepted, check_config
from engine.api.saved_run import SavedRun
from engine.base.errors import ConvoyError
from engine.checkpoint import arrays
from engine.checkpoint.integrity import DamagedCheckpoint, list_set_aside, verify, verify_all
from engine.checkpoint.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    files_of,
    hash_files,
    read_lock,
    read_manifest,
    write_manifest,
)
from engine.checkpoint.policy import read_results
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.warm_start import find_step
from engine.config import load
from engine.data import dataset_summary
from engine.observe.goodput_table import goodput_text
from engine.run import lease, status
from engine.run.directory import RunDirectory

FIXTURE = Path(__file__).parent / "fixtures/run_format_1/run"
STEP = "checkpoints/7"
SECRET = "text that no message may contain"
IMPORTED = "strangers_module"
FILES = [
    "config.txt", "data.json", "status.json", "metrics.jsonl", "goodput.jsonl", "log.txt", "lease/1.json",
    "checkpoints/results.json", "checkpoints/6.bad/damage.txt", f"{STEP}/{MANIFEST}", f"{STEP}/commit_success.txt",
    f"{STEP}/position/position.json", f"{STEP}/config/config.json", f"{STEP}/state/_METADATA",
    f"{STEP}/state/_sharding", f"{STEP}/state/array_metadatas/process_0", f"{STEP}/state/manifest.ocdbt",
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run of the repository, as a stranger may send it."""
    path = tmp_path / "run"
    shutil.copytree(FIXTURE, path)
    (path / "checkpoints/6").rename(path / "checkpoints/6.bad")
    (path / "checkpoints/6.bad/damage.txt").write_text("state/d/x: is missing\n")
    return path


def sign(step):
    """Writes the manifest that fits to the files of a step, as its sender can."""
    write_manifest(step, Manifest(int(step.name), hash_files(step, files_of(step)), read_manifest(step).arrays))


def put(step, name, entry):
    """Adds an entry to the manifest of a step."""
    manifest = read_manifest(step)
    write_manifest(step, Manifest(manifest.step, {**manifest.files, name: entry}, manifest.arrays))


@pytest.mark.parametrize("name", ["../../secret", "/secret", "a/../../../secret", "./secret", "", "a//b", "secret\0"])
def test_manifest_that_names_a_file_outside_of_the_step_is_damage(run, name):
    (run / "secret").write_text(SECRET)
    name = str(run / "secret") if name == "/secret" else name
    put(run / STEP, name, FileEntry(len(SECRET), "0" * 32))
    with pytest.raises(DamagedCheckpoint, match="is not the path of a file inside of the step") as raised:
        verify(run / STEP)
    assert "found the hash" not in str(raised.value)  # it was not read


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("what", ["link", "folder", "device", "loop", "pipe"])
def test_entry_that_is_no_regular_file_is_damage(run, what, listed):
    """Whether or not the manifest lists it: Orbax reads files that the manifest does not list."""
    path = run / STEP / "state/_METADATA"
    path.unlink()
    target = {"link": run / "config.txt", "folder": run, "device": "/dev/zero", "loop": path}.get(what)
    os.mkfifo(path) if target is None else path.symlink_to(target)
    if not listed:
        manifest = read_manifest(run / STEP)
        files = {name: entry for name, entry in manifest.files.items() if not name.endswith("_METADATA")}
        write_manifest(run / STEP, Manifest(manifest.step, files, manifest.arrays))
    with pytest.raises(DamagedCheckpoint, match=r"state/_METADATA: is a .*, expected a regular file"):
        verify(run / STEP)


def test_pipe_in_the_place_of_a_manifest_is_damage(run):
    (run / STEP / MANIFEST).unlink()
    os.mkfifo(run / STEP / MANIFEST)
    with read_lock(run / STEP), pytest.raises(DamagedCheckpoint, match="it is not a regular file"):
        verify(run / STEP)


def test_link_in_the_place_of_a_folder_of_a_step_is_damage(run, tmp_path):
    (run / STEP / "state").rename(tmp_path / "state")
    (run / STEP / "state").symlink_to(tmp_path / "state")
    with pytest.raises(DamagedCheckpoint, match="state: is a link, expected a regular file"):
        verify(run / STEP)


def test_manifest_with_wrong_types_is_damage(run):
    for change in (
        {"files": []},
        {"files": {"a": 3}},
        {"step": None},
        {"arrays": 7},
        {"files": {"a": {"bytes": 1e999}}},
    ):
        manifest = read_manifest(FIXTURE / STEP)
        text = _signed({"format": 1, "step": 7, "files": {}, "arrays": manifest.arrays} | change)
        (run / STEP / MANIFEST).write_text(text)
        with pytest.raises(DamagedCheckpoint, match="is not the text of a manifest"):
            verify(run / STEP)


def _signed(content):
    from engine.checkpoint.manifest import _with_hash

    return _with_hash(content)


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, (f"import {IMPORTED}",)


def read_everything(run):
    """Reads every file of a run as the commands do, apart from building the targets of its config."""
    directory = RunDirectory(run)
    readers = [
        lambda: load(str(run)),
        lambda: status.read(directory.status),
        lambda: dataset_summary.read(directory.data),
        lambda: goodput_text(directory),
        lambda: read_results(directory.checkpoints),
        lambda: list_set_aside(directory.checkpoints),
        lambda: lease.acquire(run / "lease", stale_s=0, grace_s=0).release(),
        lambda: SavedRun(run).checkpoints(),
        lambda: check_config(load(str(FIXTURE)), directory, Accepted()),
        lambda: CheckpointStore(directory.checkpoints).position(7),
        lambda: CheckpointStore(directory.checkpoints).config_text(7),
        lambda: find_step(str(run)),
        lambda: verify_all(directory.checkpoints, print),
        lambda: _read_arrays(run / STEP),
        lambda: RunDirectory.open(run).close(),
    ]
    for reader in readers:
        with contextlib.suppress(ConvoyError):
            reader()


def _read_arrays(step):
    verify(step)
    with arrays.reraise(str):
        arrays.read_smallest(step / "state")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax forgets coroutines on errors
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["pickle", "device", "names"])
def test_reading_a_run_runs_no_code(run, name, content, tmp_path, monkeypatch):
    """Each file in turn is a pickle, a link to an endless device, or names a module of the stranger."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{IMPORTED}.py").write_text("class Task: pass\nclass Array: pass\n")
    path = run / name
    text = path.read_bytes()
    path.unlink()
    if content == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    elif content == "device":
        path.symlink_to("/dev/zero")
    else:
        for old in (b"tests.zoo", b"jax.Array", b"NamedSharding", b"float32", b"Owner", b"training"):
            text = text.replace(old, f"{IMPORTED}.Array".encode())
        path.write_bytes(text)
    if name.startswith(STEP) and not name.endswith(MANIFEST) and content != "device":
        sign(run / STEP)
    read_everything(run)
    assert IMPORTED not in sys.modules
    if content == "pickle":
        pickle.loads(pickle.dumps(Payload()))
        assert sys.modules.pop(IMPORTED)  # so it would have been noticed


def test_module_of_the_config_is_imported_only_to_build_its_targets(run, tmp_path, monkeypatch):
    """`evaluate`, `export` and `train` build the targets of the run's config; this is what the page promises."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{IMPORTED}.py").write_text("class Task: pass\n")
    config = (run / "config.txt").read_text().replace("tests.zoo.Classify", f"{IMPORTED}.Task")
    (run / "config.txt").write_text(config)
    read_everything(run)
    assert IMPORTED not in sys.modules

    with pytest.raises(ConvoyError):
        engine.evaluate(run)
    assert IMPORTED in sys.modules
    del sys.modules[IMPORTED]
