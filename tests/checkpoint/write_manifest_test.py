"""A manifest is made of what each process found in its part; without one part there is none."""

import numpy as np
import pytest

from engine.checkpoint.manifest import MANIFEST, problems, read_manifest
from engine.checkpoint.write_manifest import Seal
from tests import runs


def fill(folder):
    (folder / "d").mkdir(parents=True)
    for name, size in (("a", 50), ("b", 30), ("d/c", 10)):
        (folder / name).write_text("x" * size)


def seal(folder, digests=lambda: np.array([[1, 2], [2**32 - 1, 4]], np.uint32)):
    return Seal(folder, 7, "save/7", digests, lambda total: {"w": str(total.tolist())}, lambda: True)


def test_the_manifest_says_what_every_file_is_and_the_digests(tmp_path):
    fill(tmp_path / "7")
    seal(tmp_path / "7").write()
    manifest = read_manifest(tmp_path / "7")
    assert set(manifest.files) == {"a", "b", "d/c"} and manifest.arrays == {"w": "[[1, 2], [4294967295, 4]]"}
    assert problems(tmp_path / "7", manifest, manifest.files) == []


def test_without_its_digests_there_is_none(tmp_path):
    fill(tmp_path / "7")
    with pytest.raises(ZeroDivisionError):
        seal(tmp_path / "7", lambda: np.zeros(1) / (1 // 0)).write()
    assert not (tmp_path / "7" / MANIFEST).exists()


TWO = """
import sys
from pathlib import Path
import numpy as np
from engine.checkpoint.manifest import problems, read_manifest
from engine.checkpoint.write_manifest import Seal
from engine.cluster import cluster_detection, group, kv_store, processes
from engine.config.errors import ConvoyError
from tests.checkpoint.write_manifest_test import fill

processes.initialize(cluster_detection.resolve().who)
me = processes.index()

def texts(total):
    assert total.dtype == np.uint32
    return {"w": str(total.tolist())}

def run(step, *, damage=False, over=False):
    folder = Path(sys.argv[1]) / str(step)
    if me == 0:
        fill(folder)
    assert group.barrier("filled", 60) == []
    digests = lambda: np.array([[2**31 + me, 5]], np.uint32) if me == 0 or not damage else np.zeros(1) / (1 // 0)
    seal = Seal(folder, step, f"save/{step}", digests, texts, lambda: not over)
    try:
        if me == 1 and not over:
            seal.hand_over()
        elif me == 0:
            seal.write()
            manifest = read_manifest(folder)
            assert len(manifest.files) == 3 and problems(folder, manifest, manifest.files) == []
            print(step, "sealed", manifest.arrays)
            print(step, "hashed by the other", list(kv_store.entries(f"save/{step}/files").values()))
    except ConvoyError as error:
        print(step, f"{type(error).__name__}: {error}")
    assert group.barrier("next", 60) == []

run(1)
run(2, damage=True)
run(3, over=True)
processes.leave()
"""


@pytest.mark.multiprocess
def test_two_processes_make_it_together(tmp_path):
    told = runs.told_by_each(TWO, tmp_path, processes=2)
    assert told["0"] == [
        "1 sealed {'w': '[[1, 10]]'}",
        """1 hashed by the other ['["b", "d/c"]']""",
        "2 CheckpointError: process 1: ZeroDivisionError: integer division or modulo by zero",
        "3 CheckpointError: the save has ended otherwise",
    ]
