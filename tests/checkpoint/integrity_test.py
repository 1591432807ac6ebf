"""Damage of a step is detected and reported identically by all processes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import CheckpointError
from engine.checkpoint import timeouts
from engine.checkpoint.integrity import (
    DamagedCheckpoint,
    DamagedCheckpoints,
    compare_arrays,
    hash_part,
    shorten,
    verify,
    verify_all,
    write_merged_manifest,
)
from engine.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    UnsupportedFormat,
    files_of,
    find_problems,
    hash_files,
    read_manifest,
    write_manifest,
)
from engine.cluster.exit_status import ExitStatus
from tests import runs
from tests.checkpoint.saves import Saves


def write_step(directory, count=3):
    (directory / "d").mkdir(parents=True)
    for i in range(count):
        (directory / "d" / f"{i}").write_bytes(np.random.default_rng(i).bytes(100))
    manifest = Manifest(int(directory.name), hash_files(directory, files_of(directory)), {"w": "0" * 16, "b": "1" * 16})
    write_manifest(directory, manifest)
    return manifest


def test_intact_step_passes_verification(tmp_path):
    manifest = write_step(tmp_path / "5")
    progress = []
    assert verify(tmp_path / "5", 60, lambda done, total: progress.append((done, total))) == manifest
    assert progress[-1] == (300, 300)
    compare_arrays(tmp_path / "5", manifest, manifest.arrays)


def test_verify_reports_every_problem(tmp_path):
    write_step(tmp_path / "5", 6)
    (tmp_path / "5" / "d" / "1").unlink()
    (tmp_path / "5" / "d" / "3").write_text("short")
    with pytest.raises(DamagedCheckpoint) as error:
        verify(tmp_path / "5", 60)
    assert error.value.problems == [
        "d/1: is missing, expected 100 bytes",
        "d/3: found 5 bytes, expected 100",
    ]
    assert str(error.value).startswith(f"{tmp_path / '5'}: is damaged: d/1: is missing, expected 100 bytes; d/3: found")
    assert error.value.exit_code == ExitStatus.STOP
    assert shorten(list("abcdef")) == "a; b; c; d; and 2 more"


def test_compare_arrays_names_changed_and_unknown_arrays(tmp_path):
    manifest = write_step(tmp_path / "5")
    compare_arrays(tmp_path / "5", manifest, {"w": "0" * 16})
    with pytest.raises(DamagedCheckpoint) as error:
        compare_arrays(tmp_path / "5", manifest, {"w": "f" * 16, "b": "1" * 16, "new": "2" * 16})
    assert error.value.problems == [
        f"array w: found the digest {'f' * 16}, expected {'0' * 16}",
        f"array new: found the digest {'2' * 16}, expected none",
    ]


THREE = """
import sys
from pathlib import Path
import dataclasses
from engine.checkpoint.manifest import MANIFEST, read_manifest, write_manifest
from engine.checkpoint.integrity import verify
from engine.cluster import cluster_detection, group, kv_store, processes
from engine.base.errors import ConvoyError
from tests.checkpoint.integrity_test import write_step

processes.initialize(cluster_detection.detect().process)
me, step = group.index(), Path(sys.argv[1]) / "5"

def check(timeout_s=60, late=False):
    assert group.barrier("check", 60) == []
    read = []
    if late:
        kv_store.get("timed out", 60)
    try:
        manifest = verify(step, timeout_s, lambda done, total: read.append(total))
        print("good", manifest.step, read[-1])
    except ConvoyError as error:
        print(error.kind, error)
        kv_store.put("timed out", "")
    assert group.barrier("checked", 60) == []

if me == 0:
    write_step(step)
check()
if me == 0:
    (step / "d" / "1").write_text("short")
check()
kv_store.delete("timed out")
assert group.barrier("deleted", 60) == []
check(0.5, late=me == 2)
if me == 0:
    write_manifest(step, dataclasses.replace(read_manifest(step), format=3))
check()
if me == 0:
    (step / MANIFEST).unlink()
