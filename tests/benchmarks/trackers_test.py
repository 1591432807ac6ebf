"""The benchmark of trackers measures in turns; its lock files are complete lists with hashes."""

import re
import sys

import pytest

from benchmarks.interleaved import EngineLoop
from benchmarks.trackers import __main__ as trackers
from benchmarks.trackers.loop_worker import tracked_config
from engine.config.target import build


@pytest.mark.slow
def test_measured_loop_sends_its_rows(tmp_path):
    config = tracked_config(60, 1, str(tmp_path), ["csv"], model="digits")
    with EngineLoop(config, steps=60) as loop:
        loop.turn()
    assert loop.step == 120
    assert [line.split(",")[0] for line in (tmp_path / "csv/run/train.csv").read_text().split()] == [
        "step",
        "50",
        "100",
    ]


def test_first_turn_does_not_count_and_cpu_time_includes_the_pauses():
    seconds = {"on": [9.0, 2.0, 3.0], "off": [9.0, 1.0, 2.0]}
    wall, cpu = trackers.rows(["csv"], seconds, {"on": [5.0, 7.0, 11.0], "off": [4.0, 5.0, 7.0]}, steps=10)
    assert (wall.values, cpu.values) == ((2.0, 1.5), (2.0, 2.0))


def test_trackers_of_the_measured_loop_take_their_arguments(tmp_path):
    config = tracked_config(2, 1, str(tmp_path), trackers.BUILT_IN)
    for name, section in config.log.trackers.items():
        assert build(section, name).destination == str(tmp_path / name)


def test_unknown_tracker_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["trackers", "--only=mlfow"])
    with pytest.raises(SystemExit, match=r"mlfow is unknown. Trackers: mlflow, trackio, wandb"):
        trackers.report.main(trackers.__doc__, trackers.add_arguments, trackers.run)


@pytest.mark.parametrize("name", trackers.PACKAGES)
def test_each_lock_file_has_its_package_and_hashes(name):
    text = (trackers.LOCKS / f"{name}.txt").read_text()
    assert re.search(rf"^{name}(-skinny)?==", text, re.MULTILINE) and re.search(r"^jax==", text, re.MULTILINE)
    assert len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) <= text.count("--hash=sha256:")
