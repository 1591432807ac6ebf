"""The benchmark of trackers measures in turns; its lock files are complete lists with hashes."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks.trackers import __main__ as trackers
from benchmarks.trackers.loop_worker import tracked_config
from engine.config.target import build


@pytest.mark.slow
@pytest.mark.multiprocess
def test_both_loops_do_every_turn(tmp_path):
    wall, cpu = trackers.step_time(Path(sys.executable), ("csv",), tmp_path, turns=1, steps=2)
    assert (len(wall.values), len(cpu.values)) == (1, 1) and wall.at_most == cpu.at_most == 1.03
    assert (tmp_path / "csv" / "run" / "settings.csv").exists()


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
