"""Damage of a step is found and named, by all processes alike."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from engine.checkpoint import timeouts
from engine.checkpoint.integrity import (
    DamagedCheckpoint,
    DamagedCheckpoints,
    compare_arrays,
    hash_part,
    inspect,
    shorten,
    verify,
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
from engine.config.errors import CheckpointError
from tests import runs
from tests.checkpoint.saves import Saves


def write_step(directory, count=3):
    (directory / "d").mkdir(parents=True)
    for i in range(count):
        (directory / "d" / f"{i}").write_bytes(np.random.default_rng(i).bytes(100))
    manifest = Manifest(int(directory.name), hash_files(directory, files_of(directory)), {"w": "0" * 16, "b": "1" * 16})
    write_manifest(directory, manifest)
    return manifest


def test_a_step_that_is_what_was_saved_passes(tmp_path):
    manifest = write_step(tmp_path / "5")
    told = []
    assert verify(tmp_path / "5", 60, lambda done, total: told.append((done, total))) == manifest
    assert told[-1] == (300, 300)
    compare_arrays(tmp_path / "5", manifest, manifest.arrays)


def test_everything_that_is_wrong_is_named(tmp_path):
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


def test_an_array_that_differs_or_was_not_there_is_named(tmp_path):
    manifest = write_step(tmp_path / "5")
    compare_arrays(tmp_path / "5", manifest, {"w": "0" * 16})
    with pytest.raises(DamagedCheckpoint) as error:
        compare_arrays(tmp_path / "5", manifest, {"w": "f" * 16, "b": "1" * 16, "new": "2" * 16})
    assert error.value.problems == [
        f"array w: found the digest {'f' * 16}, expected {'0' * 16}",
        f"array new: found the digest {'2' * 16}, expected one",
    ]


THREE = """
import sys
from pathlib import Path
import dataclasses
from engine.checkpoint.manifest import MANIFEST, read_manifest, write_manifest
from engine.checkpoint.integrity import verify
from engine.cluster import cluster_detection, group, kv_store, processes
from engine.config.errors import ConvoyError
from tests.checkpoint.integrity_test import write_step

processes.initialize(cluster_detection.resolve().who)
me, step = group.index(), Path(sys.argv[1]) / "5"

def look(timeout_s=60, late=False):
    assert group.barrier("look", 60) == []
    read = []
    if late:
        kv_store.get("gave up", 60)
    try:
        manifest = verify(step, timeout_s, lambda done, total: read.append(total))
        print("good", manifest.step, read[-1])
    except ConvoyError as error:
        print(error.kind, error)
        kv_store.put("gave up", "")
    assert group.barrier("looked", 60) == []

if me == 0:
    write_step(step)
look()
if me == 0:
    (step / "d" / "1").write_text("short")
look()
kv_store.delete("gave up")
assert group.barrier("deleted", 60) == []
look(0.5, late=me == 2)
if me == 0:
    write_manifest(step, dataclasses.replace(read_manifest(step), format=2))
look()
if me == 0:
    (step / MANIFEST).unlink()
look()
processes.leave()
"""


@pytest.mark.multiprocess
def test_three_processes_share_the_files_and_agree(tmp_path):
    told = runs.lines_by_process(THREE, tmp_path, processes=3)
    assert [told[i][0] for i in "012"] == ["good 5 100"] * 3
    for i in "012":
        assert told[i][1].startswith(f"DamagedCheckpoint {tmp_path / '5'}: is damaged: d/1: found 5 bytes, expected")
    for i in "012":
        assert told[i][2].startswith(
            f"VerifyTimeout {tmp_path / '5'}: process 2 has not checked its share of the files in time."
        )
    for i in "012":
        assert told[i][-1].startswith(f"DamagedCheckpoint {tmp_path / '5'}: is damaged: manifest.json is missing")
    assert {told[i][-2] for i in "012"} == {told["0"][-2]}
    assert told["0"][-2].startswith(f"UnsupportedFormat {tmp_path / '5'}: was saved in format 2")


DIGESTS = np.array([[1, 2], [2**32 - 1, 4]], np.uint32)


def fill(folder):
    (folder / "d").mkdir(parents=True)
    for name, size in (("a", 50), ("b", 30), ("d/c", 10)):
        (folder / name).write_text("x" * size)


def text_of(total):
    assert total.dtype == np.uint32
    return {"w": str(total.tolist())}


def test_the_merged_manifest_holds_every_file_and_the_sum_of_the_digests_modulo_2_32(tmp_path):
    fill(tmp_path / "7")
    parts = {i: hash_part(tmp_path / "7", names, lambda: DIGESTS) for i, names in enumerate([["a"], ["b", "d/c"]])}
    write_merged_manifest(tmp_path / "7", 7, parts, text_of)
    manifest = read_manifest(tmp_path / "7")
    assert set(manifest.files) == {"a", "b", "d/c"} and manifest.arrays == {"w": "[[2, 4], [4294967294, 8]]"}
    assert find_problems(tmp_path / "7", manifest, manifest.files) == []


def test_there_is_no_manifest_without_the_part_of_a_process(tmp_path):
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


def test_inspect_prints_a_line_for_each_good_step(store):
    lines = []
    inspect(store.directory, lines.append)
    assert [line.split()[:3] for line in lines] == [["step", "2", "good"], ["step", "10", "good"]]
    assert all("files, 0.0 MiB" in line for line in lines)


def test_inspect_names_damaged_steps_and_those_set_aside_and_changes_nothing(store):
    for step in (2, 10):
        (store.directory / str(step) / "config" / "config.json").unlink()
    lines, before = [], sorted(store.directory.rglob("*"))
    with pytest.raises(DamagedCheckpoints, match="2 of 2 checkpoints are damaged") as error:
        inspect(store.directory, lines.append)
    assert error.value.exit_code == ExitStatus.STOP
    assert lines[1].startswith("step       10  DAMAGED  config/config.json: is missing, expected")
    assert sorted(store.directory.rglob("*")) == before
    with pytest.raises(Exception, match="no checkpoint can be used"):
        store.restore_latest({"w": jnp.ones(4)})
    lines.clear()
    inspect(store.directory, lines.append)
    assert [line.split(":")[0].strip() for line in lines] == [
        "10.bad  set aside by an earlier start",
        "2.bad  set aside by an earlier start",
    ]


def test_progress_is_reported(store, monkeypatch):
    monkeypatch.setattr(timeouts, "PROGRESS_S", 0.0)
    told = []
    inspect(store.directory, lambda line: None, told.append)
    assert told[-1] == "step 10: 0.00 of 0.00 GiB"


def test_inspect_refuses_a_step_of_a_newer_format_at_the_end(store):
    path = store.directory / "2"
    write_manifest(path, dataclasses.replace(read_manifest(path), format=2))
    lines = []
    with pytest.raises(UnsupportedFormat, match="was saved in format 2"):
        inspect(store.directory, lines.append)
    assert [line.split()[2] for line in lines] == ["newer", "good"]