check()
processes.leave()
"""


@pytest.mark.multiprocess
def test_three_processes_share_the_files_and_agree(tmp_path):
    lines = runs.lines_by_process(THREE, tmp_path, processes=3)
    assert [lines[i][0] for i in "012"] == ["good 5 100"] * 3
    for i in "012":
        assert lines[i][1].startswith(f"DamagedCheckpoint {tmp_path / '5'}: is damaged: d/1: found 5 bytes, expected")
    for i in "012":
        assert lines[i][2].startswith(
            f"VerifyTimeout {tmp_path / '5'}: process 2 has not checked its share of the files in time."
        )
    for i in "012":
        assert lines[i][-1].startswith(f"DamagedCheckpoint {tmp_path / '5'}: is damaged: manifest.json is missing")
    assert {lines[i][-2] for i in "012"} == {lines["0"][-2]}
    assert lines["0"][-2].startswith(f"UnsupportedFormat {tmp_path / '5'}: was saved in format 3")


DIGESTS = np.array([[1, 2], [2**32 - 1, 4]], np.uint32)


def fill(folder):
    (folder / "d").mkdir(parents=True)
    for name, size in (("a", 50), ("b", 30), ("d/c", 10)):
        (folder / name).write_text("x" * size)


def text_of(total):
    assert total.dtype == np.uint32
    return {"w": str(total.tolist())}


def test_merged_manifest_has_every_file_and_digest_sums_modulo_2_32(tmp_path):
    fill(tmp_path / "7")
    parts = {i: hash_part(tmp_path / "7", names, lambda: DIGESTS) for i, names in enumerate([["a"], ["b", "d/c"]])}
    write_merged_manifest(tmp_path / "7", 7, parts, text_of)
    manifest = read_manifest(tmp_path / "7")
    assert set(manifest.files) == {"a", "b", "d/c"} and manifest.arrays == {"w": "[[2, 4], [4294967294, 8]]"}
    assert find_problems(tmp_path / "7", manifest, manifest.files) == []


def test_no_manifest_is_written_if_a_process_failed(tmp_path):
    fill(tmp_path / "7")
    parts = {
        0: hash_part(tmp_path / "7", ["a"], lambda: DIGESTS),
        1: hash_part(tmp_path / "7", ["no"], lambda: DIGESTS),
    }
    with pytest.raises(CheckpointError, match="process 1: FileNotFoundError"):
        write_merged_manifest(tmp_path / "7", 7, parts, text_of)
    assert not (tmp_path / "7" / MANIFEST).exists()


@pytest.fixture
def store(tmp_path):
    store = Saves(tmp_path)
    for step in (2, 10):
        store.save(step, {"w": jnp.ones(4)})
    store.wait()
    yield store
    store.close()


def test_verify_all_prints_a_line_for_each_good_step(store):
    lines = []
    verify_all(store.directory, lines.append)
    assert [line.split()[:3] for line in lines] == [["step", "2", "good"], ["step", "10", "good"]]
    assert all("files, 0.0 MiB" in line for line in lines)


def test_verify_all_lists_damaged_and_set_aside_steps_without_changes(store):
    for step in (2, 10):
        (store.directory / str(step) / "config" / "config.json").unlink()
    lines, before = [], sorted(store.directory.rglob("*"))
    with pytest.raises(DamagedCheckpoints, match="2 of 2 checkpoints are damaged") as error:
        verify_all(store.directory, lines.append)
    assert error.value.exit_code == ExitStatus.STOP
    assert lines[1].startswith("step       10  DAMAGED  config/config.json: is missing, expected")
    assert sorted(store.directory.rglob("*")) == before
    with pytest.raises(Exception, match="no checkpoint can be used"):
        store.restore_latest({"w": jnp.ones(4)})
    lines.clear()
    verify_all(store.directory, lines.append)
    assert [line.split(":")[0].strip() for line in lines] == [
        "10.bad  set aside by an earlier start",
        "2.bad  set aside by an earlier start",
    ]


def test_verify_all_reports_progress(store, monkeypatch):
    monkeypatch.setattr(timeouts, "PROGRESS_S", 0.0)
    progress = []
    verify_all(store.directory, lambda line: None, progress.append)
    assert progress[-1] == "step 10: 0.00 of 0.00 GiB"


def test_verify_all_raises_for_a_newer_format_after_all_steps(store):
    path = store.directory / "2"
    write_manifest(path, dataclasses.replace(read_manifest(path), format=3))
    lines = []
    with pytest.raises(UnsupportedFormat, match="was saved in format 3"):
        verify_all(store.directory, lines.append)
    assert [line.split()[2] for line in lines] == ["newer", "good"]
