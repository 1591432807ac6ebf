"""What is wrong with a step is found and named, by all processes alike."""

import numpy as np
import pytest

from engine.checkpoint.manifest import Manifest, files_of, hash_files, write_manifest
from engine.checkpoint.verification import DamagedCheckpoint, compare, in_short, verify
from engine.cluster.exit_status import ExitStatus
from tests import runs


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
    compare(tmp_path / "5", manifest, manifest.arrays)


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
    assert in_short(list("abcdef")) == "a; b; c; d; and 2 more"


def test_an_array_that_differs_or_was_not_there_is_named(tmp_path):
    manifest = write_step(tmp_path / "5")
    compare(tmp_path / "5", manifest, {"w": "0" * 16})
    with pytest.raises(DamagedCheckpoint) as error:
        compare(tmp_path / "5", manifest, {"w": "f" * 16, "b": "1" * 16, "new": "2" * 16})
    assert error.value.problems == [
        f"array w: found the digest {'f' * 16}, expected {'0' * 16}",
        f"array new: found the digest {'2' * 16}, expected one",
    ]


THREE = """
import sys
from pathlib import Path
from engine.checkpoint.manifest import MANIFEST
from engine.checkpoint.verification import verify
from engine.cluster import cluster_detection, group, kv_store, processes
from engine.config.errors import ConvoyError
from tests.checkpoint.verification_test import write_step

processes.initialize(cluster_detection.resolve().who)
me, step = processes.index(), Path(sys.argv[1]) / "5"

def look(timeout_s=60, late=False):
    assert group.barrier("look", 60) == []
    read = []
    if late:
        kv_store.get("gave up", 60)
    try:
        manifest = verify(step, timeout_s, lambda done, total: read.append(total))
        print("good", manifest.step, read[-1])
    except ConvoyError as error:
        print(type(error).__name__, error)
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
    (step / MANIFEST).unlink()
look()
processes.leave()
"""


@pytest.mark.multiprocess
def test_three_processes_share_the_files_and_agree(tmp_path):
    told = runs.told_by_each(THREE, tmp_path, processes=3)
    assert [told[i][0] for i in "012"] == ["good 5 100"] * 3
    for i in "012":
        assert told[i][1].startswith(f"DamagedCheckpoint {tmp_path / '5'}: is damaged: d/1: found 5 bytes, expected")
    for i in "012":
        assert told[i][2].startswith(
            f"NotInTime {tmp_path / '5'}: process 2 has not checked its share of the files in time."
        )
    for i in "012":
        assert told[i][-1].startswith(f"DamagedCheckpoint {tmp_path / '5'}: is damaged: manifest.json is missing")
