"""Processes with different configs, code or libraries raise an error with all differences."""

import sys

import pytest

from engine.cluster.consistency_check import LIBRARIES, check_consistency, differences, software
from tests import runs

PROGRAM = """
import sys
from engine.cluster import cluster_detection, group, processes
from engine.cluster.consistency_check import check_consistency
from engine.base.errors import ConvoyError
processes.initialize(cluster_detection.detect().process)
me = group.index()
check_consistency({"jax": "0.12.0", f"module only.{me}": "1"}, "start")
facts = {"train.seed": "0", "jax": "0.12.0"}
if me == 2:
    facts = {"train.seed": "1", "jax": "0.12.0", "optimizer.b1": "0.8"}
try:
    check_consistency(facts, "start")
except ConvoyError as error:
    print(f"{error.kind} {error.exit_code} {error.everywhere} {error}".replace("\\n", "|"))
processes.leave()
"""


@pytest.mark.multiprocess
def test_every_process_raises_with_the_differing_process_and_facts():
    launcher = (
        f"import sys; from engine.launch.local import launch; launch([sys.executable, '-c', {PROGRAM!r}], processes=3)"
    )
    done = runs.run([sys.executable, "-c", launcher])
    lines = sorted(line for line in done.stdout.splitlines() if "InconsistentProcesses" in line)
    assert len(lines) == 3, done.stderr
    (text,) = {line.split(" ", 1)[1] for line in lines}
    kind, code, everywhere, text = text.split(" ", 3)
    assert (kind, code, everywhere) == ("InconsistentProcesses", "1", "True")
    first, who, seed, b1, last = text.split("|")
    assert first == "the processes of this run differ."
    assert who.startswith("process 2 on ") and "differs from process 0 on " in who
    assert seed.strip() == "train.seed: 1, but 0 in process 0"
    assert b1.strip() == "optimizer.b1: 0.8, but none in process 0"
    assert last == "Start all of them with the same command, code, libraries and data."


def test_single_process_is_consistent():
    check_consistency({}, "start")


def test_modules_are_compared_only_if_both_have_loaded_them():
    first = {"module a": "1", "module b": "1", "jax": "0.12"}
    assert differences(first, {"module a": "2", "jax": "0.12"}) == ["module a: 2, but 1 in process 0"]
    assert differences(first, {"module a": "1", "module c": "1"}) == ["jax: none, but 0.12 in process 0"]


def test_software_returns_versions_and_source_hashes():
    import tests.zoo  # noqa: F401, as a config would load it

    facts = software(["tests.zoo.Classify", "optax.adamw", "engine.data.source.ArraySource"])
    assert {
        "python",
        *LIBRARIES,
        "engine/loop/trainer.py",
        "engine/cluster/consistency_check.py",
        "module tests.zoo",
    } <= facts.keys()
    assert not [name for name in facts if name.startswith(("module optax", "module engine"))]
    assert facts["engine/loop/trainer.py"] != facts["engine/api/train.py"]


def test_changed_source_file_is_a_difference(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "theirs_for_a_test.py"
    file.write_text("x = 1\n")
    import theirs_for_a_test  # pyright: ignore[reportMissingImports]

    before = software(["theirs_for_a_test.Task"])
    file.write_text("x = 2\n")
    assert theirs_for_a_test.x == 1
    assert differences(before, software(["theirs_for_a_test.Task"]))[0].startswith("module theirs_for_a_test: ")
